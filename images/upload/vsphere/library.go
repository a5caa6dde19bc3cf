package vsphere

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// LibraryConfig names a content library. All is needed but Trust.
type LibraryConfig struct {
	// Endpoint is https://VCENTER; a path is left out.
	Endpoint, Username, Password string
	// Name of a local library.
	Name string
	// Transport, Trust, Random, Now, Wait and Beat are as in Config.
	Transport  http.RoundTripper
	Trust      func(host, thumbprint string) error
	Random     io.Reader
	Now        func() time.Time
	Wait, Beat func(ctx context.Context) error
}

// Library is an upload.Target: a content library of a vCenter. A version is an item
// FAMILY_VERSION, an OVF and its disk; the current one is called FAMILY. The audit
// record is in the item's description, with the number of its last promotion
// (upload.Turned). Each upload makes an item under a name of its own and renames it when
// all is there, as Target does with its templates.
//
// It logs in when it is first used; Close ends that. It may be used by several
// goroutines.
type Library struct {
	LibraryConfig
	base string

	mu sync.Mutex
	// token is the login's, and id the library's; empty until they are needed.
	token, id string
}

// NewLibrary connects to nothing yet.
func NewLibrary(c LibraryConfig) (*Library, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("reading the endpoint %q: want https://VCENTER", c.Endpoint)
	}
	if c.Name == "" {
		return nil, errors.New("reading the content library's name: there is none")
	}
	return &Library{LibraryConfig: c, base: u.Scheme + "://" + u.Host}, nil
}

// Formats implements upload.Target. The disk is the same in both.
func (l *Library) Formats() []store.Format { return []store.Format{store.VMDK, store.OVA} }

// The paths of the API, which vCenter has since 6.5.
const (
	sessionPath     = "/com/vmware/cis/session"
	libraryPath     = "/com/vmware/content/library"
	itemPath        = libraryPath + "/item"
	itemFilePath    = itemPath + "/file"
	updatePath      = itemPath + "/update-session"
	updateFilePath  = itemPath + "/updatesession/file"
	sessionHeader   = "vmware-api-session-id"
	errorTypePrefix = "com.vmware.vapi.std.errors."
)

// call makes one call, with a login if there is none or it has ended. in is what is
// sent, out what the answer is read into; both may be nil.
func (l *Library) call(ctx context.Context, doing, method, path string, in, out any) error {
	for {
		token, fresh, err := l.login(ctx)
		if err != nil {
			return err
		}
		err = l.once(ctx, method, path, in, out, func(r *http.Request) { r.Header.Set(sessionHeader, token) })
		var no *refusal
		if errors.As(err, &no) && no.status == http.StatusUnauthorized && !fresh {
			l.forget(token)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		return nil
	}
}

// login gives the token of the login, and whether it was made for that.
func (l *Library) login(ctx context.Context) (token string, fresh bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.token != "" {
		return l.token, false, nil
	}
	err = l.once(ctx, http.MethodPost, sessionPath, nil, &token, func(r *http.Request) { r.SetBasicAuth(l.Username, l.Password) })
	if err != nil {
		return "", false, fmt.Errorf("logging in at %s as %s: %w", l.base, l.Username, err)
	}
	l.token = token
	return token, true, nil
}

func (l *Library) forget(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.token == token {
		l.token = ""
	}
}

// Close logs out. What goes wrong with that does not matter: logins end by themselves.
func (l *Library) Close(ctx context.Context) {
	l.mu.Lock()
	token := l.token
	l.token = ""
	l.mu.Unlock()
	if token == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyLimit)
	defer cancel()
	_ = l.once(ctx, http.MethodDelete, sessionPath, nil, nil, func(r *http.Request) { r.Header.Set(sessionHeader, token) })
}

func (l *Library) once(ctx context.Context, method, path string, in, out any, authorize func(*http.Request)) error {
	r := rest.Request{Method: method, URL: l.base + "/rest" + path, Header: http.Header{"Accept": {"application/json"}}}
	if in != nil {
		var err error
		if r.Body, err = json.Marshal(in); err != nil {
			return err
		}
		r.Header.Set("Content-Type", "application/json")
	}
	api := rest.API{
		Transport: l.Transport, Tries: 1, Refusal: libraryRefusal, Again: func(rest.Answer) bool { return false },
		Authorize: func(_ context.Context, r *http.Request, _ []byte) error {
			authorize(r)
			return nil
		},
	}
	answer, err := api.Do(ctx, r)
	if err != nil || out == nil {
		return err
	}
	wrapped := struct {
		Value any `json:"value"`
	}{out}
	if err := json.Unmarshal(answer.Body, &wrapped); err != nil {
		return fmt.Errorf("%w: reading the answer: %w", upload.ErrServer, err)
	}
	return nil
}

// refusal is an answer that is no success. It wraps its kind, with vCenter's words.
type refusal struct {
	status int
	error
}

// Unwrap gives the kind.
func (r *refusal) Unwrap() error { return r.error }

// libraryRefusal reads vCenter's words: a type of error, and messages.
func libraryRefusal(a rest.Answer) error {
	if a.Status/100 == 2 {
		return nil
	}
	var said struct {
		Type  string
		Value struct {
			Messages []struct {
				Text string `json:"default_message"`
			}
		}
	}
	const wordsLimit = 500
	if json.Unmarshal(a.Body, &said) != nil {
		said.Type = strings.Join(strings.Fields(string(a.Body[:min(len(a.Body), wordsLimit)])), " ")
	}
	code := strings.TrimPrefix(said.Type, errorTypePrefix)
	text := code
	for _, m := range said.Value.Messages {
		text += ": " + m.Text
	}
	err := upload.StatusError(a.Status, text)
	if kind := libraryKind(code); kind != nil {
		err = fmt.Errorf("%w: %d %s: %s", kind, a.Status, http.StatusText(a.Status), text)
	}
	return &refusal{a.Status, err}
}

func libraryKind(code string) error {
	switch code {
	case "unauthenticated", "unauthorized":
		return upload.ErrAuth
	case "unable_to_allocate_resource":
		return upload.ErrSpace
	case "not_found":
		return upload.ErrNotFound
	case "already_exists":
		return upload.ErrTaken
	case "resource_in_use", "resource_busy":
		return upload.ErrInUse
	case "timed_out":
		return upload.ErrTimeout
	}
	return nil
}

// library gives the library's ID.
func (l *Library) library(ctx context.Context) (string, error) {
	l.mu.Lock()
	id := l.id
	l.mu.Unlock()
	if id != "" {
		return id, nil
	}
	doing := "looking for the content library " + l.Name
	var ids []string
	in := map[string]any{"spec": map[string]string{"name": l.Name, "type": "LOCAL"}}
	if err := l.call(ctx, doing, http.MethodPost, libraryPath+"?~action=find", in, &ids); err != nil {
		return "", err
	}
	if len(ids) != 1 {
		return "", fmt.Errorf("%s: %w: there are %d local ones that %s may see; want one", doing, upload.ErrNotFound, len(ids), l.Username)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = ids[0]
	return l.id, nil
}
