// Package rest calls HTTP APIs whose requests and answers fit into memory, as those
// of the large clouds do: it has each request signed, bounds what it reads, tells
// what a refusal means, and has patience with a platform that asks for it.
//
// It knows no platform and no format: both come in as functions.
package rest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/pin"
)

// API is how one platform is called. It may be used by several goroutines.
type API struct {
	// Transport carries the requests; redirects are not followed.
	Transport http.RoundTripper
	// Authorize signs a request or gives it a token; nil where the URL is enough.
	Authorize func(ctx context.Context, r *http.Request, body []byte) error
	// Refusal makes an error of an answer, with its kind and the platform's own
	// words; nil for one that is fine.
	Refusal func(a Answer) error
	// Again tells whether a refusal only means "later": nothing was done.
	Again func(a Answer) bool
	// Tries of a request before it has failed; at least 1.
	Tries int
	// Wait returns after a while, or with the context's error.
	Wait func(ctx context.Context, d time.Duration) error
}

// Request is one call.
type Request struct {
	Method, URL string
	Header      http.Header
	Body        []byte
	// Repeatable is one that may reach the platform twice without harm: it is sent
	// again when no answer comes, or one that the platform failed.
	Repeatable bool
}

// Answer is what came back.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

const (
	// bodyLimit bounds an answer, in bytes; the largest that we ask for are pages of
	// lists and blocks of 4 MiB.
	bodyLimit = 16 << 20
	// The time between tries doubles from one to the other.
	firstPause, longestPause = time.Second, 30 * time.Second
)

// Do makes a call.
func (a *API) Do(ctx context.Context, r Request) (Answer, error) {
	pause := firstPause
	for try := 1; ; try++ {
		answer, err := a.once(ctx, r)
		again := r.Repeatable && ctx.Err() == nil && !pin.Untrusted(err)
		if err == nil {
			if err = a.Refusal(answer); err == nil {
				return answer, nil
			}
			again = a.Again(answer) || r.Repeatable && answer.Status >= http.StatusInternalServerError
		}
		if !again || try >= a.Tries {
			return answer, upload.CallError(ctx, err)
		}
		if werr := a.Wait(ctx, max(pause, retryAfter(answer))); werr != nil {
			return answer, upload.CallError(ctx, errors.Join(werr, err))
		}
		pause = min(2*pause, longestPause)
	}
}

// retryAfter is what the platform asks for, as far as it is seconds and bearable.
func retryAfter(a Answer) time.Duration {
	n, err := strconv.Atoi(a.Header.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, longestPause)
}

func (a *API) once(ctx context.Context, r Request) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, bytes.NewReader(r.Body))
	if err != nil {
		return Answer{}, fmt.Errorf("calling %s: %w", r.URL, err)
	}
	if len(r.Body) > 0 {
		req.Body = inMemory{bytes.NewReader(r.Body)}
		req.GetBody = func() (io.ReadCloser, error) { return inMemory{bytes.NewReader(r.Body)}, nil }
	}
	for k, v := range r.Header {
		req.Header[k] = v
	}
	if a.Authorize != nil {
		if err := a.Authorize(ctx, req, r.Body); err != nil {
			return Answer{}, err
		}
	}
	resp, err := a.Transport.RoundTrip(req)
	if err != nil {
		return Answer{}, fmt.Errorf("calling %s %s%s: %w", r.Method, req.URL.Host, req.URL.Path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, bodyLimit+1))
	if err == nil && len(b) > bodyLimit {
		err = fmt.Errorf("it is longer than %d bytes", bodyLimit)
	}
	if err != nil {
		return Answer{}, fmt.Errorf("reading the answer of %s%s: %w", req.URL.Host, req.URL.Path, err)
	}
	return Answer{Status: resp.StatusCode, Header: resp.Header, Body: b}, nil
}
