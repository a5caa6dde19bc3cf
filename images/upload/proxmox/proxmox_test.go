package proxmox_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/proxmox"
	"github.com/imagectl/imagectl/images/upload/proxmox/proxmoxtest"
	"github.com/imagectl/imagectl/images/upload/staging"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// wait is short: what is waited for happens in this process.
func wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Millisecond):
		return nil
	}
}

func config(s *proxmoxtest.Server) proxmox.Config {
	return proxmox.Config{
		Endpoint: s.URL, Token: proxmoxtest.Token, Secret: proxmoxtest.Secret, Node: proxmoxtest.Node, Datastore: proxmoxtest.Datastore,
		Bridge: "vmbr0", Client: &http.Client{}, Random: rand.Reader, Now: time.Now, Wait: wait,
	}
}

func target(t *testing.T, c proxmox.Config) *proxmox.Target {
	t.Helper()
	tg, err := proxmox.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

func start(t *testing.T) uploadtest.Platform { return platform(t, proxmoxtest.Start(t), nil) }

func platform(t *testing.T, s *proxmoxtest.Server, from upload.Source) uploadtest.Platform {
	s.PutFile("foreign.iso")
	return uploadtest.Platform{
		Target: func(f *uploadtest.Faults) upload.Target {
			c := config(s)
			c.Source = from
			c.Client = &http.Client{Transport: f.Transport(uploadtest.InProcess(s))}
			return target(t, c)
		},
		Patient: func(f *uploadtest.Faults) upload.Target {
			c := config(s)
			c.Source = from
			c.Client = &http.Client{Transport: f.Transport(uploadtest.InProcess(s))}
			return target(t, c)
		},
		// Only a task is asked about again; all else is a call or two, and is begun again
		// by hand.
		Repeats: func(r *http.Request) bool {
			return strings.HasSuffix(r.URL.Path, "/status") && strings.Contains(r.URL.Path, "/tasks/")
		},
		Stranger: func() upload.Target {
			c := config(s)
			c.Secret = "wrong"
			return target(t, c)
		},
		Leftovers: func() ([]string, error) { return s.Things(), nil },
		Later: func(f *uploadtest.Faults) upload.Target {
			c := config(s)
			c.Client = &http.Client{Transport: f.Transport(uploadtest.InProcess(s))}
			c.Now = func() time.Time { return time.Now().Add(25 * time.Hour) }
			return target(t, c)
		},
		Changed: func(f *uploadtest.Faults) upload.Target {
			c := config(s)
			c.Source = from
			c.Client = &http.Client{Transport: f.Transport(uploadtest.InProcess(s))}
			c.Bridge, c.VLAN, c.MemoryMB, c.Cores, c.CPU, c.Medium = "vmbr1", 42, 8192, 4, "host", proxmoxtest.Import+":iso/foreign.iso"
			return target(t, c)
		},
		Template:   func() (string, error) { return s.Named("prod-worker"), nil },
		Options:    []string{"net0: virtio,bridge=vmbr1,tag=42\n", "memory: 8192\n", "cores: 4\n", "cpu: host\n", "ide2: local:iso/foreign.iso,media=cdrom\n"},
		Unprovable: []string{"stored bytes"},
		Plant:      s.Plant,
		Fill:       s.Fill,
		Quota:      s.Break,
		Use:        func(o upload.Object) error { return s.Clone(o.ID) },
		Hold:       s.Hold,
		Release:    s.Release,
		Settle:     s.Settle,
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	uploadtest.Run(t, start)
}

// Proxmox VE downloads the file from the built-in server, and does all else alike.
func TestConformanceOfADownload(t *testing.T) {
	t.Parallel()
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		s := proxmoxtest.Start(t)
		p := platform(t, s, served(t))
		p.Slow, p.RawSize = true, 300<<10+512
		return p
	})
}

// served is the built-in server, until the test ends.
func served(t *testing.T) *staging.Server {
	t.Helper()
	l := httptest.NewUnstartedServer(nil)
	s := staging.New("http://" + l.Listener.Addr().String())
	l.Config.Handler = s
	l.Start()
	t.Cleanup(l.Close)
	return s
}

func TestADownloadThatFailsSaysWhyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	s := proxmoxtest.Start(t)
	c := config(s)
	c.Source = staging.Direct(s.URL + "/nothing")
	_, err := run(t, target(t, c), uploadtest.Image(t, store.QCOW2, "prod-worker", 1))
	if !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "download failed: ERROR 404") {
		t.Errorf("got %v", err)
	}
}

func run(t *testing.T, tg upload.Target, img upload.Image) (upload.Outcome, error) {
	t.Helper()
	j, err := upload.OpenJournal(t.TempDir(), upload.Key{Target: "pve", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	out, err := upload.Run(t.Context(), tg, img, j, func(upload.Event) {}, true)
	if cerr := j.Close(); cerr != nil {
		t.Fatal(cerr)
	}
	return out, err
}

func TestTemplateHasTheDiskAndWhatAMachineNeeds(t *testing.T) {
	t.Parallel()
	for _, format := range []store.Format{store.QCOW2, store.Raw} {
		s := proxmoxtest.Start(t)
		c := config(s)
		c.Firmware, c.VLAN, c.MemoryMB, c.Medium = proxmox.UEFI, 42, 8192, "local:iso/node.iso"
		img := uploadtest.Image(t, format, "prod-worker", 5)
		out, err := run(t, target(t, c), img)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(img.File.Name())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(s.Disk(out.Object.ID), b) {
			t.Errorf("%s: the disk was made of other bytes", format)
		}
		got := s.Config(out.Object.ID)
		for k, want := range map[string]string{
			"name": "prod-worker", "tags": "imagectl", "bios": "ovmf", "efidisk0": "vmpool:0,efitype=4m,pre-enrolled-keys=0", "memory": "8192", "cores": "2",
			"net0": "virtio,bridge=vmbr0,tag=42", "ide2": "local:iso/node.iso,media=cdrom", "boot": "order=scsi0", "cpu": "x86-64-v2-AES", "machine": "q35",
		} {
			if got[k] != want {
				t.Errorf("%s: %s is %q, want %q", format, k, got[k], want)
			}
		}
		if !strings.Contains(got["description"], img.Digest) {
			t.Errorf("%s: the notes are %q", format, got["description"])
		}
		if left := s.Things(); len(left) != 1 {
			t.Errorf("%s: there is %v", format, left)
		}
	}
}

// Clones learn their server from an ISO image in their drive. All versions have the
// same one, and it is sent once; isoinfo reads it.
func TestClonesLearnTheirServerFromTheirDrive(t *testing.T) {
	t.Parallel()
	s := proxmoxtest.Start(t)
	c := config(s)
	c.NodeJSON = []byte(`{"cluster":"prod"}`)
	var files posts
	c.Client = &http.Client{Transport: &files}
	var drives []string
	for seed := range uint64(2) {
		out, err := run(t, target(t, c), uploadtest.Image(t, store.QCOW2, "prod-worker", seed+5))
		if err != nil {
			t.Fatal(err)
		}
		drives = append(drives, s.Config(out.Object.ID)["ide2"])
	}
	name, is := strings.CutSuffix(strings.TrimPrefix(drives[0], "local:iso/"), ",media=cdrom")
	if !is || drives[1] != drives[0] || len(s.Things()) != 3 || files != 3 {
		t.Fatalf("the drives have %v; there is %v, of %d files that were sent", drives, s.Things(), files)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, s.File(name), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := exec.Command("isoinfo", "-i", path, "-x", "/USER-DATA.;1").CombinedOutput()
	if err != nil || string(got) != `{"cluster":"prod"}` {
		t.Errorf("isoinfo: %v\n%s", err, got)
	}
}

// posts counts files that are sent.
type posts int

func (p *posts) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/upload") {
		*p++
	}
	return http.DefaultTransport.RoundTrip(r)
}

// VMIDs that others have are passed over, also those of one that we may not see.
func TestVMIDsOfOthersArePassedOver(t *testing.T) {
	t.Parallel()
	s := proxmoxtest.Start(t)
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	start, err := strconv.ParseUint(img.Digest[:8], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	first := 90000 + int(start%10000)
	s.Put(first, map[string]string{"name": "foreign"}, false)
	c := config(s)
	c.Client = &http.Client{Transport: blind{first}}
	out, err := run(t, target(t, c), img)
	if err != nil {
		t.Fatal(err)
	}
	if want := 90000 + (int(start%10000)+1)%10000; out.Object.ID != strconv.Itoa(want) {
		t.Errorf("it is VM %s, want %d", out.Object.ID, want)
	}
	if got := s.Config(strconv.Itoa(first)); got["name"] != "foreign" {
		t.Errorf("the VM of somebody else is %v", got)
	}
}

// blind may not read one machine's configuration.
type blind struct{ id int }

func (b blind) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, strconv.Itoa(b.id)+"/config") {
		return &http.Response{Status: "403 Permission check failed (/vms/1, VM.Audit)", StatusCode: http.StatusForbidden, Body: http.NoBody, Request: r}, nil
	}
	return http.DefaultTransport.RoundTrip(r)
}

// What a task says is in the error, with the words of the programs that it ran.
func TestTaskSaysWhyItFailed(t *testing.T) {
	t.Parallel()
	good := uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	other := good
	other.SHA256 = strings.Repeat("0", 64)
	noQCOW2 := uploadtest.Image(t, store.Raw, "prod-worker", 6)
	noQCOW2.Format = store.QCOW2
	for _, tt := range []struct {
		name  string
		img   upload.Image
		spoil func(*proxmoxtest.Server)
		kind  error
		want  string
	}{
		{"bytes that are not those of the digest", other, nil, upload.ErrServer, "checksum mismatch"},
		{"a file that is not what its name says", noQCOW2, nil, upload.ErrServer, "Image is not in qcow2 format"},
		{"a file system that is full", good, (*proxmoxtest.Server).Break, upload.ErrSpace, "No space left on device"},
	} {
		s := proxmoxtest.Start(t)
		if tt.spoil != nil {
			tt.spoil(s)
		}
		if _, err := run(t, target(t, config(s)), tt.img); !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %v with %q", tt.name, err, tt.kind, tt.want)
		}
		if left := s.Things(); len(left) > 0 {
			t.Errorf("%s: left is %v", tt.name, left)
		}
	}
}

// What is refused at once, by us or by the node, with the node's words.
func TestRefusals(t *testing.T) {
	t.Parallel()
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	for _, tt := range []struct {
		name   string
		change func(*proxmox.Config)
		kind   error
		want   string
	}{
		{"a wrong secret", func(c *proxmox.Config) { c.Secret = "wrong" }, upload.ErrAuth, "invalid token value!"},
		{"a node that is not there", func(c *proxmox.Config) { c.Node = "pve9" }, upload.ErrServer, "no such cluster node"},
		{"a storage that is not there", func(c *proxmox.Config) { c.Datastore = "nowhere" }, upload.ErrNotFound, "No such storage."},
		{"a storage that takes no imports", func(c *proxmox.Config) { c.Import = proxmoxtest.Datastore }, nil, "pvesm set vmpool --content images,rootdir,import"},
	} {
		s := proxmoxtest.Start(t)
		c := config(s)
		tt.change(&c)
		_, err := run(t, target(t, c), img)
		if err == nil || tt.kind != nil && !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %v with %q", tt.name, err, tt.kind, tt.want)
		}
	}
	for _, change := range []func(*proxmox.Config){
		func(c *proxmox.Config) { c.Node = "" },
		func(c *proxmox.Config) { c.Datastore = "a,b" },
		func(c *proxmox.Config) { c.Token = "root@pam" },
		func(c *proxmox.Config) { c.FirstID = 99 },
		func(c *proxmox.Config) { c.Firmware = "efi" },
		func(c *proxmox.Config) { c.Bridge = "vmbr0,firewall=0" },
		func(c *proxmox.Config) { c.Bridge, c.VLAN = "", 5 },
		func(c *proxmox.Config) { c.Medium = "local:iso/a.iso,media=disk" },
		func(c *proxmox.Config) { c.Medium, c.NodeJSON = "local:iso/a.iso", []byte("{}") },
	} {
		c := config(&proxmoxtest.Server{})
		change(&c)
		if _, err := proxmox.New(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

// Who promotes while somebody else changes the template does not undo that.
func TestPromotionReadsAgainWhatSomebodyChanged(t *testing.T) {
	t.Parallel()
	s := proxmoxtest.Start(t)
	out, err := run(t, target(t, config(s)), uploadtest.Image(t, store.QCOW2, "prod-worker", 5))
	if err != nil {
		t.Fatal(err)
	}
	id := out.Object.ID
	second, err := run(t, target(t, config(s)), uploadtest.Image(t, store.QCOW2, "prod-worker", 6))
	if err != nil {
		t.Fatal(err)
	}
	c := config(s)
	c.Client = &http.Client{Transport: &meanwhile{s: s, id: id}}
	if err := target(t, c).Promote(t.Context(), out.Object); err != nil {
		t.Error(err)
	}
	if got := s.Config(id); got["name"] != "prod-worker" || got["memory"] != "1024" {
		t.Errorf("the template is %v", got)
	}
	if got := s.Config(second.Object.ID); got["name"] != "prod-worker-"+second.Object.Version {
		t.Errorf("the former one is called %s", got["name"])
	}
}

// meanwhile changes a machine before the first change that it lets through.
type meanwhile struct {
	s    *proxmoxtest.Server
	id   string
	once sync.Once
}

func (m *meanwhile) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPut {
		m.once.Do(func() { m.s.Change(m.id, "memory", "1024") })
	}
	return http.DefaultTransport.RoundTrip(r)
}

// making waits until a machine is being made, and returns its VMID.
func making(s *proxmoxtest.Server) string {
	for {
		for _, thing := range s.Things() {
			if w := strings.Fields(thing); w[0] == "VM" && w[len(w)-1] == "create" {
				return w[1]
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// An upload is called off while Proxmox VE makes the disk: the cleanup does not wait
// for that.
func TestCleanupStopsWhatMakesTheMachine(t *testing.T) {
	t.Parallel()
	s := proxmoxtest.Start(t)
	s.Hold()
	tg, img, state := target(t, config(s)), uploadtest.Image(t, store.QCOW2, "prod-worker", 5), t.TempDir()
	j, err := upload.OpenJournal(state, upload.Key{Target: "pve", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := upload.Run(ctx, tg, img, j, func(upload.Event) {}, true)
		done <- err
	}()
	making(s)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was called off", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := upload.Cleanup(t.Context(), tg, state, "pve"); err != nil {
		t.Error(err)
	}
	if left := s.Things(); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}

// A cleanup on one machine leaves the upload alone that another machine is at, though
// both would make the same VM.
func TestCleanupLeavesTheUploadOfAnotherMachine(t *testing.T) {
	t.Parallel()
	s := proxmoxtest.Start(t)
	s.Hold()
	tg, img, state := target(t, config(s)), uploadtest.Image(t, store.QCOW2, "prod-worker", 5), t.TempDir()
	done := make(chan error, 1)
	go func() {
		_, err := run(t, tg, img)
		done <- err
	}()
	id := making(s)
	ours, err := upload.OpenJournal(state, upload.Key{Target: "pve", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	// What is left by a process that died before it had an answer.
	if err := ours.Write(upload.Leftover{Kind: "machine", Name: id, Note: "ours"}); err != nil {
		t.Fatal(err)
	}
	if err := ours.Close(); err != nil {
		t.Fatal(err)
	}
	cleaned := make(chan error, 1)
	go func() {
		_, err := upload.Cleanup(t.Context(), tg, state, "pve")
		cleaned <- err
	}()
	s.Release()
	if err := errors.Join(<-done, <-cleaned); err != nil {
		t.Error(err)
	}
	if left := s.Things(); len(left) != 1 || !strings.Contains(left[0], "VM "+id) {
		t.Errorf("there is %v", left)
	}
}

// A clone of a version has its tags and notes. It is no half of an upload.
func TestCloneIsNoHalfOfAnUpload(t *testing.T) {
	t.Parallel()
	s := proxmoxtest.Start(t)
	tg := target(t, config(s))
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	out, err := run(t, tg, img)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Clone(out.Object.ID); err != nil {
		t.Fatal(err)
	}
	if err := tg.Delete(t.Context(), out.Object); !errors.Is(err, upload.ErrInUse) {
		t.Errorf("deleting the current one: got %v, want ErrInUse", err)
	}
	again, err := run(t, tg, img)
	if err != nil || !again.Unchanged {
		t.Errorf("again: %+v, %v", again, err)
	}
	all, err := tg.List(t.Context(), "")
	if err != nil || len(all) != 1 {
		t.Errorf("listed is %+v, %v", all, err)
	}
}

// What nobody has finished for a day is broken, what was begun just now is not.
func TestHalfMachineOfYesterdayIsBroken(t *testing.T) {
	t.Parallel()
	s := proxmoxtest.Start(t)
	notes := func(at time.Time, id int) map[string]string {
		return map[string]string{"name": "prod-worker-0", "tags": "imagectl", "description": `
    {"audit":{"imagectl":"1","name":"prod-worker","version":"0","digest":"sha256:00"},"vmid":` + strconv.Itoa(id) + `,"uploaded":"` + at.UTC().Format(time.RFC3339) + `","mark":"00"}`}
	}
	s.Put(90001, notes(time.Now().Add(-25*time.Hour), 90001), false)
	s.Put(90002, notes(time.Now(), 90002), false)
	if _, err := upload.Cleanup(t.Context(), target(t, config(s)), t.TempDir(), "pve"); err != nil {
		t.Fatal(err)
	}
	if left := s.Things(); len(left) != 1 || !strings.HasPrefix(left[0], "VM 90002") {
		t.Errorf("left is %v", left)
	}
	// Only the upload that made it cleans it up.
	for mark, want := range map[string]int{"ours": 1, "00": 0} {
		s.Put(90002, notes(time.Now(), 90002), false)
		err := target(t, config(s)).Clean(t.Context(), upload.Leftover{Kind: "machine", Name: "90002", Note: mark})
		if left := s.Things(); err != nil || len(left) != want {
			t.Errorf("cleaning up after %s: %v, left is %v", mark, err, left)
		}
	}
}

// What the real one refuses is refused by the one of these tests, too.
func TestNodeRefuses(t *testing.T) {
	t.Parallel()
	s := proxmoxtest.Start(t)
	s.Put(200, map[string]string{"name": "foreign"}, true)
	for _, tt := range []struct {
		name, method, path string
		form               url.Values
		status             int
		want               string
	}{
		{"args by a token", "POST", "/qemu", url.Values{"vmid": {"300"}, "name": {"a"}, "args": {"-fw_cfg x"}}, 500, "only root can set 'args' config"},
		{"a name that is none", "POST", "/qemu", url.Values{"vmid": {"300"}, "name": {"a_b"}}, 400, "does not look like a valid DNS name"},
		{"a disk from a path", "POST", "/qemu", url.Values{"vmid": {"300"}, "name": {"a"}, "scsi0": {"vmpool:0,import-from=/srv/disk.raw"}}, 403, "/srv/disk.raw"},
		{"a VMID that is taken", "POST", "/qemu", url.Values{"vmid": {"200"}, "name": {"a"}, "scsi0": {"vmpool:0,import-from=local:import/a.raw"}}, 500, "VM 200 already exists"},
		{"a template of a template", "POST", "/qemu/200/template", nil, 500, "you can't convert a template to a template"},
		{"a configuration that changed", "PUT", "/qemu/200/config", url.Values{"name": {"b"}, "digest": {"00"}}, 500, "detected modified configuration"},
		{"an upload without a file", "POST", "/storage/local/upload", url.Values{"content": {"import"}}, 501, "data too large"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, s.URL+"/api2/json/nodes/pve1"+tt.path, strings.NewReader(tt.form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Authorization", "PVEAPIToken="+proxmoxtest.Token+"="+proxmoxtest.Secret)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.status || !strings.Contains(b.String(), tt.want) {
			t.Errorf("%s: %d %s", tt.name, resp.StatusCode, b.String())
		}
	}
}
