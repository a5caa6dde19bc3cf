package bmc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// callTime bounds one HTTP request with its answer: a slow BMC needs ten seconds
	// for a login.
	callTime = 30 * time.Second
	// maxBody bounds an answer; systems with many links have 100 KiB.
	maxBody = 4 << 20
	// readTries is how often something is read that did not answer.
	readTries = 3
	readPause = 2 * time.Second
)

// transport is what stands between gofish and a BMC: it reads again what failed on
// the way, bounds every answer, and lets nothing go to another host, wherever the
// links that a BMC hands out point to: requests carry the password.
type transport struct {
	host  string // host:port that is called
	next  http.RoundTripper
	pause Pause

	mu   sync.Mutex
	last string // the last call
}

func newTransport(t Target, pause Pause) *transport {
	host := t.Address
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(host, "443")
	}
	config := t.TLS.Clone()
	return &transport{host: host, pause: pause, next: &http.Transport{
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    15 * time.Second,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		ResponseHeaderTimeout:  callTime,
		MaxResponseHeaderBytes: 64 << 10,
		MaxConnsPerHost:        2,
	}}
}

// call names the last request.
func (t *transport) call() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == "" {
		return "login"
	}
	return t.last
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.mu.Lock()
	t.last = req.Method + " " + req.URL.RequestURI()
	t.mu.Unlock()
	if req.URL.Scheme != "https" || req.URL.Host != t.host {
		return nil, fmt.Errorf("it points to %s, which is another host", shorten(req.URL.Redacted()))
	}
	tries := 1
	if req.Method == http.MethodGet {
		tries = readTries
	}
	for {
		resp, err := t.next.RoundTrip(req)
		tries--
		if tries > 0 && again(resp, err) {
			if resp != nil {
				resp.Body.Close()
			}
			if waited := t.pause(req.Context(), readPause); waited != nil {
				return nil, waited
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		resp.Body = &limitedBody{ReadCloser: resp.Body, left: maxBody}
		return resp, nil
	}
}

// CloseIdleConnections is called by http.Client's method of that name, which gofish calls
// when it has logged out: a BMC has few places, and not all give one back by themselves.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// again says whether reading once more may help.
func again(resp *http.Response, err error) bool {
	if err != nil {
		var pin *pinError
		return !errors.As(err, &pin) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	default:
		return false
	}
}

// limitedBody fails where an answer is too long.
type limitedBody struct {
	io.ReadCloser
	left int
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("its answer has more than %d bytes", maxBody)
	}
	if len(p) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= n
	return n, err
}
