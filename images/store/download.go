package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// partial is a file that is not complete yet, with a note beside it that says
// which version of the source it is a part of.
type partial struct{ path string }

// note is kept as JSON in path + ".json".
type note struct {
	// Validator is a strong ETag or a Last-Modified date: what If-Range takes.
	Validator string `json:"validator"`
}

func (p *partial) create() (*os.File, error) {
	p.remove()
	return os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
}

func (p *partial) remove() {
	os.Remove(p.path)
	os.Remove(p.path + ".json")
}

// state is how much is there and of which version.
func (p *partial) state() (have int64, validator string) {
	b, err := os.ReadFile(p.path + ".json")
	if err != nil {
		return 0, ""
	}
	var n note
	if json.Unmarshal(b, &n) != nil || n.Validator == "" {
		return 0, ""
	}
	st, err := os.Stat(p.path)
	if err != nil {
		return 0, ""
	}
	return st.Size(), n.Validator
}

func (p *partial) remember(validator string) error {
	if validator == "" {
		return nil
	}
	b, err := json.Marshal(note{Validator: validator})
	if err != nil {
		return err
	}
	return os.WriteFile(p.path+".json", b, 0o644)
}

// idleLimit is how long a server may be silent in the middle of a download.
const idleLimit = time.Minute

// download completes p from a URL. A connection that breaks is taken up again
// where it broke, as long as that brings new bytes.
func (s *Store) download(ctx context.Context, p *partial, r Request) error {
	for idle := 0; ; {
		before, _ := p.state()
		err := s.attempt(ctx, p, r)
		if err == nil {
			return nil
		}
		after, _ := p.state()
		if after > before {
			idle = 0
		} else {
			idle++
		}
		if ctx.Err() != nil || !isBroken(err) || idle >= maxIdleTries {
			return err
		}
	}
}

// brokenError marks a failure that trying again may cure.
type brokenError struct{ err error }

func (b brokenError) Error() string { return b.err.Error() }
func (b brokenError) Unwrap() error { return b.err }

func isBroken(err error) bool {
	var b brokenError
	return errors.As(err, &b)
}

// attempt is one HTTP request.
func (s *Store) attempt(ctx context.Context, p *partial, r Request) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(idleLimit, func() {
		cancel(fmt.Errorf("the server sent nothing for %s", idleLimit))
	})
	defer silence.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.Source, nil)
	if err != nil {
		return err
	}
	// The bytes as they lie on the server: a transparent decompression would
	// change what was signed.
	req.Header.Set("Accept-Encoding", "identity")
	have, validator := p.state()
	if have > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(have, 10)+"-")
		req.Header.Set("If-Range", validator)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return brokenError{err}
	}
	defer resp.Body.Close()

	var total int64
	switch resp.StatusCode {
	case http.StatusOK:
		have, total = 0, resp.ContentLength
	case http.StatusPartialContent:
		start, of, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || start != have {
			p.remove()
			return brokenError{fmt.Errorf("the server answered a request for bytes from %d with range %q", have, resp.Header.Get("Content-Range"))}
		}
		total = of
	case http.StatusRequestedRangeNotSatisfiable:
		p.remove()
		return brokenError{errors.New("the server has fewer bytes than were fetched before")}
	default:
		err := fmt.Errorf("the server answered %s", resp.Status)
		if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests {
			return brokenError{err}
		}
		return err
	}
	f, err := p.open(have, newValidator(resp.Header))
	if err != nil {
		return err
	}
	defer f.Close()
	w := &progressWriter{w: f, done: have, total: total, report: func(done, total int64) {
		silence.Reset(idleLimit)
		if r.Progress != nil {
			r.Progress(done, total)
		}
	}}
	_, err = io.Copy(w, resp.Body)
	return judge(err, context.Cause(ctx), w.done, total, r)
}

// judge decides what the end of a response means.
func judge(err, cause error, done, total int64, r Request) error {
	if err != nil && cause != nil {
		err = cause
	}
	switch {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, context.Canceled):
		return err
	case err != nil:
		return brokenError{fmt.Errorf("it broke off after %d bytes: %w: %w", done, ErrTruncated, err)}
	case total >= 0 && done < total:
		return brokenError{fmt.Errorf("it ended after %d of %d bytes: %w", done, total, ErrTruncated)}
	case r.SHA256 != "" && done < r.Size:
		return fmt.Errorf("it has %d bytes, locked are %d: %w", done, r.Size, ErrTruncated)
	}
	return nil
}

// open continues the file at have, or starts it anew, and notes the version.
func (p *partial) open(have int64, validator string) (*os.File, error) {
	if have == 0 {
		f, err := p.create()
		if err != nil {
			return nil, err
		}
		if err := p.remember(validator); err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
	f, err := os.OpenFile(p.path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// newValidator is what If-Range may carry later: RFC 9110 section 13.1.5 allows
// no weak ETag.
func newValidator(h http.Header) string {
	if e := h.Get("ETag"); e != "" && !strings.HasPrefix(e, "W/") {
		return e
	}
	return h.Get("Last-Modified")
}

// contentRange reads "bytes 5-9/10"; the total is -1 for "*".
func contentRange(v string) (start, total int64, ok bool) {
	rest, ok := strings.CutPrefix(v, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, of, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, false
	}
	first, _, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, false
	}
	start, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return 0, 0, false
	}
	if of == "*" {
		return start, -1, true
	}
	total, err = strconv.ParseInt(of, 10, 64)
	return start, total, err == nil
}
