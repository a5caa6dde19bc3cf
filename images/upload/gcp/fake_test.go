package gcp

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fake is a project with a bucket, as far as this package speaks to it, from
// Google's references of Compute Engine v1 and of storage's JSON API.
type fake struct {
	mu  sync.Mutex
	url string
	key *rsa.PublicKey
	// now goes on by a second with each thing that is made.
	now        time.Time
	images     map[string]*fakeImage
	files      map[string]*fakeFile
	sessions   map[string]*fakeSession
	operations map[string]*fakeOperation
	disks      []string // links to the images that they were made of
	lastID     int
	sent       int64 // bytes that came to sessions
	// full: there is a quota of images. keep is how much of a chunk storage keeps at
	// most, where it is not 0. throttle answers that many requests with "later".
	full           bool
	keep, throttle int
	tokens         int
}

type fakeImage struct {
	doc   map[string]any
	file  string
	looks int
}

type fakeFile struct {
	body     []byte
	metadata map[string]string
	created  time.Time
}

type fakeSession struct {
	name     string
	metadata map[string]string
	body     []byte
	done     bool
}

type fakeOperation struct {
	looks int
	end   func()
	err   string
}

const (
	project = "lab"
	bucket  = "vm-images"
	account = "robot@lab.iam.gserviceaccount.com"
	prefix  = "/compute/v1/projects/lab/"
)

func newFake(key *rsa.PublicKey) *fake {
	return &fake{key: key, now: time.Unix(1_790_000_000, 0).UTC(), images: map[string]*fakeImage{}, files: map[string]*fakeFile{}, sessions: map[string]*fakeSession{}, operations: map[string]*fakeOperation{}}
}

func (f *fake) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fake) id() string {
	f.lastID++
	f.now = f.now.Add(time.Second)
	return strconv.Itoa(f.lastID)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	path := r.URL.Path
	if f.throttle > 0 {
		f.throttle--
		no(w, http.StatusForbidden, "rateLimitExceeded")
		return
	}
	if path == "/token" {
		f.token(w, body)
		return
	}
	n, err := strconv.Atoi(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer token-"))
	if err != nil || n < 1 || n > f.tokens {
		no(w, http.StatusUnauthorized, "authError")
		return
	}
	switch {
	case strings.HasPrefix(path, "/upload/storage/v1/b/"+bucket+"/o"):
		f.upload(w, r, body)
	case strings.HasPrefix(path, "/storage/v1/b/"+bucket+"/o"):
		f.storage(w, r, strings.TrimPrefix(path, "/storage/v1/b/"+bucket+"/o"))
	case strings.HasPrefix(path, prefix+"global/images"):
		f.image(w, r, strings.Split(strings.TrimPrefix(path, prefix+"global/"), "/"), body)
	case strings.HasPrefix(path, prefix+"global/operations/"):
		id := path[strings.LastIndexByte(path, '/')+1:]
		if f.operations[id] == nil {
			no(w, http.StatusNotFound, "notFound")
			return
		}
		f.operation(w, id)
	case path == prefix+"aggregated/disks":
		disks := []map[string]any{}
		for _, link := range f.disks {
			if r.URL.Query().Get("filter") == `sourceImage="`+link+`"` {
				disks = append(disks, map[string]any{"name": "web-1"})
			}
		}
		reply(w, map[string]any{"items": map[string]any{"zones/a": map[string]any{"warning": map[string]any{}}, "zones/b": map[string]any{"disks": disks}}})
	case path == prefix+"global/instanceTemplates":
		reply(w, map[string]any{})
	default:
		no(w, http.StatusNotFound, "notFound")
	}
}

// token wants a claim that the account's key signed.
func (f *fake) token(w http.ResponseWriter, body []byte) {
	form, err := url.ParseQuery(string(body))
	parts := strings.Split(form.Get("assertion"), ".")
	if err != nil || len(parts) != 3 || form.Get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		no(w, http.StatusBadRequest, "invalid_request")
		return
	}
	signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	claim, _ := base64.RawURLEncoding.DecodeString(parts[1])
	var c struct{ Iss, Scope, Aud string }
	if rsa.VerifyPKCS1v15(f.key, crypto.SHA256, sum[:], signature) != nil || json.Unmarshal(claim, &c) != nil || c.Iss != account || c.Scope != scope || c.Aud != f.url+"/token" {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`)
		return
	}
	f.tokens++
	reply(w, map[string]any{"access_token": "token-" + strconv.Itoa(f.tokens), "token_type": "Bearer", "expires_in": 3599})
}

// upload is the resumable one.
func (f *fake) upload(w http.ResponseWriter, r *http.Request, body []byte) {
	q := r.URL.Query()
	if r.Method == http.MethodPost {
		var ask fileMeta
		if json.Unmarshal(body, &ask) != nil || ask.Name == "" || ask.Name != q.Get("name") || q.Get("uploadType") != "resumable" {
			no(w, http.StatusBadRequest, "invalid")
			return
		}
		id := f.id()
		f.sessions[id] = &fakeSession{name: ask.Name, metadata: ask.Metadata}
		w.Header().Set("Location", f.url+r.URL.Path+"?uploadType=resumable&upload_id="+id)
		return
	}
	s := f.sessions[q.Get("upload_id")]
	if s == nil {
		no(w, http.StatusNotFound, "notFound")
		return
	}
	if r.Method == http.MethodDelete {
		delete(f.sessions, q.Get("upload_id"))
		w.WriteHeader(499)
		return
	}
	f.chunk(w, s, r.Header.Get("Content-Range"), body)
}

func (f *fake) chunk(w http.ResponseWriter, s *fakeSession, of string, body []byte) {
	if s.done {
		if f.files[s.name] == nil {
			no(w, http.StatusGone, "gone")
			return
		}
		reply(w, f.files[s.name].doc(s.name))
		return
	}
	if of != "bytes */*" {
		var from, to int64
		var total string
		if _, err := fmt.Sscanf(of, "bytes %d-%d/%s", &from, &to, &total); err != nil || to-from+1 != int64(len(body)) || from != int64(len(s.body)) || total == "*" && len(body)%chunkUnit != 0 {
			no(w, http.StatusBadRequest, "invalid")
			return
		}
		f.sent += int64(len(body))
		if f.keep > 0 && len(body) > f.keep {
			body, total = body[:f.keep], "*"
		}
		s.body = append(s.body, body...)
		if total != "*" {
			if total != strconv.Itoa(len(s.body)) {
				no(w, http.StatusBadRequest, "invalid")
				return
			}
			f.id()
			f.files[s.name] = &fakeFile{body: s.body, metadata: s.metadata, created: f.now}
			s.done, s.body = true, nil
			reply(w, f.files[s.name].doc(s.name))
			return
		}
	}
	if len(s.body) > 0 {
		w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(s.body)-1))
	}
	w.WriteHeader(http.StatusPermanentRedirect)
}

func (f *fakeFile) doc(name string) map[string]any {
	sum := crc32.Checksum(f.body, crc32.MakeTable(crc32.Castagnoli))
	crc := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
	return map[string]any{"name": name, "size": strconv.Itoa(len(f.body)), "crc32c": crc, "timeCreated": f.created, "metadata": f.metadata}
}

func (f *fake) storage(w http.ResponseWriter, r *http.Request, name string) {
	name = strings.TrimPrefix(name, "/")
	if name == "" {
		var all []map[string]any
		for _, n := range slices.Sorted(maps.Keys(f.files)) {
			if strings.HasPrefix(n, r.URL.Query().Get("prefix")) {
				all = append(all, f.files[n].doc(n))
			}
		}
		page(w, r, all)
		return
	}
	switch {
	case f.files[name] == nil:
		no(w, http.StatusNotFound, "notFound")
	case r.Method == http.MethodDelete:
		for _, i := range f.images {
			if i.file == name && i.looks > 0 {
				// What is being made of it comes to nothing.
				i.looks = -1
			}
		}
		delete(f.files, name)
		w.WriteHeader(http.StatusNoContent)
	default:
		reply(w, f.files[name].doc(name))
	}
}

// page answers two at a time.
func page(w http.ResponseWriter, r *http.Request, all []map[string]any) {
	from, _ := strconv.Atoi(r.URL.Query().Get("pageToken"))
	to := min(from+2, len(all))
	out := map[string]any{"items": all[from:to]}
	if to < len(all) {
		out["nextPageToken"] = strconv.Itoa(to)
	}
	reply(w, out)
}

// look is what an image says now; each look brings its making nearer.
func (i *fakeImage) look() map[string]any {
	switch {
	case i.looks < 0:
		i.doc["status"] = "FAILED"
	case i.looks == 0:
		i.doc["status"] = "READY"
	default:
		i.looks--
	}
	return i.doc
}

func (i *fakeImage) str(keys ...string) string {
	var at any = i.doc
	for _, k := range keys {
		m, ok := at.(map[string]any)
		if !ok {
			return ""
		}
		at = m[k]
	}
	s, _ := at.(string)
	return s
}

func (f *fake) image(w http.ResponseWriter, r *http.Request, steps []string, body []byte) {
	var ask map[string]any
	if len(body) > 0 && json.Unmarshal(body, &ask) != nil {
		no(w, http.StatusBadRequest, "parseError")
		return
	}
	if len(steps) == 1 {
		if r.Method == http.MethodPost {
			f.insert(w, ask)
			return
		}
		f.list(w, r)
		return
	}
	if steps[1] == "family" {
		var newest *fakeImage
		for _, i := range f.images {
			state := i.str("deprecated", "state")
			if i.str("family") == steps[2] && i.str("status") == "READY" && (state == "" || state == "ACTIVE") && (newest == nil || i.str("creationTimestamp") > newest.str("creationTimestamp")) {
				newest = i
			}
		}
		if newest == nil {
			no(w, http.StatusNotFound, "notFound")
			return
		}
		reply(w, newest.doc)
		return
	}
	i := f.images[steps[1]]
	switch {
	case i == nil:
		no(w, http.StatusNotFound, "notFound")
	case r.Method == http.MethodGet:
		reply(w, i.look())
	case i.looks > 0:
		no(w, http.StatusBadRequest, "resourceNotReady")
	case r.Method == http.MethodDelete:
		f.begin(w, func() { delete(f.images, steps[1]) }, "")
	case r.Method == http.MethodPatch && len(ask) == 1 && ask["family"] != nil:
		f.begin(w, func() { i.doc["family"] = ask["family"] }, "")
	case r.Method == http.MethodPost && len(steps) == 3 && steps[2] == "deprecate" && (ask["state"] == "ACTIVE" || ask["state"] == "DEPRECATED"):
		f.begin(w, func() { i.doc["deprecated"] = ask }, "")
	default:
		no(w, http.StatusBadRequest, "invalid")
	}
}

func (f *fake) list(w http.ResponseWriter, r *http.Request) {
	var ours, family string
	if _, err := fmt.Sscanf(r.URL.Query().Get("filter"), "(labels.imagectl=%1s) (labels.imagectl-name=%s", &ours, &family); err != nil {
		if r.URL.Query().Get("filter") != "labels.imagectl=1" {
			no(w, http.StatusBadRequest, "invalid")
			return
		}
	}
	family = strings.TrimSuffix(family, ")")
	var all []map[string]any
	for _, name := range slices.Sorted(maps.Keys(f.images)) {
		i := f.images[name]
		if i.str("labels", "imagectl") == "1" && (family == "" || i.str("labels", "imagectl-name") == family) {
			all = append(all, i.look())
		}
	}
	page(w, r, all)
}

func (f *fake) insert(w http.ResponseWriter, ask map[string]any) {
	i := &fakeImage{doc: ask, looks: 2}
	name := i.str("name")
	if f.images[name] != nil {
		no(w, http.StatusConflict, "alreadyExists")
		return
	}
	i.file = strings.TrimPrefix(i.str("rawDisk", "source"), "https://storage.googleapis.com/"+bucket+"/")
	if !familyName.MatchString(name) || f.files[i.file] == nil || i.str("rawDisk", "containerType") != "TAR" || i.str("architecture") != "X86_64" {
		no(w, http.StatusBadRequest, "invalid")
		return
	}
	if f.full {
		no(w, http.StatusForbidden, "quotaExceeded")
		return
	}
	size, err := diskIn(f.files[i.file].body)
	if err != "" {
		f.begin(w, func() {}, err)
		return
	}
	f.id()
	ask["status"], ask["creationTimestamp"], ask["diskSizeGb"] = "PENDING", f.now.Format(time.RFC3339), strconv.FormatInt(size, 10)
	f.images[name] = i
	f.begin(w, func() { i.looks = min(i.looks, 0) }, "")
}

// testUnit is what disks are counted in here.
const testUnit = 1 << 20

// diskIn reads a tar.gz as Compute Engine does.
func diskIn(b []byte) (size int64, bad string) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return 0, "INVALID_IMAGE_GZIP"
	}
	t := tar.NewReader(z)
	h, err := t.Next()
	if err != nil || h.Name != "disk.raw" || h.Size%testUnit != 0 {
		return 0, "INVALID_IMAGE_TAR"
	}
	if n, err := io.Copy(io.Discard, t); err != nil || n != h.Size {
		return 0, "INVALID_IMAGE_SIZE"
	}
	return h.Size / testUnit, ""
}

// begin answers with an operation that is done when it is looked at the second time.
func (f *fake) begin(w http.ResponseWriter, end func(), err string) {
	id := f.id()
	f.operations["op-"+id] = &fakeOperation{looks: 1, end: end, err: err}
	reply(w, map[string]any{"name": "op-" + id, "status": "RUNNING"})
}

func (f *fake) operation(w http.ResponseWriter, id string) {
	o := f.operations[id]
	out := map[string]any{"name": id, "status": "RUNNING"}
	if o.looks--; o.looks < 0 {
		f.finish(o)
		out["status"] = "DONE"
		if o.err != "" {
			out["error"] = map[string]any{"errors": []map[string]any{{"code": o.err, "message": "Google says " + o.err}}}
		}
	}
	reply(w, out)
}

func (f *fake) finish(o *fakeOperation) {
	if o.end != nil {
		o.end()
		o.end = nil
	}
}

func no(w http.ResponseWriter, status int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"code":%d,"message":"Google says %s","errors":[{"message":"Google says %s","domain":"global","reason":%q}]}}`, status, reason, reason, reason)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}
