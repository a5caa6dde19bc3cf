package glance_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	project = "0123456789abcdef0123456789abcdef"
	secret  = "secret"
)

// cloud stands in for Keystone and Glance, after their documentation and sources.
type cloud struct {
	*httptest.Server

	mu     sync.Mutex
	images map[string]*stored
	order  []string
	// gone are IDs that the data base still knows.
	gone   map[string]bool
	tokens map[string]bool
	// full refuses data, quota refuses images.
	full, quota bool
	// converts has each import make a raw image.
	converts bool
	hold     chan struct{}
	imports  sync.WaitGroup
}

type stored struct {
	props map[string]any
	data  []byte
	inUse bool
	// importing is Glance's lock: one import at a time.
	importing bool
	tasks     []map[string]any
}

func newCloud(t *testing.T) *cloud {
	c := &cloud{images: map[string]*stored{}, gone: map[string]bool{}, tokens: map[string]bool{}}
	c.Server = httptest.NewServer(c)
	t.Cleanup(func() {
		c.release()
		c.imports.Wait()
		c.Close()
	})
	return c
}

// html is how Glance says no.
func html(w http.ResponseWriter, status int, reason string) {
	w.Header().Set("Content-Type", "text/html; charset=UTF-8")
	w.WriteHeader(status)
	title := fmt.Sprintf("%d %s", status, http.StatusText(status))
	fmt.Fprintf(w, "<html>\n <head>\n  <title>%s</title>\n </head>\n <body>\n  <h1>%s</h1>\n  %s<br /><br />\n\n\n </body>\n</html>", title, title, reason)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

type object = map[string]any

// ServeHTTP implements http.Handler.
func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost && r.URL.Path == "/identity/v3/auth/tokens" {
		c.token(w, r)
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/image/v2/")
	c.mu.Lock()
	known := c.tokens[r.Header.Get("X-Auth-Token")]
	c.mu.Unlock()
	switch {
	case !ok:
		http.NotFound(w, r)
		return
	case !known:
		html(w, http.StatusUnauthorized, "This server could not verify that you are authorized to access the document you requested.")
		return
	case path == "info/import":
		answer(w, 200, object{"import-methods": object{"type": "array", "value": []string{"glance-direct", "web-download"}}})
		return
	}
	id, action, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(path, "images"), "/"), "/")
	switch call := r.Method + " " + action; {
	case id == "" && call == "GET ":
		c.list(w, r)
	case id == "" && call == "POST ":
		c.create(w, r)
	default:
		c.mu.Lock()
		i := c.images[id]
		c.mu.Unlock()
		if i == nil {
			html(w, http.StatusNotFound, "Failed to find image "+id)
			return
		}
		switch call {
		case "GET ":
			c.mu.Lock()
			shown := maps.Clone(i.props)
			c.mu.Unlock()
			answer(w, 200, shown)
		case "GET tasks":
			c.mu.Lock()
			all := slices.Clone(i.tasks)
			c.mu.Unlock()
			answer(w, 200, object{"tasks": all})
		case "PUT file", "PUT stage":
			c.receive(w, r, i, action == "stage")
		case "POST import":
			c.importing(w, r, i)
		case "PATCH ":
			c.patch(w, r, i)
		case "DELETE ":
			c.delete(w, i)
		default:
			html(w, http.StatusMethodNotAllowed, "no such call")
		}
	}
}

func (c *cloud) token(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Auth struct {
			Identity struct {
				Methods    []string
				Credential struct{ ID, Secret string } `json:"application_credential"`
				Password   struct {
					User struct{ Name, Password string }
				}
			}
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		answer(w, 400, object{"error": object{"code": 400, "message": err.Error()}})
		return
	}
	if i := ask.Auth.Identity; i.Credential.Secret != secret && i.Password.User.Password != secret {
		answer(w, 401, object{"error": object{"code": 401, "title": "Unauthorized", "message": "The request you have made requires authentication."}})
		return
	}
	c.mu.Lock()
	token := fmt.Sprintf("token-%d", len(c.tokens))
	c.tokens[token] = true
	c.mu.Unlock()
	w.Header().Set("X-Subject-Token", token)
	answer(w, 201, object{"token": object{
		"expires_at": "2099-01-01T00:00:00.000000Z", "project": object{"id": project, "name": "demo", "domain": object{"id": "default", "name": "Default"}},
		"catalog": []object{{"type": "image", "name": "glance", "id": "1", "endpoints": []object{{
			"interface": "public", "region": "RegionOne", "region_id": "RegionOne", "url": c.URL + "/image", "id": "2",
		}}}},
	}})
}

// expire lets all tokens be too old.
func (c *cloud) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for token := range c.tokens {
		c.tokens[token] = false
	}
}

// pageSize is small, so that lists have several pages.
const pageSize = 2

func (c *cloud) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	c.mu.Lock()
	defer c.mu.Unlock()
	var hits []object
	for _, id := range c.order {
		i := c.images[id]
		if i == nil {
			continue
		}
		hit := fmt.Sprint(i.props["os_hidden"]) == q.Get("os_hidden") || q.Get("os_hidden") == "" && i.props["os_hidden"] == false
		for k, v := range q {
			switch k {
			case "os_hidden", "limit", "marker":
			case "tag":
				tags, _ := i.props["tags"].([]any)
				hit = hit && slices.Contains(tags, any(v[0]))
			default:
				hit = hit && i.props[k] == v[0]
			}
		}
		if hit {
			hits = append(hits, maps.Clone(i.props))
		}
	}
	if m := q.Get("marker"); m != "" {
		hits = hits[1+slices.IndexFunc(hits, func(o object) bool { return o["id"] == m }):]
	}
	page := object{"schema": "/v2/schemas/images"}
	if len(hits) > pageSize {
		hits = hits[:pageSize]
		q.Set("marker", hits[pageSize-1]["id"].(string))
		page["next"] = "/v2/images?" + q.Encode()
	}
	page["images"] = hits
	if hits == nil {
		page["images"] = []object{}
	}
	answer(w, 200, page)
}

func (c *cloud) create(w http.ResponseWriter, r *http.Request) {
	var props object
	if err := json.NewDecoder(r.Body).Decode(&props); err != nil {
		html(w, 400, err.Error())
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	id, _ := props["id"].(string)
	switch {
	case c.quota:
		html(w, http.StatusRequestEntityTooLarge, "Project "+project+" is over a limit for [Resource image_count_total is over limit of 0 due to current usage 0 and delta 1]")
		return
	case len(id) != 36:
		html(w, 400, "Invalid UUID format")
		return
	case c.images[id] != nil || c.gone[id]:
		html(w, http.StatusConflict, "Image ID "+id+" already exists!")
		return
	}
	for k, v := range props {
		if strings.HasPrefix(k, "imagectl") {
			if _, text := v.(string); !text || strings.Contains(k, "-") {
				html(w, 400, fmt.Sprintf("Invalid property %s: %v", k, v))
				return
			}
		}
	}
	if props["protected"] == nil {
		props["protected"] = false
	}
	props["status"], props["owner"], props["size"] = "queued", project, nil
	props["created_at"] = time.Now().UTC().Format(time.RFC3339)
	c.images[id] = &stored{props: props}
	c.order = append(c.order, id)
	answer(w, 201, props)
}

// to changes the status from one to another; ok is false when it is a third.
func (c *cloud) to(i *stored, from, to string) (ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i.props["status"] != from {
		return false
	}
	i.props["status"] = to
	return true
}

func (c *cloud) receive(w http.ResponseWriter, r *http.Request, i *stored, staged bool) {
	if r.Header.Get("Content-Type") != "application/octet-stream" {
		html(w, http.StatusUnsupportedMediaType, "")
		return
	}
	during := "saving"
	if staged {
		during = "uploading"
	}
	if !c.to(i, "queued", during) {
		html(w, http.StatusConflict, fmt.Sprintf("Image status transition from %s to %s is not allowed", i.props["status"], during))
		return
	}
	b, err := io.ReadAll(r.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil || int64(len(b)) != r.ContentLength:
		i.props["status"] = "queued"
		return
	case c.full:
		i.props["status"] = "queued"
		html(w, http.StatusRequestEntityTooLarge, "Image storage media is full: There is not enough disk space on the image storage media.")
		return
	case c.images[i.props["id"].(string)] == nil:
		html(w, http.StatusGone, "Image could not be found after upload. The image may have been deleted during the upload")
		return
	}
	i.data = b
	if !staged {
		i.activate()
	}
	w.WriteHeader(http.StatusNoContent)
}

func (i *stored) activate() {
	sum := sha512.Sum512(i.data)
	i.props["status"], i.props["size"] = "active", len(i.data)
	i.props["os_hash_algo"], i.props["os_hash_value"] = "sha512", hex.EncodeToString(sum[:])
}

func (c *cloud) importing(w http.ResponseWriter, r *http.Request, i *stored) {
	var ask struct{ Method struct{ Name, URI string } }
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		html(w, 400, err.Error())
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	from := map[string]string{"glance-direct": "uploading", "web-download": "queued"}[ask.Method.Name]
	if i.importing {
		html(w, http.StatusConflict, "Image has active task")
		return
	}
	if i.props["status"] != from {
		html(w, http.StatusConflict, fmt.Sprintf("Image needs to be in '%s' state to use '%s' method", from, ask.Method.Name))
		return
	}
	task := object{"status": "pending", "message": "", "created_at": fmt.Sprintf("2026-01-01T00:00:%02dZ", len(i.tasks))}
	i.tasks = append(i.tasks, task)
	hold := c.hold
	i.importing = true
	c.imports.Go(func() {
		if hold != nil {
			<-hold
		}
		c.mu.Lock()
		i.props["status"] = "importing"
		b := i.data
		c.mu.Unlock()
		var err error
		if ask.Method.URI != "" {
			b, err = fetch(ask.Method.URI)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		i.importing = false
		next := maps.Clone(task)
		next["status"], next["message"] = "success", ""
		if i.data = b; err != nil {
			i.props["status"] = "queued"
			next["status"], next["message"] = "failure", "Task failed due to Internal Error: "+err.Error()
		} else {
			if c.converts {
				i.data, i.props["disk_format"] = []byte("a raw image"), "raw"
			}
			i.activate()
		}
		i.tasks[len(i.tasks)-1] = next
	})
	w.WriteHeader(http.StatusAccepted)
}

func fetch(uri string) ([]byte, error) {
	resp, err := http.Get(uri)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return nil, fmt.Errorf("HTTP Error %s", resp.Status)
	}
	return io.ReadAll(resp.Body)
}

func (c *cloud) patch(w http.ResponseWriter, r *http.Request, i *stored) {
	if r.Header.Get("Content-Type") != "application/openstack-images-v2.1-json-patch" {
		html(w, http.StatusUnsupportedMediaType, "")
		return
	}
	var all []struct {
		Op, Path string
		Value    any
	}
	if err := json.NewDecoder(r.Body).Decode(&all); err != nil {
		html(w, 400, err.Error())
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range all {
		key := strings.TrimPrefix(p.Path, "/")
		if _, there := i.props[key]; !there && p.Op == "replace" {
			html(w, http.StatusConflict, "Property "+key+" does not exist.")
			return
		}
		i.props[key] = p.Value
	}
	answer(w, 200, i.props)
}

func (c *cloud) delete(w http.ResponseWriter, i *stored) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := i.props["id"].(string)
	switch {
	case i.props["protected"] == true:
		html(w, http.StatusForbidden, "Image "+id+" is protected and cannot be deleted.")
	case i.inUse:
		html(w, http.StatusConflict, "Image "+id+" could not be deleted because it is in use: The image cannot be deleted because it has snapshot(s).")
	default:
		delete(c.images, id)
		c.gone[id] = true
		w.WriteHeader(http.StatusNoContent)
	}
}

func (c *cloud) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hold != nil {
		close(c.hold)
		c.hold = nil
	}
}

// foreign is an image of somebody else in the same project.
func (c *cloud) foreign() func() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := "00000000-0000-0000-0000-000000000001"
	props := object{"id": id, "name": "prod-worker", "tags": []any{"imagectl"}, "os_hidden": false, "protected": false, "status": "active", "owner": project, "created_at": "2020-01-01T00:00:00Z"}
	c.images[id] = &stored{props: props}
	c.order = append(c.order, id)
	before, _ := json.Marshal(props)
	return func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.images[id] == nil {
			return fmt.Errorf("the image of somebody else is gone")
		}
		if after, _ := json.Marshal(c.images[id].props); !bytes.Equal(before, after) {
			return fmt.Errorf("the image of somebody else is %s now", after)
		}
		return nil
	}
}
