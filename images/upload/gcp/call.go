package gcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// refused is an answer of Google's that says no.
type refused struct {
	kind            error
	status          int
	reason, message string
}

func (r *refused) Error() string { return fmt.Sprintf("%v: %s: %s", r.kind, r.reason, r.message) }

func (r *refused) Unwrap() error { return r.kind }

// goOn is what storage answers to a chunk that is not the last.
const goOn = http.StatusPermanentRedirect

func refusal(a rest.Answer) error {
	if a.Status >= 200 && a.Status < 300 || a.Status == goOn {
		return nil
	}
	reason, message := words(a)
	if reason == "" {
		return upload.StatusError(a.Status, message)
	}
	r := &refused{kind: upload.ErrServer, status: a.Status, reason: reason, message: message}
	switch {
	case strings.Contains(strings.ToLower(reason), "quota"):
		r.kind = upload.ErrSpace
	case later(reason):
	case a.Status == http.StatusUnauthorized, a.Status == http.StatusForbidden:
		r.kind = upload.ErrAuth
	case a.Status == http.StatusNotFound:
		r.kind = upload.ErrNotFound
	case reason == "resourceInUseByAnotherResource":
		r.kind = upload.ErrInUse
	}
	return r
}

func words(a rest.Answer) (reason, message string) {
	var doc struct {
		Error struct {
			Message string
			Status  string
			Errors  []struct{ Reason string }
		}
	}
	if json.Unmarshal(a.Body, &doc) != nil || doc.Error.Message == "" {
		return "", strings.TrimSpace(string(a.Body[:min(len(a.Body), 300)]))
	}
	reason = doc.Error.Status
	if len(doc.Error.Errors) > 0 {
		reason = doc.Error.Errors[0].Reason
	}
	if reason == "" {
		reason = http.StatusText(a.Status)
	}
	return reason, doc.Error.Message
}

func later(reason string) bool {
	return slices.Contains([]string{"rateLimitExceeded", "userRateLimitExceeded", "RESOURCE_EXHAUSTED"}, reason)
}

// again: Google did nothing, and asks to come back.
func again(a rest.Answer) bool {
	if a.Status < 400 {
		return false
	}
	reason, _ := words(a)
	return a.Status == http.StatusTooManyRequests || later(reason)
}

// exists tells whether a refusal is that there is one already.
func exists(err error) bool {
	var r *refused
	return errors.As(err, &r) && r.status == http.StatusConflict
}

// call makes a call with a document, and reads one; both may be nil.
func (t *Target) call(ctx context.Context, method, at string, ask, into any) error {
	r := rest.Request{Method: method, URL: at, Header: http.Header{}, Repeatable: method != http.MethodPost}
	if ask != nil {
		b, err := json.Marshal(ask)
		if err != nil {
			return fmt.Errorf("calling %s: %w", at, err)
		}
		r.Body = b
		r.Header.Set("Content-Type", "application/json; charset=utf-8")
	}
	a, err := t.api.Do(ctx, r)
	if err != nil {
		return fmt.Errorf("calling Google: %s %s: %w", method, short(at), err)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(a.Body, into); err != nil {
		return fmt.Errorf("calling Google: %s %s: %w: its answer cannot be read: %w", method, short(at), upload.ErrServer, err)
	}
	return nil
}

// short is what tells addresses apart; queries may hold permissions.
func short(at string) string {
	u, err := url.Parse(at)
	if err != nil {
		return "an address"
	}
	return u.Path
}

func (t *Target) global(path string) string {
	return t.compute + "/compute/v1/projects/" + url.PathEscape(t.conf.Project) + "/global/" + path
}

// operation is what Compute Engine does by itself.
type operation struct {
	Name   string
	Status string
	Error  struct {
		Errors []struct{ Code, Message string }
	}
}

// change makes a call that begins an operation, and waits for its end.
func (t *Target) change(ctx context.Context, method, at string, ask any) error {
	var op operation
	if err := t.call(ctx, method, at, ask, &op); err != nil {
		return err
	}
	for op.Status != "DONE" {
		if err := t.wait(ctx, "waiting for "+short(at)); err != nil {
			return err
		}
		if op.Name == "" {
			return fmt.Errorf("calling Google: %s %s: %w: it answered without an operation", method, short(at), upload.ErrServer)
		}
		if err := t.call(ctx, http.MethodGet, t.global("operations/"+url.PathEscape(op.Name)), nil, &op); err != nil {
			return err
		}
	}
	if len(op.Error.Errors) == 0 {
		return nil
	}
	no := op.Error.Errors[0]
	kind := upload.ErrServer
	if strings.Contains(no.Code, "QUOTA") {
		kind = upload.ErrSpace
	}
	return fmt.Errorf("calling Google: %s %s: %w: %s: %s", method, short(at), kind, no.Code, no.Message)
}

func (t *Target) wait(ctx context.Context, doing string) error {
	if err := t.conf.Wait(ctx, poll); err != nil {
		return fmt.Errorf("%s: %w", doing, upload.CallError(ctx, err))
	}
	return nil
}
