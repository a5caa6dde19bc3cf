package azure

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// refused is an answer of Azure's that says no.
type refused struct {
	kind          error
	status        int
	code, message string
}

func (r *refused) Error() string { return fmt.Sprintf("%v: %s: %s", r.kind, r.code, r.message) }

func (r *refused) Unwrap() error { return r.kind }

func refusal(a rest.Answer) error {
	if a.Status >= 200 && a.Status < 300 {
		return nil
	}
	code, message := words(a)
	if code == "" {
		return upload.StatusError(a.Status, message)
	}
	r := &refused{kind: upload.ErrServer, status: a.Status, code: code, message: message}
	switch {
	case strings.Contains(code, "Quota"), strings.Contains(message, "quota"):
		// Quotas are told as 403, 409 and 400.
		r.kind = upload.ErrSpace
	case a.Status == http.StatusUnauthorized, a.Status == http.StatusForbidden:
		r.kind = upload.ErrAuth
	case a.Status == http.StatusNotFound:
		r.kind = upload.ErrNotFound
	}
	return r
}

// words reads the resource manager's errors, which are JSON, and storage's, which
// are XML.
func words(a rest.Answer) (code, message string) {
	var object struct {
		Error struct{ Code, Message string }
	}
	if json.Unmarshal(a.Body, &object) == nil && object.Error.Code != "" {
		return object.Error.Code, object.Error.Message
	}
	var doc struct{ Code, Message string }
	if xml.Unmarshal(a.Body, &doc) == nil && doc.Code != "" {
		// The rest of the message is a request's number and time.
		doc.Message, _, _ = strings.Cut(doc.Message, "\n")
		return doc.Code, doc.Message
	}
	if h := a.Header.Get("X-Ms-Error-Code"); h != "" {
		return h, "without further words"
	}
	return "", strings.TrimSpace(string(a.Body[:min(len(a.Body), 300)]))
}

// again: Azure did nothing, and asks to come back.
func again(a rest.Answer) bool {
	return a.Status == http.StatusTooManyRequests || a.Status == http.StatusServiceUnavailable && a.Header.Get("X-Ms-Error-Code") == "ServerBusy"
}

// conflicts tells whether a refusal is about what is there, or going on there.
func conflicts(err error) bool {
	var r *refused
	return errors.As(err, &r) && r.status == http.StatusConflict && !errors.Is(err, upload.ErrSpace)
}

// ask calls the resource manager. PUT, GET and DELETE may be repeated; ask and into
// may be nil.
func (t *Target) ask(ctx context.Context, method, path, version string, ask, into any) (rest.Answer, error) {
	r := rest.Request{Method: method, URL: t.conf.Endpoint + path + "?api-version=" + version, Repeatable: method != http.MethodPost, Header: http.Header{}}
	if strings.HasPrefix(path, t.conf.Endpoint+"/") {
		r.URL = path // Azure gave it
	}
	if ask != nil {
		b, err := json.Marshal(ask)
		if err != nil {
			return rest.Answer{}, fmt.Errorf("calling %s: %w", path, err)
		}
		r.Body = b
		r.Header.Set("Content-Type", "application/json")
	}
	a, err := t.manager.Do(ctx, r)
	if err != nil {
		return a, fmt.Errorf("calling Azure: %s %s: %w", method, shortPath(path), err)
	}
	if into == nil || len(a.Body) == 0 {
		return a, nil
	}
	if err := json.Unmarshal(a.Body, into); err != nil {
		return a, fmt.Errorf("calling Azure: %s %s: %w: its answer cannot be read: %w", method, shortPath(path), upload.ErrServer, err)
	}
	return a, nil
}

// shortPath is what tells paths apart.
func shortPath(path string) string {
	if u, err := url.Parse(path); err == nil {
		path = u.Path
	}
	if _, rest, ok := strings.Cut(path, compute+"/"); ok {
		return rest
	}
	return path
}

// list reads all pages of a list.
func list[T any](ctx context.Context, t *Target, path, version string) ([]T, error) {
	var all []T
	for path != "" {
		var page struct {
			Value    []T
			NextLink string
		}
		if _, err := t.ask(ctx, http.MethodGet, path, version, nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Value...)
		if path = page.NextLink; path != "" && !strings.HasPrefix(path, t.conf.Endpoint+"/") {
			return nil, fmt.Errorf("calling Azure: %w: it says that a list goes on at %s", upload.ErrServer, path)
		}
	}
	return all, nil
}

// gone waits until something that is being deleted is not there.
func (t *Target) gone(ctx context.Context, path, version string) error {
	for {
		_, err := t.ask(ctx, http.MethodGet, path, version, nil, nil)
		if errors.Is(err, upload.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := t.wait(ctx, "waiting until "+shortPath(path)+" is gone"); err != nil {
			return err
		}
	}
}

// remove deletes something; what is gone is fine.
func (t *Target) remove(ctx context.Context, path, version string) error {
	_, err := t.ask(ctx, http.MethodDelete, path, version, nil, nil)
	if errors.Is(err, upload.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return t.gone(ctx, path, version)
}

func (t *Target) wait(ctx context.Context, doing string) error {
	if err := t.conf.Wait(ctx, poll); err != nil {
		return fmt.Errorf("%s: %w", doing, upload.CallError(ctx, err))
	}
	return nil
}
