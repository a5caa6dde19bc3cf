package azure

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fake is a subscription with a gallery, as far as this package speaks to it, from
// the REST references of Microsoft.Compute and of page blobs.
type fake struct {
	mu  sync.Mutex
	url string
	// now goes on by a second with each thing that is made.
	now        time.Time
	disks      map[string]*fakeDisk
	families   map[string]map[string]any
	versions   map[string]*fakeVersion // by FAMILY/NUMBER
	machines   []map[string]any
	operations map[string]*fakeAccess // what beginGetAccess began, by path
	writes     []string               // ranges, as they came
	// full: there is a quota of disks. strict: an open disk is not opened again.
	full, strict bool
	// throttle answers that many requests with "later"; signIns counts tokens.
	throttle, signIns int
}

type fakeDisk struct {
	state   string
	stage   string
	tags    map[string]any
	size    int64
	pages   map[int64][]byte // by page
	sas     string
	created time.Time
}

type fakeAccess struct {
	disk string
	// looks until its address is told.
	looks int
}

type fakeVersion struct {
	doc  map[string]any
	disk string
	// looks until what was asked for is done.
	looks int
}

const (
	base   = "/subscriptions/sub/resourceGroups/images/providers/Microsoft.Compute/"
	secret = "hunter2"
)

func newFake() *fake {
	return &fake{now: time.Unix(1_790_000_000, 0).UTC(), disks: map[string]*fakeDisk{}, families: map[string]map[string]any{}, versions: map[string]*fakeVersion{}, operations: map[string]*fakeAccess{}}
}

func (f *fake) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	path, q := r.URL.Path, r.URL.Query()
	if f.throttle > 0 {
		f.throttle--
		w.Header().Set("Retry-After", "7")
		no(w, http.StatusTooManyRequests, "TooManyRequests")
		return
	}
	switch {
	case path == "/tenant/oauth2/v2.0/token":
		f.token(w, body)
		return
	case strings.HasPrefix(path, "/blob/"):
		f.blob(w, r, strings.TrimPrefix(path, "/blob/"), body)
		return
	case !f.gave(r.Header.Get("Authorization")):
		no(w, http.StatusUnauthorized, "InvalidAuthenticationToken")
		return
	case q.Get("api-version") == "":
		no(w, http.StatusBadRequest, "MissingApiVersionParameter")
		return
	}
	if o, ok := f.operations[path]; ok {
		if d := f.disks[o.disk]; o.looks > 0 || d == nil {
			o.looks--
			w.WriteHeader(http.StatusAccepted)
		} else {
			reply(w, map[string]any{"accessSAS": d.sas})
		}
		return
	}
	if rest, ok := strings.CutPrefix(path, "/subscriptions/sub/providers/Microsoft.Compute/"); ok {
		f.users(w, rest)
		return
	}
	rest, ok := strings.CutPrefix(path, base)
	if !ok {
		no(w, http.StatusNotFound, "ResourceGroupNotFound")
		return
	}
	steps := strings.Split(rest, "/")
	switch {
	case steps[0] == "disks" && len(steps) == 1:
		var all []map[string]any
		for _, name := range slices.Sorted(maps.Keys(f.disks)) {
			all = append(all, f.disks[name].doc(name))
		}
		f.list(w, r, all)
	case steps[0] == "disks":
		f.disk(w, r, steps[1], steps[2:], body)
	case len(steps) < 2 || steps[0] != "galleries" || steps[1] != "vms":
		no(w, http.StatusNotFound, "ResourceNotFound")
	case len(steps) == 2:
		reply(w, map[string]any{"name": "vms"})
	case len(steps) == 3:
		var all []map[string]any
		for _, name := range slices.Sorted(maps.Keys(f.families)) {
			all = append(all, map[string]any{"name": name})
		}
		f.list(w, r, all)
	case len(steps) == 4:
		f.family(w, r, steps[3], body)
	case f.families[steps[3]] == nil:
		no(w, http.StatusNotFound, "ResourceNotFound")
	case len(steps) == 5:
		var all []map[string]any
		for _, id := range slices.Sorted(maps.Keys(f.versions)) {
			if strings.HasPrefix(id, steps[3]+"/") {
				all = append(all, f.versions[id].look(f, id))
			}
		}
		f.list(w, r, all)
	case len(steps) == 6:
		f.version(w, r, steps[3]+"/"+steps[5], body)
	default:
		no(w, http.StatusNotFound, "ResourceNotFound")
	}
}

// gave tells whether a token is one of ours.
func (f *fake) gave(authorization string) bool {
	n, err := strconv.Atoi(strings.TrimPrefix(authorization, "Bearer token-"))
	return err == nil && n > 0 && n <= f.signIns
}

// list answers two at a time.
func (f *fake) list(w http.ResponseWriter, r *http.Request, all []map[string]any) {
	from, _ := strconv.Atoi(r.URL.Query().Get("skiptoken"))
	to := min(from+2, len(all))
	out := map[string]any{"value": append([]map[string]any{}, all[from:to]...)}
	if to < len(all) {
		out["nextLink"] = fmt.Sprintf("%s%s?api-version=%s&skiptoken=%d", f.url, r.URL.Path, r.URL.Query().Get("api-version"), to)
	}
	reply(w, out)
}

func (f *fake) token(w http.ResponseWriter, body []byte) {
	b := string(body)
	if !strings.Contains(b, "client_id=app&") || !strings.Contains(b, "client_secret="+secret) || !strings.Contains(b, "grant_type=client_credentials") || !strings.Contains(b, "scope=http") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided."}`)
		return
	}
	f.signIns++
	reply(w, map[string]any{"access_token": "token-" + strconv.Itoa(f.signIns), "token_type": "Bearer", "expires_in": 3599})
}

func (f *fake) users(w http.ResponseWriter, kind string) {
	all := []map[string]any{}
	if kind == "virtualMachineScaleSets" {
		all = append(all, f.machines...)
	}
	reply(w, map[string]any{"value": all})
}

func (d *fakeDisk) doc(name string) map[string]any {
	return map[string]any{"id": base + "disks/" + name, "name": name, "tags": d.tags, "properties": map[string]any{"diskState": d.state, "provisioningState": d.stage, "timeCreated": d.created}}
}

func (f *fake) disk(w http.ResponseWriter, r *http.Request, name string, verb []string, body []byte) {
	d := f.disks[name]
	if d == nil && r.Method != http.MethodPut {
		no(w, http.StatusNotFound, "ResourceNotFound")
		return
	}
	switch {
	case r.Method == http.MethodPut:
		var ask struct {
			Location   string
			Tags       map[string]any
			Properties struct {
				OSType, HyperVGeneration string
				CreationData             struct {
					CreateOption    string
					UploadSizeBytes int64
				}
			}
		}
		c := &ask.Properties.CreationData
		if json.Unmarshal(body, &ask) != nil || ask.Location != "westeurope" || c.CreateOption != "Upload" || (c.UploadSizeBytes-512)%(1<<20) != 0 || ask.Properties.HyperVGeneration != "V2" || d != nil {
			no(w, http.StatusBadRequest, "InvalidParameter")
			return
		}
		if f.full {
			no(w, http.StatusConflict, "QuotaExceeded")
			return
		}
		f.now = f.now.Add(time.Second)
		f.disks[name] = &fakeDisk{state: "", stage: "Updating", tags: ask.Tags, size: c.UploadSizeBytes, pages: map[int64][]byte{}, created: f.now}
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodGet:
		reply(w, d.doc(name))
		if d.stage == "Updating" {
			d.stage, d.state = "Succeeded", "ReadyToUpload"
		}
	case r.Method == http.MethodDelete:
		if d.state == "ActiveUpload" {
			no(w, http.StatusConflict, "OperationNotAllowed")
			return
		}
		for _, v := range f.versions {
			if v.disk == name && v.looks > 0 {
				// What is being copied from it comes to nothing.
				v.looks = -1
			}
		}
		delete(f.disks, name)
		w.WriteHeader(http.StatusAccepted)
	case len(verb) == 1 && verb[0] == "beginGetAccess":
		if d.state == "Unattached" || d.stage != "Succeeded" || f.strict && d.state == "ActiveUpload" {
			no(w, http.StatusConflict, "OperationNotAllowed")
			return
		}
		d.state, d.sas = "ActiveUpload", f.url+"/blob/"+name+"?sv=2021&sig=signature"
		at := fmt.Sprintf("/subscriptions/sub/operations/%d", len(f.operations))
		f.operations[at] = &fakeAccess{disk: name, looks: 1}
		w.Header().Set("Location", f.url+at+"?api-version=2024-03-02")
		w.WriteHeader(http.StatusAccepted)
	case len(verb) == 1 && verb[0] == "endGetAccess":
		if d.state == "ActiveUpload" {
			d.state, d.sas = "Unattached", ""
		}
		w.WriteHeader(http.StatusAccepted)
	}
}

// blob is the page blob of a disk that is open.
func (f *fake) blob(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	d, q := f.disks[name], r.URL.Query()
	if d == nil || d.sas == "" || q.Get("sig") != "signature" || r.Header.Get("X-Ms-Version") == "" {
		w.Header().Set("X-Ms-Error-Code", "AuthenticationFailed")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, "\xef\xbb\xbf<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>AuthenticationFailed</Code><Message>Server failed to authenticate the request.\nRequestId:1</Message></Error>")
		return
	}
	switch {
	case r.Method == http.MethodGet && q.Get("comp") == "pagelist":
		fmt.Fprint(w, "<?xml version=\"1.0\" encoding=\"utf-8\"?><PageList>")
		all := slices.Sorted(maps.Keys(d.pages))
		for i, from := 0, 0; i < len(all); i++ {
			// A run ends where the next page is not there, and after 1 MiB: Azure tells runs
			// that touch as several.
			if i+1 == len(all) || all[i+1] != all[i]+1 || i-from+1 == 1<<20/pageSize {
				fmt.Fprintf(w, "<PageRange><Start>%d</Start><End>%d</End></PageRange>", all[from]*pageSize, (all[i]+1)*pageSize-1)
				from = i + 1
			}
		}
		fmt.Fprint(w, "</PageList>")
	case r.Method == http.MethodPut && q.Get("comp") == "page":
		var from, to int64
		sum := md5.Sum(body)
		_, err := fmt.Sscanf(r.Header.Get("X-Ms-Range"), "bytes=%d-%d", &from, &to)
		if err != nil || from%pageSize != 0 || (to+1)%pageSize != 0 || to >= d.size || to-from+1 != int64(len(body)) || len(body) > 4<<20 ||
			r.Header.Get("X-Ms-Page-Write") != "update" || r.Header.Get("Content-Md5") != base64.StdEncoding.EncodeToString(sum[:]) {
			no(w, http.StatusBadRequest, "InvalidPageRange")
			return
		}
		f.writes = append(f.writes, fmt.Sprintf("%d+%d", from, len(body)))
		for i := int64(0); i < int64(len(body)); i += pageSize {
			d.pages[(from+i)/pageSize] = body[i : i+pageSize]
		}
		w.WriteHeader(http.StatusCreated)
	default:
		no(w, http.StatusMethodNotAllowed, "UnsupportedHttpVerb")
	}
}

func (f *fake) family(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	switch {
	case r.Method == http.MethodPut:
		var doc map[string]any
		if json.Unmarshal(body, &doc) != nil {
			no(w, http.StatusBadRequest, "InvalidParameter")
			return
		}
		doc["properties"].(map[string]any)["provisioningState"] = "Succeeded"
		f.families[name] = doc
		w.WriteHeader(http.StatusCreated)
		reply(w, doc)
	case f.families[name] == nil:
		no(w, http.StatusNotFound, "ResourceNotFound")
	default:
		reply(w, f.families[name])
	}
}

// look is what a version says now; each look brings what was asked for nearer.
func (v *fakeVersion) look(f *fake, id string) map[string]any {
	p := v.doc["properties"].(map[string]any)
	switch {
	case v.looks < 0:
		p["provisioningState"] = "Failed"
	case v.looks == 0:
		p["provisioningState"] = "Succeeded"
	default:
		v.looks--
	}
	family, number, _ := strings.Cut(id, "/")
	v.doc["id"], v.doc["name"] = base+"galleries/vms/images/"+family+"/versions/"+number, number
	return v.doc
}

func (f *fake) version(w http.ResponseWriter, r *http.Request, id string, body []byte) {
	v := f.versions[id]
	switch {
	case r.Method == http.MethodPut:
		f.putVersion(w, id, body)
	case v == nil:
		no(w, http.StatusNotFound, "ResourceNotFound")
	case r.Method == http.MethodGet:
		reply(w, v.look(f, id))
	case r.Method == http.MethodDelete:
		if v.looks > 0 {
			no(w, http.StatusConflict, "OperationNotAllowed")
			return
		}
		delete(f.versions, id)
		w.WriteHeader(http.StatusAccepted)
	}
}

func (f *fake) putVersion(w http.ResponseWriter, id string, body []byte) {
	var doc map[string]any
	var ask struct {
		ID, Name   *string
		Location   string
		Properties struct {
			ProvisioningState *string
			PublishingProfile struct {
				TargetRegions []struct{ Name string }
				PublishedDate *string
			}
			StorageProfile struct {
				OSDiskImage struct{ Source struct{ ID string } }
			}
		}
	}
	if json.Unmarshal(body, &doc) != nil || json.Unmarshal(body, &ask) != nil || ask.Location != "westeurope" || len(ask.Properties.PublishingProfile.TargetRegions) != 1 ||
		ask.ID != nil || ask.Name != nil || ask.Properties.ProvisioningState != nil || ask.Properties.PublishingProfile.PublishedDate != nil {
		no(w, http.StatusBadRequest, "InvalidParameter")
		return
	}
	source := ask.Properties.StorageProfile.OSDiskImage.Source.ID
	v := f.versions[id]
	props := doc["properties"].(map[string]any)
	if v != nil {
		was := v.doc["properties"].(map[string]any)["storageProfile"]
		if a, _ := json.Marshal(was); v.looks > 0 || !strings.Contains(string(a), source) {
			no(w, http.StatusConflict, "PropertyChangeNotAllowed")
			return
		}
		props["publishingProfile"].(map[string]any)["publishedDate"] = v.doc["properties"].(map[string]any)["publishingProfile"].(map[string]any)["publishedDate"]
		props["provisioningState"] = "Updating"
		v.doc, v.looks = doc, 1
		reply(w, doc)
		return
	}
	name := source[strings.LastIndexByte(source, '/')+1:]
	if d := f.disks[name]; d == nil || d.state != "Unattached" || source != base+"disks/"+name {
		no(w, http.StatusBadRequest, "InvalidParameter")
		return
	}
	f.now = f.now.Add(time.Second)
	props["publishingProfile"].(map[string]any)["publishedDate"] = f.now.Format(time.RFC3339)
	props["provisioningState"] = "Creating"
	f.versions[id] = &fakeVersion{doc: doc, disk: name, looks: 2}
	w.WriteHeader(http.StatusCreated)
	reply(w, doc)
}

func no(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"code":%q,"message":"Azure says %s"}}`, code, code)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}
