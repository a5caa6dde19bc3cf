package proxmox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
)

// maxAnswer bounds an answer; 10,000 machines have about 5 MB.
const maxAnswer = 64 << 20

// node is a path below our node. Parts are escaped.
func (t *Target) node(parts ...string) string {
	path := "/nodes/" + url.PathEscape(t.Node)
	for _, p := range parts {
		path += "/" + url.PathEscape(p)
	}
	return path
}

func (t *Target) get(ctx context.Context, path string, query url.Values, into any) error {
	return t.call(ctx, http.MethodGet, path, query, into)
}

// call makes a call whose parameters are few and small. into may be nil.
func (t *Target) call(ctx context.Context, method, path string, params url.Values, into any) error {
	at, body := path, ""
	if len(params) > 0 {
		if method == http.MethodGet || method == http.MethodDelete {
			at += "?" + params.Encode()
		} else {
			body = params.Encode()
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, t.Endpoint+"/api2/json"+at, strings.NewReader(body))
	if err != nil {
		return fmt.Errorf("calling %s %s: %w", method, path, err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return t.do(r, path, into)
}

// do sends a request with the token and reads {"data": ...}.
func (t *Target) do(r *http.Request, path string, into any) error {
	ctx := r.Context()
	fail := func(err error) error {
		return fmt.Errorf("calling %s %s: %w", r.Method, path, upload.CallError(ctx, err))
	}
	r.Header.Set("Authorization", "PVEAPIToken="+t.Token+"="+t.Secret)
	resp, err := t.Client.Do(r)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fail(err)
	}
	if resp.StatusCode != http.StatusOK {
		return fail(answerError(resp, b))
	}
	var answer struct {
		Data json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return fail(fmt.Errorf("%w: its answer is no JSON: %w", upload.ErrServer, err))
	}
	if into == nil || len(answer.Data) == 0 {
		return nil
	}
	if err := json.Unmarshal(answer.Data, into); err != nil {
		return fail(fmt.Errorf("%w: its answer cannot be read: %w", upload.ErrServer, err))
	}
	return nil
}

// answerError is a refusal. Proxmox VE says why in the status line, in newer versions
// in the body, too, and which parameter was wrong only there.
func answerError(resp *http.Response, body []byte) error {
	var said struct {
		Message string            `json:"message"`
		Errors  map[string]string `json:"errors"`
	}
	_, text, _ := strings.Cut(resp.Status, " ")
	if json.Unmarshal(body, &said) == nil {
		if said.Message = strings.TrimSpace(said.Message); said.Message != "" && !strings.Contains(text, said.Message) {
			text = said.Message
		}
		for _, k := range slices.Sorted(maps.Keys(said.Errors)) {
			text += fmt.Sprintf("; %s: %s", k, strings.TrimSpace(said.Errors[k]))
		}
	}
	kind := kindOf(text)
	switch {
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		kind = upload.ErrAuth
	case resp.StatusCode == http.StatusGatewayTimeout:
		kind = upload.ErrTimeout
	}
	return &refusal{kind: kind, status: resp.StatusCode, text: text}
}

// refusal is what Proxmox VE said no with.
type refusal struct {
	kind   error
	status int
	text   string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%v: Proxmox VE says (%d): %s", r.kind, r.status, r.text)
}

func (r *refusal) Unwrap() error { return r.kind }

// kindOf reads what a call or a task failed with: nearly everything is status 500,
// and the words are all there is.
func kindOf(text string) error {
	text = strings.ToLower(text)
	for _, k := range []struct {
		kind  error
		words []string
	}{
		{upload.ErrSpace, []string{"no space left", "not enough space", "not enough free space", "disk quota exceeded", "insufficient free space"}},
		{upload.ErrTaken, []string{"already exists"}},
		{upload.ErrInUse, []string{"still in use", "in use by", "is running", "is locked", "can't lock file", "used in ha"}},
		{upload.ErrNotFound, []string{"does not exist", "no such vm", "no such file", "no such storage"}},
		{upload.ErrAuth, []string{"permission check failed"}},
	} {
		for _, w := range k.words {
			if strings.Contains(text, w) {
				return k.kind
			}
		}
	}
	return upload.ErrServer
}

// taskPolls is how many answers in a row may be missing while a task runs: a proxy
// that restarts is no reason to break an upload off.
const taskPolls = 3

// await waits for a task, and says what it failed with. No UPID is none to wait for.
func (t *Target) await(ctx context.Context, doing, upid string) error {
	if upid == "" {
		return nil
	}
	path, exit, err := t.end(ctx, upid)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", doing, err)
	case exit == "OK" || strings.HasPrefix(exit, "WARNINGS"):
		return nil
	}
	return fmt.Errorf("%s: %w", doing, t.taskError(ctx, path, exit))
}

// end waits for a task and returns what it ended with.
func (t *Target) end(ctx context.Context, upid string) (path, exit string, err error) {
	if path, err = taskPath(upid); err != nil {
		return "", "", err
	}
	for missed := 0; ; {
		var s struct {
			Status string `json:"status"`
			Exit   string `json:"exitstatus"`
		}
		err := t.get(ctx, path+"/status", nil, &s)
		switch {
		case (errors.Is(err, upload.ErrServer) || errors.Is(err, upload.ErrTimeout) && ctx.Err() == nil) && missed < taskPolls:
			// 504 is a proxy's, and no limit of ours.
			missed++
		case err != nil:
			return "", "", err
		case s.Status == "stopped":
			return path, s.Exit, nil
		default:
			missed = 0
		}
		if err := t.Wait(ctx); err != nil {
			return "", "", fmt.Errorf("waiting for task %s: %w", upid, upload.CallError(ctx, err))
		}
	}
}

// taskPath is where a task is asked about: on the node that runs it.
func taskPath(upid string) (string, error) {
	parts := strings.Split(upid, ":")
	if len(parts) < 3 || parts[0] != "UPID" {
		return "", fmt.Errorf("%w: the answer %q is no task", upload.ErrServer, upid)
	}
	return "/nodes/" + url.PathEscape(parts[1]) + "/tasks/" + url.PathEscape(upid), nil
}

// taskError is what a task ended with, and the end of its log, which has the words of
// the programs that it ran.
func (t *Target) taskError(ctx context.Context, path, exit string) error {
	const most, last = 500, 3
	var lines []struct {
		Text string `json:"t"`
	}
	text := exit
	if err := t.get(ctx, path+"/log", url.Values{"limit": {fmt.Sprint(most)}}, &lines); err == nil {
		for _, l := range lines[max(0, len(lines)-last):] {
			if l.Text = strings.TrimSpace(l.Text); l.Text != "" && !strings.Contains(l.Text, exit) {
				text += "; " + l.Text
			}
		}
	}
	return fmt.Errorf("%w: the task failed: %s", kindOf(text), text)
}
