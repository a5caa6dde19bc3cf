package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
)

// progress tells a person what is going on: one line that is rewritten on a
// terminal, else a line for each step and one now and then during long ones. It
// is safe for concurrent use.
type progress struct {
	w        io.Writer
	terminal bool
	now      func() time.Time
	// repeat is how often a step has a line where there is no terminal.
	repeat time.Duration

	mu    sync.Mutex
	last  time.Time
	steps map[string]*stepState
	dirty bool
}

// stepState is when a step began, where, and when it was last shown as a line.
type stepState struct {
	began, shown time.Time
	from         int64
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, terminal: isTerminal(w), now: time.Now, repeat: 30 * time.Second, steps: map[string]*stepState{}}
}

// isTerminal tells whether w is a terminal that can rewrite a line.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

const (
	// redraw is how often the line on a terminal changes.
	redraw = 100 * time.Millisecond
	// settle is how long a rate is not worth showing.
	settle = time.Second
)

// step shows what is being done; done and total are bytes, total is 0 or less
// when it is not known.
func (p *progress) step(what string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	s := p.steps[what]
	first := s == nil
	if first || done < s.from {
		// A download that was broken off begins with what is there already.
		s = &stepState{began: now, shown: now, from: done}
		p.steps[what] = s
	}
	if p.terminal {
		if first || now.Sub(p.last) >= redraw {
			p.last, p.dirty = now, true
			fmt.Fprint(p.w, "\r\x1b[K", what, "  "+amount(s, now, done, total))
		}
		return
	}
	if first {
		fmt.Fprintln(p.w, what)
	} else if now.Sub(s.shown) >= p.repeat {
		s.shown = now
		fmt.Fprintf(p.w, "%s: %s\n", what, amount(s, now, done, total))
	}
}

// amount is how much is done, and how fast.
func amount(s *stepState, now time.Time, done, total int64) string {
	var words []string
	switch {
	case total > 0:
		words = append(words, size(done)+" of "+size(total))
	case done > 0:
		words = append(words, size(done))
	}
	if took := now.Sub(s.began); took >= settle && done > s.from {
		words = append(words, size(int64(float64(done-s.from)/took.Seconds()))+"/s")
	}
	return strings.Join(words, ", ")
}

// watch shows how an input is fetched, and which of its sources are left out.
func (p *progress) watch(id lock.ID) release.Watch {
	what := "fetching " + string(id)
	return release.Watch{
		Progress: func(done, total int64) { p.step(what, done, total) },
		Skipped: func(err error) {
			p.close()
			p.mu.Lock()
			defer p.mu.Unlock()
			fmt.Fprintf(p.w, "%s: %s; trying the next mirror\n", id, err)
		},
	}
}

// close removes the line from a terminal.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dirty {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.dirty = false
	}
}

// size is bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
