package upload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// What a caller tells apart. Every one of them is wrapped together with the
// platform's own text.
var (
	// ErrAuth: it does not know us, or does not let us.
	ErrAuth = errors.New("not allowed")
	// ErrSpace: it is full, or a quota is.
	ErrSpace = errors.New("no space")
	// ErrServer: it failed, or could not be reached.
	ErrServer = errors.New("server failed")
	// ErrTimeout: it was not done in time. What was begun is in the journal.
	ErrTimeout = errors.New("not done in time")
	// ErrInUse: something needs the object.
	ErrInUse = errors.New("in use")
	// ErrNotFound: there is no such object.
	ErrNotFound = errors.New("not found")
	// ErrTaken: something that is not ours has the name.
	ErrTaken = errors.New("name is taken")
)

// StatusError makes an error of an HTTP answer; nil for 2xx. text is what the
// server said.
func StatusError(status int, text string) error {
	kind := ErrServer
	switch {
	case status >= 200 && status < 300:
		return nil
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		kind = ErrAuth
	case status == http.StatusNotFound:
		kind = ErrNotFound
	case status == http.StatusInsufficientStorage || status == http.StatusRequestEntityTooLarge:
		kind = ErrSpace
	case status == http.StatusRequestTimeout || status == http.StatusGatewayTimeout:
		kind = ErrTimeout
	}
	return fmt.Errorf("%w: %d %s: %s", kind, status, http.StatusText(status), text)
}

// CallError says which kind an error of a call is that got no answer. One that
// has a kind already, and a cancelled context, stay as they are.
func CallError(ctx context.Context, err error) error {
	if err == nil || errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	for _, kind := range []error{ErrAuth, ErrSpace, ErrServer, ErrTimeout, ErrInUse, ErrNotFound, ErrTaken} {
		if errors.Is(err, kind) {
			return err
		}
	}
	// Whoever set the limit may have named it.
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, ctx.Err()) {
		return fmt.Errorf("%w: %w: %w", ErrTimeout, cause, err)
	}
	var slow net.Error
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &slow) && slow.Timeout() {
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	}
	return fmt.Errorf("%w: %w", ErrServer, err)
}
