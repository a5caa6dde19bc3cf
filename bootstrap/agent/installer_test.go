package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/efiboot"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/images/extent"
)

// order serves a small image with a ROOT partition and returns the order for it.
func (l *lab) order() *api.Install {
	const mib = 1 << 20
	img := make([]byte, 6*mib)
	copy(img[512:], "EFI PART")
	binary.LittleEndian.PutUint64(img[512+72:], 2)
	binary.LittleEndian.PutUint32(img[512+80:], 128)
	binary.LittleEndian.PutUint32(img[512+84:], 128)
	e := img[1024:]
	e[0] = 1
	binary.LittleEndian.PutUint64(e[32:], 2*mib/512)
	binary.LittleEndian.PutUint64(e[40:], 4*mib/512-1)
	for i, c := range utf16.Encode([]rune("ROOT")) {
		binary.LittleEndian.PutUint16(e[56+2*i:], c)
	}
	esp := img[1024+128:]
	copy(esp, "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b")
	copy(esp[16:], "unique partition")
	binary.LittleEndian.PutUint64(esp[32:], 5*mib/512)
	binary.LittleEndian.PutUint64(esp[40:], 6*mib/512-1)
	copy(img[2*mib:], "file system")
	var raw, blob bytes.Buffer
	if err := extent.Write(context.Background(), &raw, bytes.NewReader(img), int64(len(img))); err != nil {
		l.t.Fatal(err)
	}
	rawSum := sha256.Sum256(raw.Bytes())
	if err := extent.Compress(context.Background(), &blob, &raw); err != nil {
		l.t.Fatal(err)
	}
	sum := sha256.Sum256(blob.Bytes())
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob.Bytes()))
	}))
	l.t.Cleanup(srv.Close)
	l.put("/sys/block/vda/size", "16384\n")
	l.put("/sys/block/vda/device/model", "TEST\n")
	l.put("/dev/vda", strings.Repeat("\xff", 8*mib))
	l.node.Program("mount", func(host.Command) ([]byte, error) { return nil, nil })
	return &api.Install{
		ImageUrl: srv.URL + "/x.raw.zst", ImageSha256: hex.EncodeToString(sum[:]), ImageSize: uint64(blob.Len()), Compression: "zstd",
		RawSize: uint64(len(img)), RawSha256: hex.EncodeToString(rawSum[:]), Disk: &api.DiskRule{Path: "/dev/vda"},
		Machine: "cp1", NodeConfig: []byte("{}\n"), ArmingId: "arming-1",
	}
}

func TestAnInstallerInstallsReportsAndReboots(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	stop := l.start(nodeconf.Installer)
	l.wait("a report", func(r *api.SyncRequest) bool { return len(r.GetFacts().GetInterfaces()) >= 0 })
	if ran := l.node.Ran(); len(ran) != 0 {
		t.Errorf("without a directive it ran %v", ran)
	}
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Install{Install: l.order()}})
	if got := stepsOf(l.wait("the end", func(r *api.SyncRequest) bool { return r.GetInstalled() })); got != "install=done" {
		t.Errorf("a machine without UEFI has the steps %s", got)
	}
	// The installed system is this machine: same key, same certificate.
	for _, name := range []string{KeyPath, CertPath} {
		if got, want := l.read("/run/imagectl/root"+name), l.read(name); got == "" || got != want {
			t.Errorf("%s differs in the installed system", name)
		}
	}
	l.mu.Lock()
	progress := l.progress
	l.mu.Unlock()
	if progress < 4 {
		t.Errorf("got %d reports of progress", progress)
	}
	// Asked again for the same arming, it does not write again.
	l.put("/dev/vda", strings.Repeat("\xff", 8<<20))
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Install{Install: &api.Install{ArmingId: "arming-1"}}})
	l.heard()
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Reboot{Reboot: &api.Reboot{Reason: "installed"}}})
	waitFor(l, "the reboot", func() (int, bool) { return 0, strings.Contains(l.log.String(), "rebooting") })
	waitFor(l, "systemctl", func() (int, bool) {
		ran := l.node.Ran()
		return 0, len(ran) > 0 && ran[len(ran)-1] == "systemctl reboot"
	})
	stop()
	if l.read("/dev/vda")[0] != 0xff {
		t.Error("it wrote the disk twice")
	}
}

func TestARefusedInstallationIsReportedOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	order := l.order()
	order.Disk = &api.DiskRule{Serial: "other"}
	l.start(nodeconf.Installer)
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Install{Install: order}})
	r := l.wait("the failure", func(r *api.SyncRequest) bool { return r.GetFailure() != "" })
	if want := `no disk matches the rule (serial other); this machine has /dev/vda (8388608 bytes, model "TEST", serial "")`; r.GetFailure() != want || r.GetInstalled() {
		t.Errorf("got %q, want %q", r.GetFailure(), want)
	}
	if got := stepsOf(r); got != "install=failed" {
		t.Errorf("got %s", got)
	}
	if !strings.Contains(l.read("/dev/console"), "imagectl: installing failed: no disk matches the rule") {
		t.Error("the console does not say it")
	}
	// A new arming is a new chance.
	next := l.order()
	next.ArmingId = "arming-2"
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Install{Install: next}})
	l.wait("the end", func(r *api.SyncRequest) bool { return r.GetInstalled() && r.GetFailure() == "" })
}

// efivars writes firmware variables: a network entry that this boot came from,
// and another one.
func (l *lab) efivars(more map[string]string) {
	const card = "\x01\x00\x00\x00\x2a\x00N\x00\x00\x00\x03\x0b\x26\x00"
	vars := map[string]string{
		"BootOrder": "\x02\x00\x03\x00", "BootCurrent": "\x02\x00",
		"Boot0002": card + strings.Repeat("\x00", 34) + "\x7f\xff\x04\x00", "Boot0003": card + strings.Repeat("\x01", 34) + "\x7f\xff\x04\x00",
	}
	maps.Copy(vars, more)
	for name, content := range vars {
		l.put("/sys/firmware/efi/efivars/"+name+"-8be4df61-93ca-11d2-aa0d-00e098032b8c", "\x07\x00\x00\x00"+content)
	}
}

func (l *lab) efivar(name string) string {
	return l.read("/sys/firmware/efi/efivars/" + name + "-8be4df61-93ca-11d2-aa0d-00e098032b8c")
}

func TestAnInstallationPutsTheDiskBehindTheNetworkEntry(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.efivars(nil)
	l.start(nodeconf.Installer)
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Install{Install: l.order()}})
	r := l.wait("the end", func(r *api.SyncRequest) bool { return r.GetInstalled() })
	if got, want := stepsOf(r), "install=done boot-order=done"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := l.efivar("BootOrder"), "\x07\x00\x00\x00\x02\x00\x00\x00\x03\x00"; got != want {
		t.Errorf("got the order %q, want %q", got, want)
	}
	b := l.efivar("Boot0000")
	if len(b) < 4 {
		t.Fatalf("got Boot0000 %q", b)
	}
	o, err := efiboot.Parse([]byte(b[4:]))
	if err != nil {
		t.Fatal(err)
	}
	want := efiboot.DiskOption("imagectl cp1/disk", efiboot.Partition{Number: 2, First: 5 << 11, Sectors: 1 << 11, GUID: [16]byte([]byte("unique partition"))}, efiboot.Program(runtime.GOARCH))
	if d := cmp.Diff(o, want); d != "" {
		t.Error(d)
	}
	if log := l.log.String(); !strings.Contains(log, "before=0002,0003 after=0002,0000,0003") {
		t.Errorf("the log does not say it:\n%s", log)
	}
}

func TestFirmwareThatRefusesEndsNoInstallation(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.efivars(map[string]string{"BootOrder": "\x02"})
	l.start(nodeconf.Installer)
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Install{Install: l.order()}})
	r := l.wait("the end", func(r *api.SyncRequest) bool { return r.GetInstalled() })
	if got, want := stepsOf(r), "install=done boot-order=failed"; got != want || r.GetFailure() != "" {
		t.Fatalf("got %s, %q, want %s", got, r.GetFailure(), want)
	}
	want := "reading the firmware's variable BootOrder: 1 bytes are no list of 16-bit numbers: " + slowBoot
	if got := r.GetSteps()[1].GetDetail(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !strings.Contains(l.read("/dev/console"), "imagectl: the firmware's boot order stays as it is: ") {
		t.Error("the console does not say it")
	}
}
