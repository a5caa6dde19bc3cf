package bmc

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is a Redfish service with one machine behind it. It answers as DSP0266 and
// the schemas say, refuses what they let it refuse, and has the quirks that are
// set. Time does not pass in it: what takes a while takes a number of looks.
type fake struct {
	mu sync.Mutex

	// Who it is.
	vendor, manufacturer, model, manager string
	user, password                       string

	// What it is like.
	noSessions        bool // no session service, only basic authentication
	wantTag           bool // 428 without If-Match
	badTag            bool // 412 with the tag in the form that it was read in
	fullOverride      bool // 400 unless enabled, target and mode are sent
	unchangedIsBad    bool // 400 for an Enabled that is set already
	modeIsReadOnly    bool // 400 when a mode is sent
	deaf              bool // takes overrides and forgets them
	forgetsWhenOff    bool // forgets an override with the power
	settings          bool // the system itself takes no change, its settings do
	post              int  // refuses overrides so many times
	conflict          int  // refuses On so many times after an Off
	slow              int  // looks until a new power state shows
	unavailable       int  // answers 503 so many times
	busyPatches       int  // answers 503 to so many changes
	ignoresPower      bool // takes orders and does nothing
	mediaAtManager    bool
	mediaAtBoth       bool // the system has slots too
	systemSlotsBroken bool // which take nothing
	slots             []string
	onlySlot          string // the others answer 400
	plainURL          bool
	staleLooks        int // looks for which ejected media still show, and insertions fail
	onlyImage         bool
	foreignLink       string // what the system collection points to
	targets           []string
	systems           []string
	resets            []string
	dropsConnection   map[string]int // "METHOD path": so many replies are lost after the work is done

	// What it is doing.
	power    string
	next     string
	looks    int
	enabled  string
	target   string
	mode     string
	wasOff   bool
	etag     int
	media    map[string]string
	stale    int
	sessions map[string]bool
	booted   []string
	log      []string
	digest   string // of its certificate
}

func newFake() *fake {
	return &fake{
		user: "imagectl", password: "s3cret", power: "Off", enabled: "Disabled", target: "None", mode: "UEFI",
		slots: []string{"1"}, media: map[string]string{}, sessions: map[string]bool{}, systems: []string{"1"},
		targets: []string{"None", "Pxe", "Cd", "Hdd", "UefiHttp"}, resets: []string{"On", "ForceOff", "GracefulShutdown", "ForceRestart"},
		dropsConnection: map[string]int{},
	}
}

// start serves it; the target trusts its certificate by its digest.
func (f *fake) start(t *testing.T) Target {
	t.Helper()
	s := httptest.NewTLSServer(f)
	t.Cleanup(s.Close)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	pin := sha256.Sum256(s.Certificate().Raw)
	f.digest = hex.EncodeToString(pin[:])
	config, err := Trust{Pin: pin}.Config()
	if err != nil {
		t.Fatal(err)
	}
	return Target{Kind: Redfish, Address: strings.TrimPrefix(s.URL, "https://"), Username: f.user, Password: Password(f.password), TLS: config}
}

// noPause lets no time pass.
func noPause(ctx context.Context, _ time.Duration) error { return ctx.Err() }

type object = map[string]any

func link(path string) object { return object{"@odata.id": path} }

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var body object
	if b, _ := io.ReadAll(r.Body); len(b) > 0 {
		if json.Unmarshal(b, &body) != nil {
			f.refuse(w, 400, "MalformedJSON", "The request body is not JSON")
			return
		}
	}
	call := r.Method + " " + r.URL.Path
	f.log = append(f.log, call)
	if f.unavailable > 0 {
		f.unavailable--
		f.refuse(w, 503, "ServiceTemporarilyUnavailable", "The service is temporarily unavailable")
		return
	}
	if !f.allowed(w, r) {
		return
	}
	if f.dropsConnection[call] > 0 {
		f.dropsConnection[call]--
		f.answer(httptest.NewRecorder(), r, body)
		panic(http.ErrAbortHandler)
	}
	f.answer(w, r, body)
}

func (f *fake) allowed(w http.ResponseWriter, r *http.Request) bool {
	path := strings.TrimSuffix(r.URL.Path, "/")
	if path == "/redfish/v1" || r.Method == "POST" && path == "/redfish/v1/SessionService/Sessions" {
		return true
	}
	user, password, basic := r.BasicAuth()
	if f.sessions[r.Header.Get("X-Auth-Token")] || basic && user == f.user && password == f.password {
		return true
	}
	f.refuse(w, 401, "NoValidSession", "There is no valid session established with the implementation")
	return false
}

func (f *fake) refuse(w http.ResponseWriter, status int, id, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(object{"error": object{
		"code": "Base.1.18.GeneralError", "message": "A general error has occurred. See ExtendedInfo for more information.",
		"@Message.ExtendedInfo": []object{{"MessageId": "Base.1.18." + id, "Message": text}},
	}})
}

func (f *fake) send(w http.ResponseWriter, status int, o object) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(o)
}

func (f *fake) answer(w http.ResponseWriter, r *http.Request, body object) {
	const v1 = "/redfish/v1"
	path := strings.TrimSuffix(r.URL.Path, "/")
	id := f.systems[0]
	system := v1 + "/Systems/" + id
	switch call := r.Method + " " + path; {
	case call == "GET "+v1:
		root := object{"@odata.id": v1, "Id": "RootService", "Name": "Root", "RedfishVersion": "1.18.0", "Vendor": f.vendor,
			"Systems": link(v1 + "/Systems"), "Managers": link(v1 + "/Managers")}
		if !f.noSessions {
			root["SessionService"], root["Links"] = link(v1+"/SessionService"), object{"Sessions": link(v1 + "/SessionService/Sessions")}
		}
		f.send(w, 200, root)
	case call == "POST "+v1+"/SessionService/Sessions" && !f.noSessions:
		if body["UserName"] != f.user || body["Password"] != f.password {
			f.refuse(w, 401, "ResourceAtUriUnauthorized", "The service denied access")
			return
		}
		token := fmt.Sprintf("token-%d", len(f.log))
		f.sessions[token] = true
		w.Header().Set("X-Auth-Token", token)
		w.Header().Set("Location", v1+"/SessionService/Sessions/"+token)
		f.send(w, 201, object{"Id": token})
	case r.Method == "DELETE" && strings.HasPrefix(path, v1+"/SessionService/Sessions/"):
		delete(f.sessions, strings.TrimPrefix(path, v1+"/SessionService/Sessions/"))
		w.WriteHeader(204)
	case call == "GET "+v1+"/Systems":
		var members []object
		for _, s := range f.systems {
			members = append(members, link(f.foreignLink+v1+"/Systems/"+s))
		}
		f.send(w, 200, object{"Members": members, "Members@odata.count": len(members)})
	case r.Method == "GET" && strings.HasPrefix(path, v1+"/Systems/") && slices.Contains(f.systems, strings.TrimPrefix(path, v1+"/Systems/")):
		f.system(w, strings.TrimPrefix(path, v1+"/Systems/"))
	case call == "GET "+system+"/Settings" && f.settings:
		f.send(w, 200, object{"@odata.id": system + "/Settings", "Id": "Settings"})
	case call == "PATCH "+system && f.settings:
		f.refuse(w, 405, "OperationNotAllowed", "The HTTP method is not allowed on this resource")
	case call == "PATCH "+system, call == "PATCH "+system+"/Settings" && f.settings:
		f.patch(w, r, body)
	case call == "POST "+system+"/Actions/ComputerSystem.Reset":
		f.reset(w, body)
	case call == "GET "+v1+"/Managers/BMC":
		m := object{"@odata.id": path, "Id": "BMC", "Name": "Manager", "Model": f.manager, "FirmwareVersion": "7.1"}
		if f.mediaAtManager {
			m["VirtualMedia"] = link(v1 + "/Managers/BMC/VirtualMedia")
		}
		f.send(w, 200, m)
	case strings.HasPrefix(path, system+"/VirtualMedia") && (!f.mediaAtManager || f.mediaAtBoth):
		f.virtualMedia(w, r, body, system+"/VirtualMedia")
	case strings.HasPrefix(path, v1+"/Managers/BMC/VirtualMedia") && f.mediaAtManager:
		f.virtualMedia(w, r, body, v1+"/Managers/BMC/VirtualMedia")
	default:
		f.refuse(w, 404, "ResourceMissingAtURI", "The resource at the URI "+path+" was not found")
	}
}

// tag is the system's entity tag.
func (f *fake) tag() string { return fmt.Sprintf(`W/"%d"`, f.etag) }

func (f *fake) system(w http.ResponseWriter, id string) {
	if f.next != "" {
		if f.looks--; f.looks <= 0 {
			f.arrive()
		}
	}
	path := "/redfish/v1/Systems/" + id
	s := object{
		"@odata.id": path, "@odata.type": "#ComputerSystem.v1_22_0.ComputerSystem", "@odata.etag": f.tag(), "Id": id, "Name": "System",
		"Manufacturer": f.manufacturer, "Model": f.model, "PowerState": f.power,
		"Boot": object{"BootSourceOverrideEnabled": f.enabled, "BootSourceOverrideTarget": f.target, "BootSourceOverrideMode": f.mode,
			"BootSourceOverrideTarget@Redfish.AllowableValues": f.targets, "BootOrder": []string{"Boot0001", "Boot0002"}},
		"Actions": object{"#ComputerSystem.Reset": object{"target": path + "/Actions/ComputerSystem.Reset", "ResetType@Redfish.AllowableValues": f.resets}},
		"Links":   object{"ManagedBy": []object{link("/redfish/v1/Managers/BMC")}},
	}
	if !f.mediaAtManager || f.mediaAtBoth {
		s["VirtualMedia"] = link(path + "/VirtualMedia")
	}
	if f.settings {
		s["@Redfish.Settings"] = object{"SettingsObject": link(path + "/Settings")}
	}
	w.Header().Set("ETag", f.tag())
	f.send(w, 200, s)
}

// arrive brings the machine into the state that it was told to be in.
func (f *fake) arrive() {
	f.power, f.next = f.next, ""
	f.etag++
	switch f.power {
	case "On":
		from := "own order"
		if f.enabled == "Once" {
			from = f.target
			f.enabled, f.target = "Disabled", "None"
		}
		f.booted = append(f.booted, from)
	case "Off":
		f.wasOff = true
		if f.forgetsWhenOff {
			f.enabled, f.target = "Disabled", "None"
			f.forgetsWhenOff = false
		}
	}
}

func (f *fake) reset(w http.ResponseWriter, body object) {
	kind, _ := body["ResetType"].(string)
	switch {
	case !slices.Contains(f.resets, kind):
		f.refuse(w, 400, "ActionParameterNotSupported", "The parameter ResetType has a value that is not supported")
		return
	case kind == "On" && f.wasOff && f.conflict > 0:
		f.conflict--
		f.refuse(w, 409, "ActionParameterValueConflict", "The parameter ResetType with the requested value of On does not meet the constraints")
		return
	case kind == "On" && f.power == "On", kind != "On" && f.power == "Off":
		f.refuse(w, 409, "NoOperation", "The machine is "+f.power+" already")
		return
	}
	f.log = append(f.log, "reset "+kind)
	if !f.ignoresPower {
		f.next = map[string]string{"On": "On", "ForceOff": "Off", "GracefulShutdown": "Off", "ForceRestart": "On"}[kind]
		f.looks = f.slow
		if f.looks <= 0 {
			f.arrive()
		}
	}
	w.WriteHeader(204)
}

func (f *fake) patch(w http.ResponseWriter, r *http.Request, body object) {
	boot, _ := body["Boot"].(map[string]any)
	sent := r.Header.Get("If-Match")
	if f.settings {
		sent = ""
	}
	switch {
	case len(body) != 1 || len(boot) == 0:
		f.refuse(w, 400, "PropertyUnknown", "The request changes something else than Boot")
		return
	case f.wantTag && sent == "":
		f.refuse(w, 428, "PreconditionRequired", "A precondition header is required to change this resource")
		return
	case sent != "" && (!f.badTag && strings.TrimPrefix(sent, "W/") != strings.TrimPrefix(f.tag(), "W/") || f.badTag && sent != strings.TrimPrefix(f.tag(), "W/")):
		f.refuse(w, 412, "PreconditionFailed", "The ETag supplied did not match the ETag required to change this resource")
		return
	case f.busyPatches > 0:
		f.busyPatches--
		f.refuse(w, 503, "ServiceTemporarilyUnavailable", "The service is temporarily unavailable")
		return
	case f.post > 0:
		f.post--
		f.refuse(w, 400, "UnableToModifyDuringSystemPOST", "The value cannot be changed while the system is in POST")
		return
	}
	now := map[string]string{"BootSourceOverrideEnabled": f.enabled, "BootSourceOverrideTarget": f.target, "BootSourceOverrideMode": f.mode}
	for k, v := range boot {
		if _, known := now[k]; !known {
			f.refuse(w, 400, "PropertyNotWritable", "The property "+k+" is read only")
			return
		}
		if f.unchangedIsBad && k == "BootSourceOverrideEnabled" && now[k] == v {
			f.refuse(w, 400, "PropertyValueConflict", "The property "+k+" has that value already")
			return
		}
	}
	if _, has := boot["BootSourceOverrideMode"]; has && f.modeIsReadOnly {
		f.refuse(w, 400, "PropertyNotWritable", "The property BootSourceOverrideMode is read only")
		return
	}
	if boot["BootSourceOverrideTarget"] == nil {
		// As sushy-tools says.
		f.refuse(w, 400, "PropertyMissing", "Missing the BootSourceOverrideTarget element")
		return
	}
	if f.fullOverride && len(boot) != 3 {
		f.refuse(w, 400, "PropertyMissing", "The property BootSourceOverrideMode is a required property and must be included in the request")
		return
	}
	f.log = append(f.log, "override "+strings.Join(slices.Sorted(maps.Keys(boot)), ","))
	if !f.deaf {
		for k, to := range map[string]*string{"BootSourceOverrideEnabled": &f.enabled, "BootSourceOverrideTarget": &f.target, "BootSourceOverrideMode": &f.mode} {
			if v, ok := boot[k].(string); ok {
				*to = v
			}
		}
	}
	f.etag++
	w.WriteHeader(204)
}

func (f *fake) virtualMedia(w http.ResponseWriter, r *http.Request, body object, base string) {
	rest := strings.Trim(strings.TrimPrefix(strings.TrimSuffix(r.URL.Path, "/"), base), "/")
	if rest == "" {
		var members []object
		for _, s := range f.slots {
			members = append(members, link(base+"/"+s))
		}
		f.send(w, 200, object{"Members": members, "Members@odata.count": len(members)})
		return
	}
	slot, action, _ := strings.Cut(rest, "/Actions/VirtualMedia.")
	switch {
	case !slices.Contains(f.slots, slot):
		f.refuse(w, 404, "ResourceMissingAtURI", "There is no such slot")
	case r.Method == "GET":
		m := object{"@odata.id": base + "/" + slot, "Id": slot, "Name": "Virtual CD", "MediaTypes": []string{"CD", "DVD"}, "Inserted": f.media[slot] != "", "Image": f.media[slot],
			"Actions": object{"#VirtualMedia.InsertMedia": object{"target": base + "/" + slot + "/Actions/VirtualMedia.InsertMedia"},
				"#VirtualMedia.EjectMedia": object{"target": base + "/" + slot + "/Actions/VirtualMedia.EjectMedia"}}}
		f.send(w, 200, m)
	case r.Method == "POST" && action == "EjectMedia":
		if f.media[slot] == "" {
			f.refuse(w, 400, "NoMedia", "There are no media")
			return
		}
		f.log = append(f.log, "eject")
		if f.stale = f.staleLooks; f.stale == 0 {
			delete(f.media, slot)
		}
		w.WriteHeader(204)
	case r.Method == "POST" && action == "InsertMedia":
		image, _ := body["Image"].(string)
		switch {
		case f.systemSlotsBroken && strings.Contains(base, "/Systems/"):
			f.refuse(w, 400, "ActionNotSupported", "The action is not supported by the resource")
		case f.onlySlot != "" && slot != f.onlySlot:
			f.refuse(w, 400, "SlotNotUsable", "This slot cannot be used")
		case f.onlyImage && len(body) != 1:
			f.refuse(w, 400, "PropertyUnknown", "The property Inserted is not in the list of valid properties")
		case f.plainURL && strings.ContainsAny(image, "?"):
			f.refuse(w, 500, "InternalError", "The service failed")
		case f.stale > 0:
			f.stale--
			f.refuse(w, 500, "InternalError", "An ejection is under way")
		case f.media[slot] != "" && f.staleLooks == 0:
			f.refuse(w, 400, "MediaInserted", "Media are inserted already")
		default:
			f.log = append(f.log, "insert "+image)
			f.media[slot] = image
			w.WriteHeader(204)
		}
	default:
		f.refuse(w, 405, "OperationNotAllowed", "The HTTP method is not allowed on this resource")
	}
}

// starts are what the machine booted from.
func (f *fake) starts() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.booted)
}

// state is the machine's power.
func (f *fake) state() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.power
}

// open are the sessions that are not ended.
func (f *fake) open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sessions)
}

// happened are the log's lines with a prefix.
func (f *fake) happened(prefix string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, l := range f.log {
		if strings.HasPrefix(l, prefix) {
			out = append(out, l)
		}
	}
	return out
}
