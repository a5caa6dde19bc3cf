package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/opennebula/onedtest"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// uploadSite is a directory with a cluster.yaml that names a front-end.
type uploadSite struct {
	*testing.T
	dir  string
	home string
	one  *onedtest.Server
	// started is cluster.yaml without upload.
	started string
}

func newUploadSite(t *testing.T) *uploadSite {
	t.Helper()
	s := &uploadSite{T: t, dir: t.TempDir(), one: onedtest.Start(t)}
	t.Setenv("XDG_STATE_HOME", filepath.Join(s.dir, "state"))
	t.Setenv("ONE_PASSWORD", "secret-token")
	if code, _, errs := s.imagectl("init", s.dir); code != exitDone {
		t.Fatal(errs)
	}
	s.write("node.json", `{"cluster":"demo"}`)
	b, err := os.ReadFile(s.path("cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.started = string(b)
	s.write("cluster.yaml", s.started+fmt.Sprintf(`
upload:
  - name: one
    type: opennebula
    endpoint: %s
    datastore: default
    username: ops
    password: {env: ONE_PASSWORD}
    options: {network: rack, memoryMB: "4096", node: node.json}
`, s.one.URL))
	return s
}

func (s *uploadSite) path(name string) string { return filepath.Join(s.dir, name) }

func (s *uploadSite) write(name, text string) {
	s.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
}

func (s *uploadSite) imagectl(args ...string) (code int, out, errs string) {
	s.Helper()
	return s.within(s.Context(), args...)
}

// within is imagectl for as long as a context lasts.
func (s *uploadSite) within(ctx context.Context, args ...string) (code int, out, errs string) {
	s.Helper()
	var o, e bytes.Buffer
	args = append([]string{"-f", s.path("cluster.yaml")}, args...)
	code = Main(ctx, Stdio{In: strings.NewReader("yes\n"), Out: &o, Err: &e}, args)
	return code, o.String(), e.String()
}

// build puts an image of role worker into out/, as imagectl build would.
func (s *uploadSite) build(seed uint64) upload.Image {
	s.Helper()
	img := uploadtest.Image(s.T, store.QCOW2, "lab-worker", seed)
	b := make([]byte, img.Size)
	if _, err := img.File.ReadAt(b, 0); err != nil && err != io.EOF {
		s.Fatal(err)
	}
	if err := os.MkdirAll(s.path("out"), 0o755); err != nil {
		s.Fatal(err)
	}
	s.write("out/lab-worker.qcow2", string(b))
	err := store.WriteManifest(s.path("out"), store.Manifest{Version: 1, Cluster: "lab", Flatcar: "4593.2.1", Kubernetes: "v1.36.3", Artefacts: []store.Artefact{{
		// For the installer only: no platform takes it.
		Name: "lab-control-plane.raw.zst", Role: "control-plane", Format: store.RawZstd, Size: 1, SHA256: strings.Repeat("a", 64), RawSize: img.RawSize, RawSHA256: strings.Repeat("b", 64),
	}, {
		Name: "lab-worker.qcow2", Role: "worker", Format: store.QCOW2, Size: img.Size, SHA256: img.SHA256, RawSize: img.RawSize, RawSHA256: img.Digest,
	}}})
	if err != nil {
		s.Fatal(err)
	}
	return img
}

// What is staged elsewhere is sent there before the front-end hears of it.
func TestUploadByAStage(t *testing.T) {
	s := newUploadSite(t)
	s.build(1)
	nobody := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "<Error><Code>AccessDenied</Code><Message>nobody comes in here</Message></Error>", http.StatusForbidden)
	}))
	t.Cleanup(nobody.Close)
	b, err := os.ReadFile(s.path("cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFP7Xx4NKV4oqKYLpYrX5bBDSHHn7M5YpyWrpTJmJp5d"
	for _, tt := range []struct {
		entry string
		code  int
		want  string
	}{
		{`{name: vault, type: s3, endpoint: "` + nobody.URL + `", bucket: vms, region: eu, username: k, password: {env: ONE_PASSWORD}}`, exitAuth, "making lab-worker"},
		{`{name: vault, type: ssh, endpoint: "ssh://ops@127.0.0.1:1/var/tmp", options: {hostKey: ` + key + `}}`, exitServer, "logging in to ops@127.0.0.1:1"},
	} {
		s.write("cluster.yaml", strings.Replace(string(b), "node: node.json}", "node: node.json, stage: vault}\n  - "+tt.entry, 1))
		code, out, errs := s.upload()
		if code != tt.code || !strings.Contains(errs, tt.want) {
			t.Errorf("%s: exit code %d, want %d with %q\n%s%s", tt.entry, code, tt.code, tt.want, out, errs)
		}
		if left := s.one.Images(onedtest.Session); len(left) > 0 {
			t.Errorf("the front-end has %v", left)
		}
		if err := os.RemoveAll(s.path("state")); err != nil {
			t.Fatal(err)
		}
	}
}

// upload runs imagectl upload one worker.
func (s *uploadSite) upload(args ...string) (int, string, string) {
	s.Helper()
	return s.imagectl(append([]string{"upload", "one", "worker", "--out", s.path("out"), "--listen", "127.0.0.1:0"}, args...)...)
}

// overtaken is upload whose time is over as soon as the front-end has begun an image. A
// limit in seconds may be over before that.
func (s *uploadSite) overtaken() (int, string, string) {
	s.Helper()
	ctx, over := context.WithCancelCause(s.Context())
	defer over(nil)
	go func() {
		for ctx.Err() == nil && len(s.one.Images(onedtest.Session)) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		over(fmt.Errorf("%w: it has begun an image", upload.ErrTimeout))
	}()
	return s.within(ctx, "upload", "one", "worker", "--out", s.path("out"), "--listen", "127.0.0.1:0")
}

// wants runs a command and wants its exit code and words in what it says.
func (s *uploadSite) wants(code int, words string, args ...string) string {
	s.Helper()
	got, out, errs := s.imagectl(args...)
	if got != code || !strings.Contains(out+errs, words) {
		s.Errorf("imagectl %s: exit code %d, want %d with %q\n%s%s", strings.Join(args, " "), got, code, words, out, errs)
	}
	return out
}

func TestUploadFromFirstToPrune(t *testing.T) {
	s := newUploadSite(t)
	first := s.build(1)
	if code, out, errs := s.upload("--dry-run"); code != exitDone || !strings.Contains(out, "would be sent to one") || len(s.one.Images(onedtest.Session)) > 0 {
		t.Errorf("dry run: %d\n%s%s", code, out, errs)
	}
	code, out, errs := s.upload("-o", "json")
	if code != exitDone {
		t.Fatalf("uploading: %d\n%s%s", code, out, errs)
	}
	var phases []string
	var last uploadReport
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var e newsLine
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		phases = append(phases, e.Phase)
		last = uploadReport{}
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatal(err)
		}
	}
	if last.Outcome == nil || !last.Outcome.Promoted || last.Outcome.Object.Version != first.Version {
		t.Fatalf("the last line is %+v", last)
	}
	if all := strings.Join(phases, ","); !strings.Contains(all, "front-end reading, pass 7") {
		t.Errorf("phases are %s", all)
	}
	stored, err := os.ReadFile(s.one.File(last.Outcome.Object.ID))
	if err != nil {
		t.Fatal(err)
	}
	sent, err := os.ReadFile(s.path("out/lab-worker.qcow2"))
	if err != nil || !bytes.Equal(stored, sent) {
		t.Errorf("the front-end has %d bytes that are not the %d of the file, %v", len(stored), len(sent), err)
	}
	if tm := s.one.Template(onedtest.Session, "lab-worker"); !strings.Contains(tm, "<IMAGECTL_NODE>eyJjbHVzdGVyIjoiZGVtbyJ9</IMAGECTL_NODE>") {
		t.Errorf("the template lacks node.json:\n%s", tm)
	}
	code, out, errs = s.upload()
	if code != exitDone || !strings.Contains(out, "no changes") {
		t.Errorf("a second time: %d\n%s%s", code, out, errs)
	}
	// An upload reads cluster.yaml for the image, for the target and for its Ignition config.
	if n := strings.Count(errs, "the keyring cannot be read"); n != 1 {
		t.Errorf("a warning was printed %d times:\n%s", n, errs)
	}
	s.wants(0, "good", "upload", "verify", "one", first.Version, "--out", s.path("out"))
	// The short way reads out/ where one is.
	t.Chdir(s.dir)
	s.wants(0, "good", "verify", "one", first.Version)
	s.wants(0, `"result": "unprovable"`, "verify", "one", first.Version, "-o", "json")

	second := s.build(2)
	if code, out, errs := s.upload("--promote"); code != exitDone || !strings.Contains(out, "is current now") {
		t.Errorf("a newer one: %d\n%s%s", code, out, errs)
	}
	// What is in out/ says nothing of another version.
	s.wants(exitUsage, "holds lab-worker "+second.Version+", and there is nothing to compare "+first.Version+" with", "upload", "verify", "one", first.Version, "--out", s.path("out"))
	s.wants(0, first.Version, "upload", "rollback", "one", "worker")
	s.wants(0, second.Version+" ", "upload", "promote", "one", second.Version)
	list := s.wants(0, "current", "upload", "list", "one", "worker")
	if strings.Count(list, "lab-worker") != 2 || !strings.Contains(list, "previous") {
		t.Errorf("list:\n%s", list)
	}
	s.wants(0, "kept", "upload", "prune", "one", "worker", "--keep", "1")
	s.wants(0, "nothing was left", "upload", "cleanup", "one")
	s.wants(2, "at least 1", "upload", "prune", "one", "worker", "--keep", "0")
	s.wants(1, "not found", "upload", "promote", "one", "4593.9.9-aaaaaaaa")
}

func TestUploadSaysWhatKindOfFailureItWas(t *testing.T) {
	s := newUploadSite(t)
	s.build(1)
	fails := func(code int, words string, args ...string) {
		t.Helper()
		if got, out, errs := s.upload(args...); got != code || !strings.Contains(errs, words) {
			t.Errorf("exit code %d, want %d with %q\n%s%s", got, code, words, out, errs)
		}
	}
	fails(exitUsage, "the platform takes qcow2 or raw", "--format", "vmdk")
	s.wants(exitUsage, `no upload target "two"`, "upload", "two")
	s.wants(exitUsage, "say where to", "upload")

	t.Setenv("ONE_PASSWORD", "wrong")
	fails(exitAuth, "couldn't be authenticated")
	t.Setenv("ONE_PASSWORD", "")
	fails(exitUsage, "the environment variable ONE_PASSWORD is empty")
	t.Setenv("ONE_PASSWORD", "secret-token")

	s.one.Fill(1)
	fails(exitSpace, "1 MB free")
	s.one.Monitor()

	// The front-end takes for ever: what was begun is written down, and can be
	// cleaned up.
	s.one.Hold()
	if code, out, errs := s.overtaken(); code != exitTimeout || !strings.Contains(errs, "imagectl upload cleanup one") {
		t.Errorf("exit code %d, want %d and what to do\n%s%s", code, exitTimeout, out, errs)
	}
	fails(exitTimeout, "not done in time: --timeout 1s is over", "--timeout", "1s")
	if left := s.one.Images(onedtest.Session); len(left) != 1 {
		t.Fatalf("there is %v", left)
	}
	s.one.Release()
	s.wants(exitDone, "is gone", "upload", "cleanup", "one")
	if left := s.one.Images(onedtest.Session); len(left) != 0 {
		t.Errorf("left is %v", left)
	}

	// A byte that changed after the build.
	f, err := os.OpenFile(s.path("out/lab-worker.qcow2"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, 1000); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	fails(exitUsage, "and the manifest says")
	if left := s.one.Images(onedtest.Session); len(left) != 0 {
		t.Errorf("left is %v", left)
	}
}
