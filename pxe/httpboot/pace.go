package httpboot

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
)

// terms are how a client has to take what it is sent.
type terms struct {
	// least is the rate that it has to keep up, in bytes per second.
	least int64
	// still is how long it may stand still besides.
	still time.Duration
	// piece is what is sent between two looks at the clock, in bytes. The most whole pages
	// that Linux sends as one segment to the card, 64 KiB with its headers, are the quickest
	// (docs/performance.md): of 64 KiB it makes two, the second a small one, and of a MiB it
	// queues more than the processors' caches hold before any of it is read.
	piece int64
}

// usual are those for everybody. The rate is below that of a BMC that fetches its virtual
// media at 100 KiB/s. A full send buffer of Linux (4 MiB at most, net.ipv4.tcp_wmem) lets
// us go on when a third of it is free, for which such a client takes 14 s.
func usual() terms { return terms{least: 64 << 10, still: 30 * time.Second, piece: 60 << 10} }

// Codes of transfers that came to their end too early.
const (
	// CodeStalled: the client stood still, or took less than it has to.
	CodeStalled = "stalled"
	// CodeBrokenOff: the client closed its connection, or was not to be reached any more.
	CodeBrokenOff = "broken-off"
)

// pace is how far a transfer has come. It knows no clock.
type pace struct {
	terms
	began time.Time
	// sent counts bytes since then.
	sent int64
}

// until is when so many more bytes have to be gone: by the rate since the beginning, so
// that nobody keeps a place by taking a little now and then, and at any time within a
// while of standing still, however much was taken before.
func (p pace) until(now time.Time, more int64) time.Time {
	mean, next := p.due(p.began, p.sent+more), p.due(now, more)
	if mean.Before(next) {
		return mean
	}
	return next
}

func (t terms) due(since time.Time, bytes int64) time.Time {
	return since.Add(t.still + time.Duration(float64(bytes)/float64(t.least)*float64(time.Second)))
}

// paced sends a body piece by piece, each of them with its deadline. It hands files down
// as they are, or they would no longer be sent by sendfile.
type paced struct {
	http.ResponseWriter
	pace
	// broke is what a piece ended with that was not sent.
	broke error
}

func (t terms) paced(w http.ResponseWriter) *paced {
	return &paced{ResponseWriter: w, pace: pace{terms: t, began: time.Now()}}
}

// Write implements io.Writer.
func (p *paced) Write(b []byte) (int, error) {
	p.renew(int64(len(b)))
	n, err := p.ResponseWriter.Write(b)
	return n, p.went(int64(n), err)
}

// ReadFrom implements io.ReaderFrom.
func (p *paced) ReadFrom(r io.Reader) (n int64, err error) {
	from, ok := r.(*io.LimitedReader)
	if !ok {
		from = &io.LimitedReader{R: r, N: math.MaxInt64}
	}
	for from.N > 0 {
		size := min(from.N, p.piece)
		p.renew(size)
		sent, err := io.CopyN(p.ResponseWriter, from.R, size)
		from.N -= sent
		n += sent
		if errors.Is(err, io.EOF) {
			return n, p.went(sent, nil)
		}
		if err := p.went(sent, err); err != nil {
			return n, err
		}
	}
	return n, nil
}

// renew sets the deadline. Without deadlines (a recorder in a test) nobody waits.
func (p *paced) renew(more int64) {
	_ = http.NewResponseController(p.ResponseWriter).SetWriteDeadline(p.until(time.Now(), more))
}

func (p *paced) went(n int64, err error) error {
	p.sent += n
	if err != nil && p.broke == nil {
		p.broke = err
	}
	return err
}

// Unwrap is for http.ResponseController.
func (p *paced) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// ended says what kept the client from having all that it was promised. The zero value is
// for nothing, and for what is not the client's: then the error has it.
func (p *paced) ended(name string, now time.Time) (boot.Refusal, error) {
	took := now.Sub(p.began).Round(time.Second)
	part := fmt.Sprintf("%d of %s bytes of %s in %s", p.sent, p.Header().Get("Content-Length"), name, took)
	switch {
	case p.broke == nil:
		return boot.Refusal{}, nil
	case errors.Is(p.broke, os.ErrDeadlineExceeded):
		return boot.Refusal{Code: CodeStalled, Reason: fmt.Sprintf("cut off: it took %s; it has to take %d KiB a second and may stand still for %s: look at its link and its screen",
			part, p.least>>10, p.still)}, nil
	case lost(p.broke):
		return boot.Refusal{Code: CodeBrokenOff, Reason: fmt.Sprintf("it took %s and closed the connection, or was lost: look at its screen", part)}, nil
	}
	return boot.Refusal{}, p.broke
}

// lost says whether an error is of a connection whose client has gone.
func lost(err error) bool {
	for _, gone := range []error{syscall.EPIPE, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}
