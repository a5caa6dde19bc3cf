package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// download is an io.Reader over a URL that goes on where it was when a
// connection breaks. It trusts nothing: whoever reads it compares size and
// digest at the end.
type download struct {
	ctx    context.Context // bound to this one download's life
	client *http.Client
	url    string
	size   int64
	body   io.ReadCloser
	off    int64
	// fails counts attempts since the last byte.
	fails int
	// broken is why it gave up, for whoever reads through a decompressor that
	// wraps errors its own way.
	broken error
	// pause waits between attempts.
	pause func(context.Context, time.Duration) error
}

// attempts without a single byte of progress before giving up; with the pauses
// below that is about two minutes of a server that restarts.
const attempts = 8

func (d *download) Read(p []byte) (int, error) {
	for {
		if d.off == d.size {
			return 0, io.EOF
		}
		if d.body == nil {
			if err := d.open(); err != nil {
				if err := d.failed(err); err != nil {
					return 0, err
				}
				continue
			}
		}
		n, err := d.body.Read(p[:min(int64(len(p)), d.size-d.off)])
		d.off += int64(n)
		if n > 0 {
			d.fails = 0
		}
		if err != nil {
			d.Close()
		}
		if n > 0 {
			return n, nil
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if err := d.failed(err); err != nil {
				return 0, err
			}
		}
	}
}

// failed waits before the next attempt, or says that there is none.
func (d *download) failed(cause error) error {
	d.fails++
	if d.fails < attempts && d.ctx.Err() == nil {
		if err := d.pause(d.ctx, min(time.Second<<(d.fails-1), 30*time.Second)); err == nil {
			return nil
		}
	}
	d.broken = fmt.Errorf("downloading %s: %d of %d bytes: %w", d.url, d.off, d.size, cause)
	return d.broken
}

func (d *download) open() error {
	req, err := http.NewRequestWithContext(d.ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return err
	}
	if d.off > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.off))
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	switch {
	case d.off > 0 && resp.StatusCode == http.StatusPartialContent:
	case resp.StatusCode == http.StatusOK:
		// A server without ranges sends everything again.
		if _, err := io.CopyN(io.Discard, resp.Body, d.off); err != nil {
			_ = resp.Body.Close()
			return err
		}
	default:
		_ = resp.Body.Close()
		return fmt.Errorf("the server answered %s", resp.Status)
	}
	d.body = resp.Body
	return nil
}

// Close ends the connection; the next Read opens a new one.
func (d *download) Close() {
	if d.body != nil {
		_ = d.body.Close()
		d.body = nil
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
