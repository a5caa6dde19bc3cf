// Package httpboot is the HTTP side of netbooting: iPXE's script, the installer's
// first Ignition config, and the files that both name. Everything it serves is
// public; it holds no secret and grants nothing.
//
// UEFI and iPXE are exact about HTTP: files have a Content-Length, a type, a
// strong ETag and answer Range and If-Match, so that a broken transfer resumes.
package httpboot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/routes"
)

// defaultTransfers is how many files are sent at a time.
const defaultTransfers = 64

// Source is what the handler asks about machines.
type Source interface {
	boot.Source
	// Blob finds a file by digest among those that may be served to anyone.
	Blob(sha256 string) (boot.Blob, bool)
}

// Config is what the handler needs. Source, Open and Server are required.
type Config struct {
	Source Source
	// Meet tells of a client at an address what is known of the card that it says it has:
	// whether it is here, and what it holds. Nil tells nothing.
	Meet func(m boot.Machine, client netip.Addr) boot.Machine
	// Open opens the content with a digest; an *os.File is sent without copying.
	Open func(sha256 string) (io.ReadSeekCloser, error)
	// Server is our address and port as clients reach them; Server6 the same for those
	// that come by IPv6, and may be unset.
	Server, Server6 netip.AddrPort
	// Programs are what UEFI loads by HTTP, by firmware.
	Programs map[boot.Firmware]Program
	// Transfers is how many files are sent at a time, 0 means 64, and a quarter of
	// that to one client (limit.Source). Above it the answer is 503 with Retry-After,
	// which iPXE honours. A client that takes too little is cut off, and then has one
	// place at most for some minutes.
	Transfers int
	// Single says that an address is known to be one machine's (limit.Source); it may be
	// nil.
	Single func(netip.Addr) bool
	// Doubt says in one sentence why a request from an address is not believed to be of
	// the machine that it names, which has that name in cluster.yaml: then it is answered,
	// and no event. Empty is no doubt; nil believes everything.
	Doubt func(from netip.Addr, m boot.Machine, name string) string
	// Waits is called when UEFI has to wait for its program, Loaded when a card has it;
	// they may be nil.
	Waits    func()
	Loaded   func(mac net.HardwareAddr)
	Recorder boot.Recorder
	Meter    Meter
	Log      *slog.Logger
	// Now is time.Now unless a test says otherwise.
	Now func() time.Time
}

// handler is the configuration and the places for transfers.
type handler struct {
	Config
	places *places
	terms  terms
}

// New returns the handler for
//
//	/boot.ipxe?mac=&uuid=&serial=&platform=&arch=   a machine's script
//	/ignition?mac=&uuid=&serial=              its installer's first config
//	/files/SHA256/NAME                        public files
//	/boot/MAC/NAME                            what UEFI HTTP boot of a machine loads
//	/healthz
func New(cfg Config) http.Handler { return on(usual(), cfg) }

func on(t terms, cfg Config) http.Handler {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Transfers == 0 {
		cfg.Transfers = defaultTransfers
	}
	h := handler{Config: cfg, places: newPlaces(cfg.Transfers, cfg.Single), terms: t}
	mux := &routes.Mux{}
	mux.HandleFunc("GET /boot.ipxe", h.script)
	mux.HandleFunc("GET /ignition", h.ignition)
	mux.HandleFunc("GET /files/{sha256}/{name}", h.file)
	mux.HandleFunc("GET /boot/{mac}/{name}", h.program)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, "text/plain; charset=utf-8", "ok\n") })
	if cfg.Meter == nil {
		return mux
	}
	return metered{mux, cfg.Meter}
}

var (
	uuidForm   = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	serialForm = regexp.MustCompile(`^[ -~]{1,64}$`)
)

// machine is who a client says it is, with what is known of that.
func (h handler) machine(r *http.Request) boot.Machine { return h.meet(r, said(r)) }

func (h handler) meet(r *http.Request, m boot.Machine) boot.Machine {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if h.Meet == nil || err != nil {
		return m
	}
	return h.Meet(m, at.Addr().Unmap())
}

// said reads what a client says about itself. What has not the right form is
// as good as absent: firmware reports odd values, and nothing is granted on them.
func said(r *http.Request) boot.Machine {
	q := r.URL.Query()
	var m boot.Machine
	if mac, err := net.ParseMAC(q.Get("mac")); err == nil && len(mac) == 6 {
		m.MAC = mac
	}
	if uuid := strings.ToLower(q.Get("uuid")); uuidForm.MatchString(uuid) {
		m.UUID = uuid
	}
	if serial := strings.TrimSpace(q.Get("serial")); serialForm.MatchString(serial) {
		m.Serial = serial
	}
	switch q.Get("platform") {
	case "pcbios":
		m.Firmware = boot.BIOS
	case "efi":
		m.Firmware = uefi(q.Get("arch"))
	}
	return m
}

// archForm is what iPXE calls a processor (ipxe.org/cfg/buildarch).
var archForm = regexp.MustCompile(`^[a-z0-9_]{1,16}$`)

// uefi is the firmware of an iPXE that was built for a processor. It says none when it was
// pointed here by a URL without: that was for x86. A 32-bit build may run
// on a processor of 64.
func uefi(arch string) boot.Firmware {
	switch arch {
	case "", "x86_64", "i386":
		return boot.UEFIx64
	}
	if !archForm.MatchString(arch) {
		arch = "other"
	}
	return boot.OtherUEFI(arch)
}

func (h handler) script(w http.ResponseWriter, r *http.Request) {
	m := h.machine(r)
	if m.MAC == nil && m.UUID == "" && m.Serial == "" {
		http.Error(w, "say who boots: /boot.ipxe?mac=...&uuid=...&serial=...", http.StatusBadRequest)
		return
	}
	a := h.Source.Decide(m)
	e := boot.Event{Machine: m, Name: a.Name, Stage: boot.StageScript, Action: a.Action, Detail: fmt.Sprintf("%s: %s (%s)", a.Action, a.Reason, a.Code)}
	if a.Refused {
		e.Refusal = boot.Refusal{Code: a.Code, Reason: a.Reason}
	}
	h.record(r, e)
	w.Header().Set("Cache-Control", "no-store")
	writeText(w, "text/plain; charset=utf-8", Script(h.server(r), m, a))
}

// server is how this client reaches us: who came by IPv6 may have nothing else.
func (h handler) server(r *http.Request) netip.AddrPort {
	at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if ok && at.IP.To4() == nil && h.Server6.IsValid() {
		return h.Server6
	}
	return h.Server
}

func (h handler) ignition(w http.ResponseWriter, r *http.Request) {
	m := h.machine(r)
	a := h.Source.Decide(m)
	if !a.Action.Loads() {
		h.record(r, boot.Event{Machine: m, Name: a.Name, Stage: boot.StageIgnition, Detail: fmt.Sprintf("refused: %s (%s)", a.Reason, a.Code),
			Refusal: boot.Refusal{Code: a.Code, Reason: a.Reason}})
		http.Error(w, a.Code+": "+a.Reason, http.StatusForbidden)
		return
	}
	config, err := h.Source.Ignition(m)
	if err != nil {
		h.Log.Error("no Ignition config", "mac", m.MAC.String(), "machine", a.Name, "error", err)
		h.record(r, boot.Event{Machine: m, Name: a.Name, Stage: boot.StageIgnition, Detail: "there is no config for it: " + err.Error(),
			Refusal: boot.Refusal{Code: "no-config", Reason: "the server has no Ignition config for it, see its log"}})
		http.Error(w, "there is no Ignition config for this machine, see the server's log", http.StatusInternalServerError)
		return
	}
	h.record(r, boot.Event{Machine: m, Name: a.Name, Stage: boot.StageIgnition, Detail: fmt.Sprintf("sent the config for %s", a.Action)})
	w.Header().Set("Cache-Control", "no-store")
	writeText(w, "application/vnd.coreos.ignition+json", string(config))
}

func (h handler) file(w http.ResponseWriter, r *http.Request) {
	blob, ok := h.Source.Blob(r.PathValue("sha256"))
	if !ok || blob.Name != r.PathValue("name") {
		http.Error(w, "there is no public file of this digest and name", http.StatusNotFound)
		return
	}
	ok, leave := h.places.enter(r.RemoteAddr, time.Now())
	h.send(w, r, blob, ok, leave, func(detail string, no boot.Refusal) { h.fetched(r, detail, no) })
}

// send sends a file to who has a place, and tells fetched what becomes of it. It says
// whether all that was asked for has left.
func (h handler) send(w http.ResponseWriter, r *http.Request, blob boot.Blob, ok bool, leave func(stalled bool, now time.Time), fetched func(detail string, no boot.Refusal)) (whole bool) {
	if !ok {
		fetched("no place for "+blob.Name, boot.Refusal{Code: "overloaded", Reason: fmt.Sprintf("%d transfers run already, or a quarter of that for this address; it was told to come back in seconds", h.Transfers)})
		// Spread the retries: all that wait would come back together.
		w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(5)))
		http.Error(w, "too many transfers at a time, try again", http.StatusServiceUnavailable)
		return false
	}
	var no boot.Refusal
	defer func() { leave(no.Code == CodeStalled, time.Now()) }()
	content, err := h.Open(blob.SHA256)
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, fs.ErrNotExist) {
			status = http.StatusNotFound
		}
		h.Log.Error("file not opened", "name", blob.Name, "sha256", blob.SHA256, "error", err)
		fetched("the server cannot open "+blob.Name, boot.Refusal{Code: "file-missing", Reason: blob.Name + " is missing on the server, see its log; run imagectl build"})
		http.Error(w, "this file is missing on the server, see its log", status)
		return false
	}
	defer content.Close()
	fetched("fetches "+blob.Name, boot.Refusal{})
	w.Header().Set("ETag", `"`+blob.SHA256+`"`)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	w.Header().Set("Content-Type", contentType(blob.Name))
	p := h.terms.paced(w)
	http.ServeContent(p, r, blob.Name, time.Time{}, content)
	no, err = p.ended(blob.Name, time.Now())
	switch {
	case no.Code != "":
		fetched(no.Reason, no)
	case err != nil && !errors.Is(err, net.ErrClosed): // else the server stops
		h.Log.Error("file not sent", "name", blob.Name, "sha256", blob.SHA256, "error", err)
	}
	return p.broke == nil
}

// fetched records a file request that is a step of the boot path.
func (h handler) fetched(r *http.Request, detail string, no boot.Refusal) {
	stage := stageOf(r.URL.Query().Get("stage"))
	m := h.machine(r)
	if stage == "" || m.MAC == nil || r.Method != http.MethodGet {
		return
	}
	if no.Code != "" {
		detail += " (" + no.Code + ")"
	}
	h.record(r, boot.Event{Machine: m, Name: h.Source.Decide(m).Name, Stage: stage, Detail: detail, Refusal: no})
}

// stageOf says which step of the boot path a file request is.
func stageOf(s string) boot.Stage {
	switch stage := boot.Stage(s); stage {
	case boot.StageKernel, boot.StageInitrd, boot.StageIgnition:
		return stage
	}
	return ""
}

// contentType: UEFI decides by it whether it got a program.
func contentType(name string) string {
	switch strings.ToLower(path.Ext(name)) {
	case ".efi":
		return "application/efi"
	case ".iso":
		return "application/vnd.efi-iso"
	case ".img":
		return "application/vnd.efi-img"
	}
	return "application/octet-stream"
}

func (h handler) record(r *http.Request, e boot.Event) {
	if h.Doubt != nil {
		from, _ := netip.ParseAddrPort(r.RemoteAddr)
		if why := h.Doubt(from.Addr().Unmap(), e.Machine, e.Name); why != "" {
			h.Log.Warn("not believed", "mac", e.Machine.MAC.String(), "stage", e.Stage, "client", r.RemoteAddr, "reason", why)
			return
		}
	}
	h.Log.Info("boot", "mac", e.Machine.MAC.String(), "stage", e.Stage, "client", r.RemoteAddr, "detail", e.Detail)
	if h.Recorder != nil {
		e.At = h.Now()
		h.Recorder.Record(e)
	}
}

// writeText sends a whole body with its length: chunked bodies are not for ROMs.
func writeText(w http.ResponseWriter, contentType, body string) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	// A client that went away is not our failure.
	_, _ = io.WriteString(w, body)
}
