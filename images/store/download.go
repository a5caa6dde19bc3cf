package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	// Total is how long the source said it is; -1 when it did not.
	Total int64 `json:"total"`
}

func (p *partial) create() (*os.File, error) {
	p.remove()
	return os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
}

func (p *partial) remove() {
	os.Remove(p.path)
	os.Remove(p.path + ".json")
}

// state is how much is there and of which version; nothing when the note tells
// of nothing that could be continued.
func (p *partial) state() (have int64, n note) {
	b, err := os.ReadFile(p.path + ".json")
	if err != nil || json.Unmarshal(b, &n) != nil || n.Validator == "" {
		return 0, note{}
	}
	st, err := os.Stat(p.path)
	if err != nil || st.Size() == 0 || n.Total >= 0 && st.Size() >= n.Total {
		return 0, note{}
	}
	return st.Size(), n
}

func (p *partial) remember(n note) error {
	if n.Validator == "" {
		return nil
	}
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return os.WriteFile(p.path+".json", b, 0o644)
}

// idleLimit is how long a server may be silent, unless a test says otherwise.
const idleLimit = time.Minute

// maxIdleTries is how often in a row a download may bring nothing new.
const maxIdleTries = 5

// firstPause is before a second try that has nothing new to build on; each
// further pause is twice as long.
const firstPause = 500 * time.Millisecond

// maxPause is how long a server may have us wait.
const maxPause = 2 * time.Minute

// download completes p from a URL. A connection that breaks is taken up again
// where it broke, at once as long as that brings bytes that never came before,
// else after a pause and not for ever.
func (s *Store) download(ctx context.Context, p *partial, source string, r Request) error {
	best, _ := p.state()
	for idle := 0; ; {
		err := s.attempt(ctx, p, source, r)
		var b brokenError
		if err == nil || ctx.Err() != nil || !errors.As(err, &b) {
			return err
		}
		if b.wait > maxPause {
			return fmt.Errorf("%w, and to come back in %s; try later or name a mirror", err, b.wait)
		}
		pause := b.wait
		if have, _ := p.state(); have > best {
			best, idle = have, 0
		} else if idle++; idle >= maxIdleTries {
			return fmt.Errorf("%w (tried %d times)", err, idle)
		} else {
			pause = max(pause, firstPause<<(idle-1))
		}
		if pause == 0 {
			continue
		}
		if err := s.pause(ctx, pause); err != nil {
			return err
		}
	}
}

// sleep waits, or ends with the context.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// brokenError marks a failure that trying again may cure.
type brokenError struct {
	err error
	// wait is what the server asked for; 0 when it did not.
	wait time.Duration
}

func (b brokenError) Error() string { return b.err.Error() }
func (b brokenError) Unwrap() error { return b.err }

// attempt is one HTTP request.
func (s *Store) attempt(ctx context.Context, p *partial, source string, r Request) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(s.patience, func() {
		cancel(fmt.Errorf("the server sent nothing for %s", s.patience))
	})
	defer silence.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return err
	}
	// The bytes as they lie on the server: a transparent decompression would
	// change what was signed.
	req.Header.Set("Accept-Encoding", "identity")
	have, known := p.state()
	if have > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(have, 10)+"-")
		req.Header.Set("If-Range", known.Validator)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return brokenError{err: err}
	}
	defer resp.Body.Close()

	var total int64
	switch resp.StatusCode {
	case http.StatusOK:
		// All of it: the first time, when the source has changed, and from servers
		// that know no ranges.
		have, total = 0, resp.ContentLength
	case http.StatusPartialContent:
		if total, err = continued(resp, have, known); err != nil {
			p.remove()
			return err
		}
	case http.StatusRequestedRangeNotSatisfiable:
		p.remove()
		return brokenError{err: errors.New("the server has fewer bytes than were fetched before")}
	default:
		return refusal(resp, s.now())
	}
	if total >= 0 && r.SHA256 != "" && total != r.Size {
		p.remove()
		return wrongSize(total, r)
	}
	f, err := p.open(have, note{Validator: newValidator(resp.Header), Total: total})
	if err != nil {
		return err
	}
	defer f.Close()
	w := &progressWriter{w: f, done: have, total: total, report: func(done, total int64) {
		silence.Reset(s.patience)
		if r.Progress != nil {
			r.Progress(done, total)
		}
	}}
	body := io.Reader(resp.Body)
	if r.SHA256 != "" {
		// One byte more than there may be is enough to know.
		body = io.LimitReader(body, r.Size-have+1)
	}
	_, err = io.Copy(w, body)
	return judge(err, context.Cause(ctx), w.done, total, r)
}

// continued checks that a partial response continues what was asked for, and
// tells how long the whole is. Content put together from a lie would be refused
// in the end, but only after all of it was fetched, and again by every later run.
func continued(resp *http.Response, have int64, known note) (total int64, err error) {
	said := resp.Header.Get("Content-Range")
	start, end, total, ok := contentRange(said)
	switch {
	case !ok || start != have:
		return 0, fmt.Errorf("the server answered a request for bytes from %d with range %q: it cannot be trusted to resume", have, said)
	case total >= 0 && end != total-1:
		return 0, fmt.Errorf("the server answered a request for all bytes from %d with range %q: it cannot be trusted to resume", have, said)
	case resp.ContentLength >= 0 && resp.ContentLength != end-start+1:
		return 0, fmt.Errorf("the server says %q and sends %d bytes: it cannot be trusted to resume", said, resp.ContentLength)
	case known.Total >= 0 && total >= 0 && total != known.Total:
		return 0, fmt.Errorf("the server says %q, and before that there were %d bytes of the same version: it cannot be trusted to resume", said, known.Total)
	case newValidator(resp.Header) != "" && newValidator(resp.Header) != known.Validator:
		return 0, fmt.Errorf("the server continues version %s with version %s: it cannot be trusted to resume", known.Validator, newValidator(resp.Header))
	}
	return total, nil
}

// refusal is what a status other than success means.
func refusal(resp *http.Response, now time.Time) error {
	err := fmt.Errorf("the server answered %s", resp.Status)
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return absentError{err}
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout:
		return brokenError{err: err, wait: retryAfter(resp.Header.Get("Retry-After"), now)}
	}
	return err
}

// absentError is fs.ErrNotExist for a source that the server does not have.
type absentError struct{ error }

func (absentError) Is(target error) bool { return target == fs.ErrNotExist }

// retryAfter reads seconds or a date: RFC 9110 section 10.2.3.
func retryAfter(v string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
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
		return brokenError{err: fmt.Errorf("it broke off after %d bytes: %w: %w", done, ErrTruncated, err)}
	case r.SHA256 != "" && done > r.Size:
		return fmt.Errorf("it has more than the %d bytes that are locked: %w", r.Size, ErrDigest)
	case total >= 0 && done > total:
		return fmt.Errorf("the server sent %d bytes and said there are %d", done, total)
	case total >= 0 && done < total:
		return brokenError{err: fmt.Errorf("it ended after %d of %d bytes: %w", done, total, ErrTruncated)}
	case r.SHA256 != "" && done < r.Size:
		return wrongSize(done, r)
	}
	return nil
}

func wrongSize(size int64, r Request) error {
	kind := ErrDigest
	if size < r.Size {
		kind = ErrTruncated
	}
	return fmt.Errorf("it has %d bytes, locked are %d: %w; if the change is wanted, run imagectl lock --update", size, r.Size, kind)
}

// open continues the file at have, or starts it anew, and notes the version.
func (p *partial) open(have int64, n note) (*os.File, error) {
	if have == 0 {
		f, err := p.create()
		if err != nil {
			return nil, err
		}
		if err := p.remember(n); err != nil {
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
func contentRange(v string) (start, end, total int64, ok bool) {
	rest, ok := strings.CutPrefix(v, "bytes ")
	if !ok {
		return 0, 0, 0, false
	}
	span, of, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, 0, false
	}
	first, last, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, 0, false
	}
	start, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return 0, 0, 0, false
	}
	if end, err = strconv.ParseInt(last, 10, 64); err != nil || start < 0 || end < start {
		return 0, 0, 0, false
	}
	if of == "*" {
		return start, end, -1, true
	}
	total, err = strconv.ParseInt(of, 10, 64)
	return start, end, total, err == nil && total > end
}
