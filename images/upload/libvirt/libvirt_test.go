package libvirt

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirtxml"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

var update = flag.Bool("update", false, "rewrite testdata")

func testImage() upload.Image {
	return upload.Image{
		Name: "demo-worker", Version: "4593.2.1-1a2b3c4d", Digest: strings.Repeat("1a", 32), Format: store.QCOW2,
		Size: 700, SHA256: strings.Repeat("2b", 32), RawSize: 8 << 30, Labels: map[string]string{"flatcar": "4593.2.1"},
	}
}

func sum(t *testing.T, f *os.File, size int64) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func TestDomains(t *testing.T) {
	for _, c := range []struct {
		name string
		Config
	}{
		{"plain", Config{}},
		{"uefi-network-node", Config{Firmware: UEFI, Network: "rack", CPUs: 4, Memory: 8192, Node: `{"cluster":"demo"}`}},
		{"emulated-bridge", Config{Emulate: true, Bridge: "br0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.Pool = "default"
			c.Now = func() time.Time { return time.Unix(1_790_000_000, 0) }
			to, err := New(c.Config)
			if err != nil {
				t.Fatal(err)
			}
			img := testImage()
			m := to.metadata(img, "demo-worker.qcow2")
			got, err := to.domain(m, "6f2c9d1e-0000-4000-8000-000000000001")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", c.name+".xml")
			if *update {
				if err := os.WriteFile(golden, []byte(got+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(got+"\n", "\n"), strings.Split(string(want), "\n")); diff != "" {
				t.Error(diff)
			}
			// What libvirt gives back is read as it was written.
			var read libvirtxml.Domain
			if err := read.Unmarshal(got); err != nil {
				t.Fatal(err)
			}
			back, found, err := ours(read.Metadata)
			if err != nil || !found || back.Digest != m.Digest || len(back.Labels) != len(m.Labels) {
				t.Errorf("the metadata is read as %+v, %v, %v", back, found, err)
			}
			stable, err := to.template(back, "6f2c9d1e-0000-4000-8000-000000000002", "4593.2.0-0a0b0c0d")
			if err != nil {
				t.Fatal(err)
			}
			settings, err := to.settings()
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{`settings="` + settings + `"`, "<name>demo-worker</name>", `kind="template"`, `previous="4593.2.0-0a0b0c0d"`, "<readonly></readonly>"} {
				if !strings.Contains(stable, want) {
					t.Errorf("the template lacks %s:\n%s", want, stable)
				}
			}
		})
	}
}

func TestOursAmongOthers(t *testing.T) {
	to, err := New(Config{Pool: "default", Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	about, err := to.metadata(testImage(), "v").encode()
	if err != nil {
		t.Fatal(err)
	}
	const foreign = `<app:image xmlns:app="urn:others"><app:image digest="0"/></app:image>`
	for text, want := range map[string]bool{"": false, foreign: false, foreign + about.XML: true} {
		if _, got, err := ours(&libvirtxml.DomainMetadata{XML: text}); err != nil || got != want {
			t.Errorf("ours(%s) = %v, %v, want %v", text, got, err, want)
		}
	}
	if _, _, err := ours(&libvirtxml.DomainMetadata{XML: "<image"}); err == nil {
		t.Error("half an element is read")
	}
}

func TestWhoUsesAVolume(t *testing.T) {
	for text, want := range map[string]bool{
		`<disk type='volume'><source pool='default' volume='v'/></disk>`:                                                                           true,
		`<disk type='volume'><source pool='other' volume='v'/></disk>`:                                                                             false,
		`<disk type='file'><source file='/pool/v'/></disk>`:                                                                                        true,
		`<disk type='block'><source dev='/pool/v'/></disk>`:                                                                                        true,
		`<disk type='file'><source file='/pool/w'/></disk>`:                                                                                        false,
		`<disk type='file'><source file='/pool/w'/><backingStore type='file'><format type='qcow2'/><source file='/pool/v'/></backingStore></disk>`: true,
	} {
		var d libvirtxml.Domain
		if err := d.Unmarshal(`<domain><devices>` + text + `</devices></domain>`); err != nil {
			t.Fatal(err)
		}
		if got := uses(d, "/pool/v", "default", "v"); got != want {
			t.Errorf("uses(%s) = %v, want %v", text, got, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	for uri, want := range map[string]string{
		"qemu:///system":                          "qemu:///system",
		"qemu:///session":                         "qemu:///session",
		"qemu:///session?socket=/run/x":           "qemu:///session",
		"qemu+ssh://root@host.example.org/system": "qemu:///system",
		"qemu+tls://host.example.org/system":      "qemu:///system",
		"qemu+ssh://host/session?socket=/run/x":   "qemu:///session",
		"qemu+ssh://host/system?keyfile=/k":       "qemu:///system",
		"qemu+tls://host/system?pkipath=/k":       "qemu:///system",
	} {
		dial, driver, err := Address(uri, Local{RuntimeDir: "/run/user/1000"})
		if err != nil || dial == nil || driver != want {
			t.Errorf("Address(%s) = %s, %v, want %s", uri, driver, err, want)
		}
	}
	for _, uri := range []string{"", "qemu", "xen:///system", "qemu+tcp://host/system", "qemu:///", "qemu+ssh:///system", "qemu+ssh://me:hunter2@host/system", "test:///default",
		"qemu+ssh://host/session", "qemu+tls://host/system?no_verify=1", "qemu+ssh://host/system?no_verify=1", "qemu:///system?pkipath=/k"} {
		if _, _, err := Address(uri, Local{}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Address(%s) = %v, want a refusal", uri, err)
		}
	}
}

func TestKindsOfFailures(t *testing.T) {
	for _, c := range []struct {
		err  error
		kind error
		want string
	}{
		{libvirt.Error{Code: uint32(libvirt.ErrAuthFailed), Message: "authentication failed: access denied by policy"}, upload.ErrAuth, "trying: not allowed: authentication failed: access denied by policy"},
		{libvirt.Error{Code: uint32(libvirt.ErrSystemError), Message: "cannot write data to file: No space left on device"}, upload.ErrSpace, "trying: no space: cannot write data to file: No space left on device"},
		{libvirt.Error{Code: uint32(libvirt.ErrNoStoragePool), Message: "Storage pool not found"}, upload.ErrNotFound, "trying: not found: Storage pool not found"},
		{libvirt.Error{Code: uint32(libvirt.ErrInternalError), Message: "internal error"}, upload.ErrServer, "trying: server failed: internal error"},
		{fmt.Errorf("dial: %w", fs.ErrPermission), upload.ErrAuth, "trying: not allowed: dial: permission denied"},
		{io.ErrUnexpectedEOF, upload.ErrServer, "trying: server failed: unexpected EOF"},
	} {
		if got := failed(t.Context(), "trying", c.err); !errors.Is(got, c.kind) || got.Error() != c.want {
			t.Errorf("got %v, want %s", got, c.want)
		}
	}
	if failed(t.Context(), "trying", nil) != nil {
		t.Error("no error has become one")
	}
}

// Every option of the template makes other settings; what is no option makes none.
func TestSettingsTellOptionsApart(t *testing.T) {
	all := map[string]string{}
	for name, c := range map[string]Config{
		"plain": {}, "network": {Network: "rack"}, "bridge": {Bridge: "rack"}, "CPUs": {CPUs: 3}, "memory": {Memory: 8192},
		"firmware": {Firmware: UEFI}, "emulate": {Emulate: true}, "node": {Node: "a"}, "another node": {Node: "b"},
	} {
		c.Pool = "default"
		to, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := to.settings()
		if err != nil || got == "" || all[got] != "" {
			t.Errorf("%s has the settings %q, as %q has; %v", name, got, all[got], err)
		}
		all[got] = name
		c.Now, c.Driver = time.Now, "qemu:///system"
		if to, err = New(c); err != nil {
			t.Fatal(err)
		}
		if again, err := to.settings(); err != nil || again != got {
			t.Errorf("%s has the settings %q and then %q, %v", name, got, again, err)
		}
	}
}

// What is read back of a raw volume is the disk, whichever file is compared; of another
// one it is its own file.
func TestWhatIsReadBack(t *testing.T) {
	qcow2 := testImage()
	raw := qcow2
	raw.Format, raw.SHA256 = store.Raw, raw.Digest
	changed := strings.Repeat("3c", 32)
	for _, c := range []struct {
		name      string
		made, now upload.Image
		sum       string
		want      upload.Result
	}{
		{"the same qcow2", qcow2, qcow2, qcow2.SHA256, upload.Good},
		{"a qcow2 that was changed", qcow2, qcow2, changed, upload.Bad},
		{"raw, and a qcow2 here", raw, qcow2, raw.Digest, upload.Good},
		{"raw that was changed, and a qcow2 here", raw, qcow2, changed, upload.Bad},
		{"qcow2, and raw here", qcow2, raw, qcow2.SHA256, upload.Unprovable},
		{"qcow2 that was changed, and raw here", qcow2, raw, changed, upload.Bad},
	} {
		m := metadata{Format: c.made.Format, SHA256: c.made.SHA256}
		if got := readBack(m, c.sum, c.now); got.Result != c.want || got.Detail == "" {
			t.Errorf("%s: got %+v, want %s", c.name, got, c.want)
		}
	}
}

// A volume of an upload that lost its journal is told by its name and its age, and never
// one that a domain of ours has.
func TestVolumesThatNobodyHas(t *testing.T) {
	const ours = "demo-worker_4593.2.1-1a2b3c4d.0a0b0c0d.qcow2"
	now := time.Unix(1_790_000_000, 0)
	old, young := fmt.Sprintf("%d.123456789", now.Add(-25*time.Hour).Unix()), fmt.Sprintf("%d.0", now.Add(-23*time.Hour).Unix())
	mine := []*known{{metadata: metadata{Pool: "default", Volume: "demo-worker_4593.2.1-1a2b3c4d.ffffffff.raw"}}}
	for _, c := range []struct {
		name, mtime, pool string
		want              bool
	}{
		{ours, old, "default", true},
		{ours, young, "default", false},
		{ours, "", "default", false},
		{ours, "yesterday", "default", false},
		{mine[0].Volume, old, "default", false},
		{mine[0].Volume, old, "other", true},
		{"demo-worker_4593.2.1-1a2b3c4d.qcow2", old, "default", false},
		{"demo-worker.0a0b0c0d.qcow2", old, "default", false},
		{"w1.qcow2", old, "default", false},
		{"a/" + ours, old, "default", false},
	} {
		o, got := lostVolume(c.name, c.mtime, mine, c.pool, now)
		if got != c.want || got && (!o.Broken || o.Name != "demo-worker" || o.Version != "4593.2.1-1a2b3c4d" || o.ID != "volume/"+c.name) {
			t.Errorf("%s of %q in %s: %+v, %t, want %t", c.name, c.mtime, c.pool, o, got, c.want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for want, c := range map[string]Config{
		"reading the storage pool: there is none":                                    {},
		"reading the template's card: network rack and bridge br0; want one of them": {Pool: "p", Network: "rack", Bridge: "br0"},
		`reading the firmware "efi": want bios or uefi`:                              {Pool: "p", Firmware: "efi"},
	} {
		if _, err := New(c); err == nil || err.Error() != want {
			t.Errorf("New = %v, want %s", err, want)
		}
	}
}
