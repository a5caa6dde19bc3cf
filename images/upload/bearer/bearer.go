// Package bearer calls the APIs of platforms that speak JSON and know a caller by a
// token. Patience with what a platform postpones is package rest's.
package bearer

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// Client calls one API. It may be used by several goroutines.
type Client struct {
	// Base is what all paths are added to.
	Base      string
	Token     string
	Transport http.RoundTripper
	// Reason reads the platform's code and sentence from the body of a refusal; both
	// are empty where it has none.
	Reason func(body []byte) (code, message string)
	// Kind tells which sentinel of package upload a refusal is; nil for what its
	// status says.
	Kind func(r Refusal) error
	// Tries of a request that may be sent again before it has failed; at least 1.
	Tries int
	// Wait returns after a while, or with the context's error.
	Wait func(ctx context.Context, d time.Duration) error
}

// Refusal is an answer that is no success. It wraps its kind.
type Refusal struct {
	Status        int
	Code, Message string

	kind error
}

// Error has the kind, the status and the platform's words.
func (r *Refusal) Error() string { return r.kind.Error() }

// Unwrap gives the kind.
func (r *Refusal) Unwrap() error { return r.kind }

// wordsLimit is how much of an answer is shown that is no JSON, in bytes.
const wordsLimit = 500

// Do makes one call. in is what is sent, nil for nothing; out is what the answer is
// read into, nil for nobody. All but POST may be sent again.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	doing := "calling " + method + " " + path
	r := rest.Request{Method: method, URL: c.Base + path, Header: http.Header{"User-Agent": {"imagectl"}}, Repeatable: method != http.MethodPost}
	if in != nil {
		var err error
		if r.Body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		r.Header.Set("Content-Type", "application/json")
	}
	api := rest.API{Transport: c.Transport, Authorize: c.authorize, Refusal: c.refused, Again: postponed, Tries: c.Tries, Wait: c.Wait}
	answer, err := api.Do(ctx, r)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Body, out); err != nil {
		return fmt.Errorf("%s: reading the answer: %w: %w", doing, upload.ErrServer, err)
	}
	return nil
}

func (c *Client) authorize(_ context.Context, r *http.Request, _ []byte) error {
	r.Header.Set("Authorization", "Bearer "+c.Token)
	return nil
}

// postponed: the limit of requests in a time is reached, and nothing was done.
func postponed(a rest.Answer) bool { return a.Status == http.StatusTooManyRequests }

func (c *Client) refused(a rest.Answer) error {
	if a.Status/100 == 2 {
		return nil
	}
	r := Refusal{Status: a.Status}
	r.Code, r.Message = c.Reason(a.Body)
	text := r.Code + ": " + r.Message
	if r.Code == "" && r.Message == "" {
		text = string(a.Body[:min(len(a.Body), wordsLimit)])
	}
	r.kind = upload.StatusError(a.Status, text)
	if kind := c.Kind(r); kind != nil {
		r.kind = fmt.Errorf("%w: %d %s: %s", kind, a.Status, http.StatusText(a.Status), text)
	}
	return &r
}
