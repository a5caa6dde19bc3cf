package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"golang.org/x/oauth2"

	"github.com/imagectl/imagectl/images/upload"
)

// Tokens gives requests a bearer token, and fetches a new one before it ends. It
// may be used by several goroutines; Fetch is called by one at a time.
type Tokens struct {
	Fetch func(ctx context.Context) (*oauth2.Token, error)

	mu    sync.Mutex
	token *oauth2.Token
}

// Authorize is an API's.
func (t *Tokens) Authorize(ctx context.Context, r *http.Request, _ []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.token.Valid() {
		token, err := t.Fetch(ctx)
		if err != nil {
			return fmt.Errorf("signing in: %w", signInError(ctx, err))
		}
		t.token = token
	}
	t.token.SetAuthHeader(r)
	return nil
}

// signInError says what the server of tokens said.
func signInError(ctx context.Context, err error) error {
	var no *oauth2.RetrieveError
	if !errors.As(err, &no) {
		return upload.CallError(ctx, err)
	}
	text := no.ErrorDescription
	if text == "" {
		text = no.ErrorCode
	}
	if text == "" {
		text = string(no.Body[:min(len(no.Body), 300)])
	}
	if no.Response != nil && no.Response.StatusCode >= http.StatusInternalServerError {
		return upload.StatusError(no.Response.StatusCode, text)
	}
	return fmt.Errorf("%w: %s", upload.ErrAuth, text)
}
