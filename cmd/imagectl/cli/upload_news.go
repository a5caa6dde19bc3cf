package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// news tells a person or a program what an upload does: one line that changes on a
// terminal, a line every ten seconds where there is none, lines of JSON with -o
// json. It is safe for concurrent use.
type news struct {
	image, version string
	out            io.Writer
	json           bool
	progress       *progress
	now            func() time.Time

	mu    sync.Mutex
	phase string
	shown time.Time
	notes map[string]bool
}

// newsLine is one line of JSON.
type newsLine struct {
	Image   string `json:"image"`
	Version string `json:"version"`
	upload.Event
}

func newNews(s Stdio, o format, img upload.Image) *news {
	p := newProgress(s.Err)
	p.repeat = 10 * time.Second
	return &news{image: img.Name, version: img.Version, out: s.Out, json: o == formatJSON, progress: p, now: time.Now, notes: map[string]bool{}}
}

// event implements upload.Events.
func (n *news) event(e upload.Event) {
	if n.json {
		n.line(e)
		return
	}
	n.progress.step(n.image+": "+e.Phase, e.Done, e.Total)
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.Note != "" && !n.notes[e.Note] {
		n.notes[e.Note] = true
		n.progress.close()
		fmt.Fprintln(n.progress.w, text(n.image+": "+e.Note))
	}
}

// line writes at most one line a second for each phase, but all notes and ends.
func (n *news) line(e upload.Event) {
	const every = time.Second
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now()
	if e.Note == "" && e.Phase == n.phase && now.Sub(n.shown) < every && (e.Total == 0 || e.Done < e.Total) {
		return
	}
	n.phase, n.shown = e.Phase, now
	// The end of the upload reports a pipe that is closed.
	_ = n.encode(newsLine{n.image, n.version, e})
}

func (n *news) encode(v any) error {
	e := json.NewEncoder(n.out)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

// end closes the stream with a report, as JSON or by show.
func (n *news) end(report uploadReport, show func() error) error {
	n.progress.close()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.json {
		return n.encode(report)
	}
	return show()
}

func printPlan(w io.Writer, target string, img upload.Image, p upload.Plan, promote bool) error {
	if p.Found != nil && len(p.Steps) == 0 {
		current := ""
		if p.Found.Current {
			current = " and current"
		}
		_, err := fmt.Fprintf(w, "%s %s: is on %s already as %s%s\n", img.Name, img.Version, target, p.Found.ID, current)
		switch {
		case err != nil || !p.Stale && (p.Found.Current || !promote):
			return err
		case p.Stale && promote:
			_, err = fmt.Fprintln(w, "  renew its template, which has other options than cluster.yaml has now")
			return err
		case p.Stale:
			_, err = fmt.Fprintln(w, "  its template has other options than cluster.yaml has now; --promote renews it")
			return err
		}
	} else if _, err := fmt.Fprintf(w, "%s %s: %s would be sent to %s\n", img.Name, img.Version, size(p.Bytes), target); err != nil {
		return err
	}
	steps := p.Steps
	if promote {
		steps = append(steps, "make it current")
	}
	_, err := fmt.Fprintln(w, "  "+text(strings.Join(steps, "\n  ")))
	return err
}

func printOutcome(w io.Writer, target string, out upload.Outcome) error {
	o := out.Object
	what := "uploaded to " + target + " as " + o.ID
	if out.Unchanged {
		what = "no changes: is on " + target + " already as " + o.ID
	}
	switch {
	case out.Renewed:
		what = "is on " + target + " as " + o.ID + ", and its template has the options of now"
	case out.Promoted:
		what += ", and is current now"
	case o.Current:
		what += ", and is current"
	default:
		what += fmt.Sprintf("\nnext: imagectl upload promote %s %s", target, o.ID)
	}
	_, err := fmt.Fprintf(w, "%s %s: %s\n", o.Name, o.Version, what)
	return err
}
