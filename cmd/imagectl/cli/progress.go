package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress tells a person what is going on: one line that is rewritten on a
// terminal, else a line for each step. It is safe for concurrent use.
type progress struct {
	w        io.Writer
	terminal bool
	now      func() time.Time

	mu    sync.Mutex
	last  time.Time
	shown map[string]bool
	dirty bool
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, terminal: isTerminal(w), now: time.Now, shown: map[string]bool{}}
}

// isTerminal tells whether w is a terminal that can rewrite a line.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// redraw is how often the line on a terminal changes.
const redraw = 100 * time.Millisecond

// step shows what is being done; done and total are bytes, total is 0 or less
// when it is not known.
func (p *progress) step(what string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.shown[what]
	p.shown[what] = true
	if !p.terminal {
		if first {
			fmt.Fprintln(p.w, what)
		}
		return
	}
	now := p.now()
	if !first && now.Sub(p.last) < redraw {
		return
	}
	p.last, p.dirty = now, true
	switch {
	case total > 0:
		fmt.Fprintf(p.w, "\r\x1b[K%s  %s of %s", what, size(done), size(total))
	case done > 0:
		fmt.Fprintf(p.w, "\r\x1b[K%s  %s", what, size(done))
	default:
		fmt.Fprintf(p.w, "\r\x1b[K%s", what)
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
