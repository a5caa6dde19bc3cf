package httpboot

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
)

// cards answers by card: the last byte is an index.
type cards []boot.Answer

func (c cards) Decide(m boot.Machine) boot.Answer   { return c[m.MAC[5]] }
func (cards) Ignition(boot.Machine) ([]byte, error) { return nil, nil }
func (cards) Blob(string) (boot.Blob, bool)         { return boot.Blob{}, false }
func card(n int) string                             { return fmt.Sprintf("52-54-00-00-00-%02x", n) }
func programs(installer bool) map[boot.Firmware]Program {
	return map[boot.Firmware]Program{boot.UEFIx64: {Blob: nbp, Installer: installer}}
}

const (
	armed = iota
	unknown
	unarmed
	unarmedOff
	ignored
	byGRUB
	told
	diskless
)

var answersByCard = cards{
	armed:      {Action: boot.Install, Name: "cp1", Code: "armed", Reason: "it is armed"},
	unknown:    {Action: boot.Discover, Code: "unknown-machine", Reason: "it is not in cluster.yaml"},
	unarmed:    {Action: boot.Local, Name: "cp1", Code: "not-armed", Reason: "it is not armed", Refused: true, LocalBoot: "exit"},
	unarmedOff: {Action: boot.Local, Name: "cp1", Code: "ready", Reason: "it is installed", LocalBoot: "poweroff"},
	ignored:    {Action: boot.None, Code: "unknown-machine", Reason: "it is ignored", Refused: true},
	byGRUB:     {Action: boot.Install, Name: "cp1", Code: "armed", Reason: "it is armed", Program: boot.GRUB},
	diskless:   {Action: boot.Run, Name: "w1", Code: "diskless", Reason: "it runs in its memory"},
	told:       {Action: boot.Local, Name: "cp1", Code: "no-image", Reason: "its processor is arm64", Refused: true, Told: true, LocalBoot: "exit"},
}

func TestHTTPBootStartsOnlyWhatTheMachineMayRun(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		installer bool
		card      int
		status    int
		body      string
		event     string
	}{
		{"iPXE, armed", false, armed, 200, "a program", `nbp cp1 "install" "" fetches snponly.efi by UEFI HTTP boot`},
		{"iPXE, unknown", false, unknown, 200, "a program", `nbp  "discover" "" fetches snponly.efi by UEFI HTTP boot`},
		{"iPXE, not armed", false, unarmed, 404, "not-armed: it is not armed\n", `script cp1 "local" "not-armed" UEFI HTTP boot goes on to the next boot option: it is not armed (not-armed)`},
		{"iPXE switches off", false, unarmedOff, 200, "a program", `nbp cp1 "local" "" fetches snponly.efi by UEFI HTTP boot`},
		{"the installer, armed", true, armed, 200, "a program", `kernel cp1 "install" "" fetches snponly.efi by UEFI HTTP boot`},
		{"the installer, unknown", true, unknown, 200, "a program", `kernel  "discover" "" fetches snponly.efi by UEFI HTTP boot`},
		{"the installer, not armed", true, unarmed, 404, "not-armed: it is not armed\n", `script cp1 "local" "not-armed" UEFI HTTP boot goes on to the next boot option: it is not armed (not-armed)`},
		{"the installer switches nothing off", true, unarmedOff, 404, "ready: it is installed\n", `script cp1 "local" "" UEFI HTTP boot goes on to the next boot option: it is installed (ready)`},
		{"no iPXE for who boots by GRUB", false, byGRUB, 404, "pxe-only: its boot program is GRUB (nbp: grub), which is loaded by PXE over IPv4\n", `script cp1 "install" "" UEFI HTTP boot goes on to the next boot option: its boot program is GRUB (nbp: grub), which is loaded by PXE over IPv4 (pxe-only)`},
		{"the installer for who boots by GRUB", true, byGRUB, 200, "a program", `kernel cp1 "install" "" fetches snponly.efi by UEFI HTTP boot`},
		{"iPXE says why there is nothing", false, told, 200, "a program", `nbp cp1 "local" "" fetches snponly.efi by UEFI HTTP boot`},
		{"the installer could not say it", true, told, 404, "no-image: its processor is arm64\n", `script cp1 "local" "no-image" UEFI HTTP boot goes on to the next boot option: its processor is arm64 (no-image)`},
		{"iPXE, diskless", false, diskless, 200, "a program", `nbp w1 "run" "" fetches snponly.efi by UEFI HTTP boot`},
		{"the installer, diskless: it asks for another config", true, diskless, 200, "a program", `kernel w1 "run" "" fetches snponly.efi by UEFI HTTP boot`},
		{"ignored", true, ignored, 404, "unknown-machine: it is ignored\n", `script  "none" "unknown-machine" UEFI HTTP boot goes on to the next boot option: it is ignored (unknown-machine)`},
	} {
		var rec recorder
		h := New(Config{Source: answersByCard, Open: open, Server: at, Programs: programs(c.installer), Recorder: &rec})
		url := "/boot/" + card(c.card) + "/snponly.efi"
		r := get(h, "GET", url)
		if got := body(t, r); r.StatusCode != c.status || got != c.body {
			t.Errorf("%s: got %d %q, want %d %q", c.name, r.StatusCode, got, c.status, c.body)
		}
		var events []string
		for _, e := range rec {
			if !e.Firmware || e.Machine.MAC.String() != (net.HardwareAddr{0x52, 0x54, 0, 0, 0, byte(c.card)}).String() {
				t.Errorf("%s: event %+v", c.name, e)
			}
			events = append(events, fmt.Sprintf("%s %s %q %q %s", e.Stage, e.Name, e.Action, e.Refusal.Code, e.Detail))
		}
		if want := []string{c.event}; !slices.Equal(events, want) {
			t.Errorf("%s: got events %q, want %q", c.name, events, want)
		}
	}
}

// Who came by HTTPS is said to have: "imagectl why" is where an operator looks whether the
// firmware took the URL that it was given.
func TestHTTPSBootIsCalledSo(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/boot/" + card(armed) + "/snponly.efi":   "fetches snponly.efi by UEFI HTTPS boot",
		"/boot/" + card(unarmed) + "/snponly.efi": "UEFI HTTPS boot goes on to the next boot option: it is not armed (not-armed)",
	} {
		var rec recorder
		h := New(Config{Source: answersByCard, Open: open, Server: at, Programs: programs(false), Recorder: &rec})
		s := httptest.NewTLSServer(h)
		r, err := s.Client().Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		s.Close() // the event is recorded when the transfer has ended
		if len(rec) != 1 || rec[0].Detail != want {
			t.Errorf("%s: got %+v, want %q", path, rec, want)
		}
	}
}

// What EDK2 wants (netboot quirks 37 and 38): the size by HEAD, a length, the type of
// a program, and the rest of a broken transfer.
func TestHTTPBootAnswersLikeUEFIWants(t *testing.T) {
	t.Parallel()
	var rec recorder
	h := New(Config{Source: answersByCard, Open: open, Server: at, Programs: programs(true), Recorder: &rec})
	url := "/boot/" + card(armed) + "/snponly.efi"
	r := get(h, "HEAD", url)
	if r.StatusCode != http.StatusOK || len(rec) != 0 {
		t.Errorf("HEAD: status %d, %d events", r.StatusCode, len(rec))
	}
	etag := `"` + nbp.SHA256 + `"`
	for _, c := range [][2]string{{"Content-Type", "application/efi"}, {"ETag", etag}, {"Content-Length", "9"}, {"Accept-Ranges", "bytes"}} {
		if got := r.Header.Get(c[0]); got != c[1] {
			t.Errorf("%s is %q, want %q", c[0], got, c[1])
		}
	}
	r = get(h, "GET", url, "Range", "bytes=2-", "If-Match", etag)
	if got := body(t, r); r.StatusCode != http.StatusPartialContent || got != "program" {
		t.Errorf("the rest: got %d %q", r.StatusCode, got)
	}
	for _, url := range []string{"/boot/nobody/snponly.efi", "/boot/" + card(armed) + "/other.efi", "/boot/02-00-00-00-00-00-00-01/snponly.efi"} {
		if r := get(h, "GET", url); r.StatusCode != http.StatusNotFound {
			t.Errorf("%s: got %d", url, r.StatusCode)
		}
	}
	// A lost file is an event with its reason, and no place is no program.
	lost := New(Config{Source: answersByCard, Open: open, Server: at, Recorder: &rec,
		Programs: map[boot.Firmware]Program{boot.UEFIx64: {Blob: initrd, Installer: true}}})
	rec = nil
	if r := get(lost, "GET", "/boot/"+card(armed)+"/"+initrd.Name); r.StatusCode != http.StatusNotFound {
		t.Errorf("a lost file: got %d", r.StatusCode)
	}
	if len(rec) != 1 || rec[0].Stage != boot.StageKernel || rec[0].Refusal.Code != "file-missing" {
		t.Errorf("a lost file: events %+v", rec)
	}
}

// UEFI takes "come back" for a no, so it waits for a place as long as it is patient.
func TestHTTPBootWaitsForAPlace(t *testing.T) {
	for _, c := range []struct {
		name   string
		free   time.Duration // when the place that is taken is given back
		status int
		loaded string
	}{
		{"in time", programWait - time.Second, 200, "[52:54:00:00:00:00]"},
		{"too late", programWait + time.Second, 503, "[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				waits, loaded := 0, []net.HardwareAddr{}
				h := handler{places: newPlaces(1, nil), terms: usual(), Config: Config{Source: answersByCard, Open: open, Server: at, Programs: programs(false), Now: time.Now, Log: slog.New(slog.DiscardHandler),
					Waits: func() { waits++ }, Loaded: func(mac net.HardwareAddr) { loaded = append(loaded, mac) }}}
				_, leave := h.places.enter("10.0.0.9:1", time.Now())
				time.AfterFunc(c.free, func() { leave(false, time.Now()) })
				r := httptest.NewRequest(http.MethodGet, "/", nil)
				r.SetPathValue("mac", card(armed))
				r.SetPathValue("name", nbp.Name)
				w := httptest.NewRecorder()
				h.program(w, r)
				if w.Code != c.status || waits != 1 || fmt.Sprint(loaded) != c.loaded {
					t.Errorf("status %d, waits %d, loaded %v", w.Code, waits, loaded)
				}
				time.Sleep(programWait) // what comes too late comes
			})
		})
	}
}

// firmwares remembers with which firmware it was asked about a machine.
type firmwares struct {
	cards
	asked *[]boot.Firmware
}

func (f firmwares) Decide(m boot.Machine) boot.Answer {
	*f.asked = append(*f.asked, m.Firmware)
	return f.cards.Decide(m)
}

// What a machine's processor is comes with the request: by the program that UEFI HTTP boot
// loads, which DHCP named to this architecture only, and by what iPXE was built for.
func TestRequestsSayWhichProcessorAsks(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]boot.Firmware{
		"/boot/" + card(armed) + "/snponly.efi":                        boot.UEFIx64,
		"/boot/" + card(armed) + "/snponly-arm64.efi":                  boot.UEFIarm64,
		"/boot.ipxe?mac=" + card(armed) + "&platform=pcbios&arch=i386": boot.BIOS,
		"/boot.ipxe?mac=" + card(armed) + "&platform=efi&arch=x86_64":  boot.UEFIx64,
		"/boot.ipxe?mac=" + card(armed) + "&platform=efi&arch=arm64":   boot.UEFIarm64,
		"/boot.ipxe?mac=" + card(armed) + "&platform=efi":              boot.UEFIx64, // before there was arch
		"/boot.ipxe?mac=" + card(armed) + "&platform=efi&arch=":        boot.UEFIx64,
		"/boot.ipxe?mac=" + card(armed) + "&platform=efi&arch=riscv64": "uefi-riscv64",
		"/boot.ipxe?mac=" + card(armed) + "&platform=efi&arch=%0a%3b":  "uefi-other",
		"/boot.ipxe?mac=" + card(armed):                                "",
	} {
		var asked []boot.Firmware
		arm := nbp
		arm.Name = "snponly-arm64.efi"
		h := New(Config{Source: firmwares{answersByCard, &asked}, Open: open, Server: at,
			Programs: map[boot.Firmware]Program{boot.UEFIx64: {Blob: nbp}, boot.UEFIarm64: {Blob: arm}}})
		if r := get(h, "GET", path); r.StatusCode != http.StatusOK || len(asked) != 1 || asked[0] != want {
			t.Errorf("%s: status %d, asked about %q, want %q", path, r.StatusCode, asked, want)
		}
	}
}
