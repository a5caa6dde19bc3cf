package vsphere_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/imagectl/imagectl/images/ova"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/pin"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
	"github.com/imagectl/imagectl/images/upload/vsphere"
	"github.com/imagectl/imagectl/images/vmdk"
)

func run(ctx context.Context, t *testing.T, tg upload.Target, img upload.Image) (upload.Outcome, error) {
	t.Helper()
	dir := t.TempDir()
	j, err := upload.OpenJournal(dir, upload.Key{Target: "vc", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	out, err := upload.Run(ctx, tg, img, j, func(upload.Event) {}, true)
	if cerr := j.Close(); cerr != nil {
		t.Fatal(cerr)
	}
	return out, err
}

// archive packs an image's VMDK as imagectl build does.
func archive(t *testing.T, img upload.Image) upload.Image {
	t.Helper()
	f, err := os.Create(t.TempDir() + "/disk.ova")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	err = ova.Write(t.Context(), f, ova.Machine{Name: img.Name, Version: img.Version}, ova.Disk{
		Content: io.NewSectionReader(img.File, 0, img.Size), Size: img.Size, SHA256: img.SHA256, Capacity: vmdk.Capacity(img.RawSize),
	}, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	img.Format, img.File, img.Size, img.SHA256 = store.OVA, f, int64(len(b)), hex.EncodeToString(sum[:])
	return img
}

// The simulator compares nothing, so the bytes that went to the host are kept here.
type tapped struct {
	base http.RoundTripper
	got  *[]byte
	head *http.Header
}

func (p tapped) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.Contains(r.URL.Path, "/nfc/") {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		if r.ContentLength != int64(len(b)) {
			return nil, errors.New("the length is wrong")
		}
		*p.got, *p.head = b, r.Header.Clone()
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(strings.NewReader(string(b)))
	}
	return p.base.RoundTrip(r)
}

func TestTemplateHasTheDiskAndWhatAMachineNeeds(t *testing.T) {
	t.Parallel()
	disk := uploadtest.Image(t, store.VMDK, "prod-worker", 5)
	want, err := os.ReadFile(disk.File.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range []upload.Image{disk, archive(t, disk)} {
		v := startVCenter(t, false)
		c := v.config()
		c.CPUs, c.MemoryMB = 4, 8192
		var got []byte
		var head http.Header
		c.Transport = tapped{c.Transport, &got, &head}
		out, err := run(t.Context(), t, v.target(c), img)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) || head.Get("Content-Type") != "application/x-vnd.vmware-streamVmdk" {
			t.Errorf("%s: %d bytes arrived as %q, want the VMDK of %d", img.Format, len(got), head.Get("Content-Type"), len(want))
		}
		m := v.machine(out.Object.ID)
		if m.Name != "prod-worker" || !m.Config.Template || m.Config.Hardware.NumCPU != 4 || m.Config.Hardware.MemoryMB != 8192 || m.Config.Firmware != "efi" {
			t.Errorf("%s: the template is %s, template %t, %d CPUs, %d MB, %s", img.Format, m.Name, m.Config.Template, m.Config.Hardware.NumCPU, m.Config.Hardware.MemoryMB, m.Config.Firmware)
		}
		settings := map[string]any{}
		for _, o := range m.Config.ExtraConfig {
			settings[o.GetOptionValue().Key] = o.GetOptionValue().Value
		}
		// base64 of {"cluster":"prod"}
		for k, v := range map[string]string{"guestinfo.imagectl.digest": "sha256:" + img.Digest, "guestinfo.imagectl.role": "worker", "guestinfo.imagectl.node": "eyJjbHVzdGVyIjoicHJvZCJ9"} {
			if settings[k] != v {
				t.Errorf("%s: %s is %v, want %s", img.Format, k, settings[k], v)
			}
		}
		if !strings.Contains(m.Config.Annotation, img.Digest) {
			t.Errorf("%s: the notes are %q", img.Format, m.Config.Annotation)
		}
	}
}

// slow holds what goes to the host until it is told, and says when a sign of life
// has arrived.
type slow struct {
	base  http.RoundTripper
	alive chan struct{}
}

func (s slow) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.Contains(r.URL.Path, "/nfc/") {
		for range 3 {
			select {
			case <-s.alive:
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		}
		return s.base.RoundTrip(r)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(strings.NewReader(string(b)))
	resp, err := s.base.RoundTrip(r)
	if err == nil && strings.Contains(string(b), "<HttpNfcLeaseProgress ") {
		select {
		case s.alive <- struct{}{}:
		case <-r.Context().Done():
		}
	}
	return resp, err
}

func TestLeaseIsKeptAliveWhileTheDiskIsSent(t *testing.T) {
	t.Parallel()
	v := startVCenter(t, false)
	c := v.config()
	c.Transport, c.Beat = slow{c.Transport, make(chan struct{})}, wait
	if _, err := run(t.Context(), t, v.target(c), uploadtest.Image(t, store.VMDK, "prod-worker", 5)); err != nil {
		t.Error(err)
	}
}

// dead refuses signs of life, and the disk never arrives.
type dead struct{ base http.RoundTripper }

func (d dead) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.Contains(r.URL.Path, "/nfc/") {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(b), "<HttpNfcLeaseProgress ") {
		return nil, errors.New("the lease is over")
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(strings.NewReader(string(b)))
	return d.base.RoundTrip(r)
}

func TestSendingEndsWithTheLease(t *testing.T) {
	t.Parallel()
	v := startVCenter(t, false)
	c := v.config()
	c.Transport, c.Beat = dead{c.Transport}, wait
	_, err := run(t.Context(), t, v.target(c), uploadtest.Image(t, store.VMDK, "prod-worker", 5))
	if !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "the lease is over") {
		t.Errorf("got %v, want ErrServer with the reason", err)
	}
}

func TestSelfSignedVCenterIsTrustedByItsFingerprintAlone(t *testing.T) {
	t.Parallel()
	v := startVCenter(t, true)
	sum := sha256.Sum256(v.server.Certificate().Raw)
	for _, tt := range []struct {
		name string
		pin  pin.Digest
		want error
	}{
		{"no pin", nil, upload.ErrServer},
		{"another server's", make(pin.Digest, sha256.Size), pin.ErrMismatch},
		{"its own", sum[:], nil},
	} {
		transport := pin.New(&http.Transport{})
		if tt.pin != nil {
			transport.Pin(v.server.URL.Host, tt.pin)
		}
		c := v.config()
		c.Transport, c.Trust = transport, transport.Name
		_, err := v.target(c).List(t.Context(), "")
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestVCenterSaysWhy(t *testing.T) {
	t.Parallel()
	v := startVCenter(t, false)
	img := uploadtest.Image(t, store.VMDK, "prod-worker", 5)
	for _, tt := range []struct {
		name   string
		change func(*vsphere.Config)
		kind   error
		want   string
	}{
		{"a wrong password", func(c *vsphere.Config) { c.Password = "wrong" }, upload.ErrAuth, "Login failure"},
		{"no such datastore", func(c *vsphere.Config) { c.Datastore = "nowhere" }, upload.ErrNotFound, "looking for the datastore DC0/datastore/nowhere"},
		{"no such pool", func(c *vsphere.Config) { c.Pool = "nowhere" }, upload.ErrNotFound, "looking for the pool DC0/host/nowhere/Resources"},
		{"not a vCenter", func(c *vsphere.Config) { c.Endpoint += "/nothing" }, upload.ErrServer, "asking"},
	} {
		c := v.config()
		tt.change(&c)
		_, err := run(t.Context(), t, v.target(c), img)
		if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %v with %q", tt.name, err, tt.kind, tt.want)
		}
	}
	if left := v.names(); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
	// What was cloned from a version has its settings.
	like := types.VirtualMachineConfigSpec{Name: "prod-worker"}
	for _, kv := range [][2]string{{"imagectl", "1"}, {"name", "prod-worker"}, {"version", img.Version}, {"digest", "sha256:" + img.Digest}} {
		like.ExtraConfig = append(like.ExtraConfig, &types.OptionValue{Key: "guestinfo.imagectl." + kv[0], Value: kv[1]})
	}
	v.add(like)
	if _, err := run(t.Context(), t, v.target(v.config()), img); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("a name that somebody's machine has: got %v, want ErrTaken", err)
	}
	if left := v.names(); len(left) != 1 {
		t.Errorf("left is %v", left)
	}
}

// A machine that was cloned from a template, and one that is current, are not what
// cleaning and deleting are for.
func TestMachinesOfOthersAreNotTouched(t *testing.T) {
	t.Parallel()
	v := startVCenter(t, false)
	tg := v.target(v.config())
	out, err := run(t.Context(), t, tg, uploadtest.Image(t, store.VMDK, "prod-worker", 5))
	if err != nil {
		t.Fatal(err)
	}
	if err := tg.Delete(t.Context(), out.Object); !errors.Is(err, upload.ErrInUse) {
		t.Errorf("deleting the current template: got %v, want ErrInUse", err)
	}
	if err := tg.Delete(t.Context(), upload.Object{ID: "vm-1"}); !errors.Is(err, upload.ErrNotFound) {
		t.Errorf("deleting what is not there: got %v, want ErrNotFound", err)
	}
	for _, left := range []upload.Leftover{{Kind: "import", Name: "prod-worker_0.00000000"}, {Kind: "import", Name: "somebody"}} {
		v.add(types.VirtualMachineConfigSpec{Name: left.Name})
		before := len(v.names())
		if err := tg.Clean(t.Context(), left); err != nil || len(v.names()) != before {
			t.Errorf("cleaning %s, which is not ours: %v, left are %v", left.Name, err, v.names())
		}
	}
}
