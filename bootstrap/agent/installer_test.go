package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/imagectl/imagectl/bootstrap/api"
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
	l.wait("the end", func(r *api.SyncRequest) bool { return r.GetInstalled() })
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
