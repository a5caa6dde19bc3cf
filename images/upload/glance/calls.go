package glance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/imagectl/imagectl/images/upload"
)

// image is one as the API shows it: its own keys and those that anybody added, side
// by side.
type image map[string]any

func (i image) text(key string) string {
	s, _ := i[key].(string)
	return s
}

func (i image) flag(key string) bool {
	b, _ := i[key].(bool)
	return b
}

// number is in digits, however the library has read it.
func (i image) number(key string) string {
	switch n := i[key].(type) {
	case json.Number:
		return n.String()
	case float64:
		return strconv.FormatFloat(n, 'f', 0, 64)
	}
	return ""
}

func (i image) id() string { return i.text("id") }

// label is the key of a label: Glance has no hyphens in those of its own.
func label(key string) string {
	if key == upload.LabelOurs {
		return key
	}
	return "imagectl_" + strings.ReplaceAll(key, "-", "_")
}

const (
	// markKey says whose upload made the image, turnKey which promotion was its last,
	// createdKey when it was made: Glance's own time has seconds only.
	markKey    = "imagectl_upload"
	turnKey    = "imagectl_turn"
	createdKey = "imagectl_created"
	tag        = "imagectl"
)

func (i image) ours() bool {
	return i.text(label(upload.LabelOurs)) == "1" && i.text(label(upload.LabelName)) != ""
}

func (i image) turn() int {
	n, _ := strconv.Atoi(i.text(turnKey))
	return n
}

func (i image) created() time.Time {
	at, err := time.Parse(time.RFC3339Nano, i.text(createdKey))
	if err != nil {
		at, _ = time.Parse(time.RFC3339, i.text("created_at"))
	}
	return at.UTC()
}

// stage is what an image's status means for us.
type stage int

const (
	finished stage = iota
	empty          // waits for data
	pending
	broken
)

func (i image) stage() stage {
	switch i.text("status") {
	case "active", "deactivated":
		return finished
	case "queued":
		return empty
	case "saving", "uploading", "importing":
		return pending
	}
	return broken
}

// call makes one call of the image service; into may be nil.
func (t *Target) call(ctx context.Context, doing, method, path string, body, into any, header map[string]string) error {
	service, _, err := t.connect(ctx)
	if err != nil {
		return err
	}
	o := &gophercloud.RequestOpts{
		JSONBody: body, JSONResponse: into, MoreHeaders: header,
		OkCodes: []int{http.StatusOK, http.StatusCreated, http.StatusAccepted, http.StatusNoContent},
	}
	resp, err := service.Request(ctx, method, service.ResourceBaseURL()+path, o)
	if err == nil && into == nil {
		resp.Body.Close()
	}
	return failed(ctx, doing, err)
}

// get reads an image; nil when there is none.
func (t *Target) get(ctx context.Context, id string) (image, error) {
	var i image
	err := t.call(ctx, "looking at image "+id, http.MethodGet, "images/"+url.PathEscape(id), nil, &i, nil)
	if errors.Is(err, upload.ErrNotFound) {
		return nil, nil
	}
	return i, err
}

// pageLimit bounds the pages of a list; a page has a hundred images.
const pageLimit = 1000

// images are ours in this project that have some labels, unfinished ones too. Those
// that are hidden come first, so that one that is promoted meanwhile is not missed.
func (t *Target) images(ctx context.Context, labels map[string]string) ([]image, error) {
	_, project, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	var out []image
	at := map[string]int{}
	for _, hidden := range []string{"true", "false"} {
		q := url.Values{"tag": {tag}, "owner": {project}, "os_hidden": {hidden}, "limit": {"100"}}
		for k, v := range labels {
			q.Set(label(k), v)
		}
		query := q.Encode()
		for range pageLimit {
			var page struct {
				Images []image
				Next   string
			}
			if err := t.call(ctx, "listing images", http.MethodGet, "images?"+query, nil, &page, nil); err != nil {
				return nil, err
			}
			for _, i := range page.Images {
				if !i.ours() {
					continue
				}
				if n, seen := at[i.id()]; seen {
					out[n] = i
					continue
				}
				at[i.id()] = len(out)
				out = append(out, i)
			}
			next, err := url.Parse(page.Next)
			if err != nil || page.Next == "" {
				break
			}
			query = next.RawQuery
		}
	}
	return out, nil
}

// patch changes an image. A key that is there already is replaced.
func (t *Target) patch(ctx context.Context, id string, set map[string]any) error {
	type change struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	var all []change
	for k, v := range set {
		op := "replace"
		if strings.HasPrefix(k, "imagectl_") {
			op = "add"
		}
		all = append(all, change{op, "/" + k, v})
	}
	return t.call(ctx, "changing image "+id, http.MethodPatch, "images/"+url.PathEscape(id), all, nil,
		map[string]string{"Content-Type": "application/openstack-images-v2.1-json-patch"})
}

// remove deletes an image. What Glance calls a conflict is that a machine or a
// volume lies on it.
func (t *Target) remove(ctx context.Context, id string) error {
	err := t.call(ctx, "deleting image "+id, http.MethodDelete, "images/"+url.PathEscape(id), nil, nil, nil)
	if conflict(err) {
		return fmt.Errorf("%w: %w", upload.ErrInUse, err)
	}
	return err
}

// put sends bytes, with their number: some proxies refuse a body that does not say
// how long it is. A token that is too old before or after is replaced once, as the
// library does it for calls whose bodies fit into memory.
func (t *Target) put(ctx context.Context, path string, body func() io.Reader, size int64) error {
	service, _, err := t.connect(ctx)
	if err != nil {
		return err
	}
	token := service.Token()
	err = t.putOnce(ctx, service, path, body(), size)
	if !refused(err, http.StatusUnauthorized) || !t.conf.Auth.AllowReauth {
		return err
	}
	if err := service.Reauthenticate(ctx, token); err != nil {
		return failed(ctx, "asking Keystone for a new token", err)
	}
	return t.putOnce(ctx, service, path, body(), size)
}

func (t *Target) putOnce(ctx context.Context, service *gophercloud.ServiceClient, path string, body io.Reader, size int64) error {
	doing := "sending the file"
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, service.ResourceBaseURL()+path, io.NopCloser(body))
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	r.ContentLength = size
	r.Header.Set("Content-Type", "application/octet-stream")
	for k, v := range service.AuthenticatedHeaders() {
		r.Header.Set(k, v)
	}
	resp, err := t.conf.Client.Do(r)
	if err != nil {
		return failed(ctx, doing, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 == 2 {
		return nil
	}
	if err != nil {
		return failed(ctx, doing, err)
	}
	return failed(ctx, doing, gophercloud.ErrUnexpectedResponseCode{Actual: resp.StatusCode, Body: text})
}

// refusal is an answer that is no success.
type refusal struct {
	status int
	error
}

// Unwrap gives the kind and the text.
func (r *refusal) Unwrap() error { return r.error }

// refused: the answer has this status.
func refused(err error, status int) bool {
	var r *refusal
	return errors.As(err, &r) && r.status == status
}

// conflict: the image is not in a state for that.
func conflict(err error) bool { return refused(err, http.StatusConflict) }

// gone: the image was deleted meanwhile.
func gone(err error) bool {
	return errors.Is(err, upload.ErrNotFound) || refused(err, http.StatusGone)
}

// failed says what was being done, which kind of failure it was, and what
// OpenStack said.
func failed(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	var answer gophercloud.ErrUnexpectedResponseCode
	if !errors.As(err, &answer) || ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, upload.CallError(ctx, err))
	}
	return fmt.Errorf("%s: %w", doing, &refusal{answer.Actual, upload.StatusError(answer.Actual, words(string(answer.Body)))})
}

// Glance answers in HTML, and says the status twice before the reason; Keystone in
// JSON.
var (
	htmlHead = regexp.MustCompile(`(?s)^.*</h1>`)
	htmlTag  = regexp.MustCompile(`<[^>]*>`)
)

// wordsLimit is how much of an answer is shown, in bytes.
const wordsLimit = 1000

func words(body string) string {
	if strings.Contains(body, "<") {
		body = html.UnescapeString(htmlTag.ReplaceAllString(htmlHead.ReplaceAllString(body, ""), " "))
	}
	body = strings.Join(strings.Fields(body), " ")
	return strings.ToValidUTF8(body[:min(len(body), wordsLimit)], "")
}
