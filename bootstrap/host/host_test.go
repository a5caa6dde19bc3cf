package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
)

func put(t *testing.T, h *host.Host, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if err := h.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteFileReplacesWholeAndCleansUpAfterACrash(t *testing.T) {
	t.Parallel()
	h := &host.Host{Root: t.TempDir()}
	// What a crash between two system calls leaves behind.
	put(t, h, map[string]string{"/etc/.secret.tmp": "half"})
	for _, want := range []string{"first", "second"} {
		if err := h.WriteFile("/etc/secret", []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := h.ReadFile("/etc/secret")
		if err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	if mode, err := h.Mode("/etc/secret"); err != nil || mode != 0o600 {
		t.Errorf("got mode %v, %v, want 0600", mode, err)
	}
	entries, err := os.ReadDir(filepath.Join(h.Root, "etc"))
	if err != nil || len(entries) != 1 {
		t.Errorf("got %v, %v, want only the file itself", entries, err)
	}
	if err := h.WriteFile("/etc/secret/below", nil, 0o600); err == nil || !strings.HasPrefix(err.Error(), "writing /etc/secret/below: ") {
		t.Errorf("got %v", err)
	}
}

func TestRunErrorsSayWhatRanAndWhatItPrinted(t *testing.T) {
	t.Parallel()
	h := &host.Host{}
	out, err := h.Run(context.Background(), host.Command{Argv: []string{"sh", "-c", "echo seen; echo bad >&2; exit 4"}})
	var run *host.RunError
	if !errors.As(err, &run) || string(out) != "seen\n" {
		t.Fatalf("got %q, %v", out, err)
	}
	if got, want := err.Error(), "running sh -c echo seen; echo bad >&2; exit 4: exit status 4: seen\nbad"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if out, err := h.Run(context.Background(), host.Command{Argv: []string{"cat"}, Stdin: []byte("in")}); err != nil || string(out) != "in" {
		t.Errorf("got %q, %v", out, err)
	}
	_, err = h.Run(context.Background(), host.Command{Argv: []string{"sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x; exit 1"}})
	if err == nil || len(err.Error()) > 1024 {
		t.Errorf("got an error of %d bytes for a program that babbles", len(fmt.Sprint(err)))
	}
	err = &host.RunError{Argv: []string{"kubeadm"}, Output: []byte("\x1b[0;37mCONFIG_INET\x1b[0m: " + strings.Repeat("\x1b[0;32menabled\x1b[0m\n", 200) + "error: why\n"), Cause: errors.New("exit status 1")}
	if strings.Contains(err.Error(), "\x1b") || !strings.HasSuffix(err.Error(), "enabled\nerror: why") {
		t.Errorf("got %q", err.Error())
	}
}

// What goes to the server must be UTF-8: protobuf refuses anything else, and the
// whole report with it. Firmware has bytes of its own, and cutting a program's
// output can cut a letter.
func TestWhatIsReportedIsUTF8(t *testing.T) {
	t.Parallel()
	h := &host.Host{Root: t.TempDir()}
	put(t, h, map[string]string{"/sys/class/dmi/id/product_serial": "\xff\xfeSN1\n", "/sys/class/dmi/id/product_name": "Größe\n"})
	if f := h.Facts(); f.Serial != "?SN1" || f.Product != "Größe" {
		t.Errorf("serial %q, product %q", f.Serial, f.Product)
	}
	for cut := range 3 {
		err := &host.RunError{Argv: []string{"ctr"}, Output: []byte(strings.Repeat("│", 2000) + strings.Repeat("x", cut)), Cause: errors.New("exit status 1")}
		if !utf8.ValidString(err.Error()) {
			t.Errorf("an error that was cut is no UTF-8: %.60q", err.Error())
		}
	}
}

func TestStreamEndsTheProgramWhenItsReaderHasEnough(t *testing.T) {
	t.Parallel()
	h := &host.Host{}
	enough := errors.New("enough")
	start := time.Now()
	err := h.Stream(context.Background(), host.Command{Argv: []string{"sh", "-c", "echo one; exec sleep 300"}}, func(r io.Reader) error {
		b := make([]byte, 4)
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		return enough
	})
	if !errors.Is(err, enough) || time.Since(start) > time.Minute {
		t.Errorf("got %v after %v", err, time.Since(start))
	}
}

func TestFactsComeFromTheKernelsFiles(t *testing.T) {
	t.Parallel()
	h := &host.Host{Root: t.TempDir()}
	put(t, h, map[string]string{
		"/sys/class/dmi/id/product_uuid":   "4C4C4544-0000-2010-8020-80C04F202020\n",
		"/sys/class/dmi/id/product_serial": "ABC123\n",
		"/sys/class/dmi/id/sys_vendor":     "Dell Inc.\n",
		"/sys/firmware/efi/x":              "",
		"/proc/meminfo":                    "MemTotal:       2048 kB\nMemFree: 1 kB\n",
		"/proc/self/mounts":                "/dev/vda3 /usr ext4 ro 0 0\n/dev/vda9 / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n",
		"/proc/sys/kernel/osrelease":       "6.6.1-flatcar\n",
		"/proc/sys/kernel/random/boot_id":  "b-o-o-t\n",
		"/etc/os-release":                  "ID=flatcar\nPRETTY_NAME=\"Flatcar Container Linux\"\n",
		"/sys/block/vda/size":              "2048\n",
		"/sys/block/vda/device/x":          "",
		"/sys/block/vda/vda3/x":            "",
		"/sys/block/vda/vda9/x":            "",
		"/sys/block/vda/serial":            "disk-0\n",
		"/sys/block/sda/size":              "4096\n",
		"/sys/block/sda/device/model":      "PERC H730  \n",
		"/sys/block/sda/device/vpd_pg80":   "\x00\x80\x00\x04S/N 7",
		"/sys/block/sda/device/wwid":       "naa.600\n",
		"/sys/block/sda/removable":         "1\n",
		"/sys/block/sda/queue/rotational":  "1\n",
		"/sys/block/sdb/size":              "4096\n",
		"/sys/block/sdb/device/model":      "RAID\n",
		"/sys/block/sdb/sdb1/holders/md0":  "",
		"/sys/block/loop0/size":            "99\n",
		"/sys/block/sr0/size":              "99\n",
		"/sys/block/sr0/device/model":      "DVD\n",
	})
	f := h.Facts()
	f.Interfaces, f.CPUs = nil, 0 // of the machine that runs the test
	want := host.Facts{
		UUID: "4c4c4544-0000-2010-8020-80c04f202020", Serial: "ABC123", Manufacturer: "Dell Inc.", Firmware: "uefi",
		MemoryBytes: 2 << 20, Kernel: "6.6.1-flatcar", OS: "Flatcar Container Linux", BootID: "b-o-o-t",
		Disks: []host.Disk{
			{Path: "/dev/sda", Size: 2 << 20, Serial: "S/N 7", Model: "PERC H730", WWN: "naa.600", Rotational: true, Removable: true},
			{Path: "/dev/sdb", Size: 2 << 20, Model: "RAID", InUse: "sdb1 is used by md0"},
			{Path: "/dev/vda", Size: 1 << 20, Serial: "disk-0", InUse: "vda3 is mounted at /usr"},
		},
	}
	if got, want := fmt.Sprintf("%+v", f), fmt.Sprintf("%+v", want); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if empty := (&host.Host{Root: t.TempDir()}).Facts(); empty.Firmware != "bios" || len(empty.Disks) != 0 {
		t.Errorf("got %+v for a machine that says nothing", empty)
	}
}

func TestUnitState(t *testing.T) {
	t.Parallel()
	n := hosttest.New(t)
	for _, want := range []string{"inactive", "active", "failed"} {
		if want != "inactive" {
			n.SetUnit("etcd.service", want)
		}
		if got, err := n.UnitState(context.Background(), "etcd.service"); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	n.Program("systemctl", func(c host.Command) ([]byte, error) {
		return nil, &host.RunError{Argv: c.Argv, Cause: errors.New("no bus")}
	})
	if _, err := n.UnitState(context.Background(), "etcd.service"); err == nil {
		t.Error("got no error without systemd")
	}
}

func TestPrintGoesToTheConsole(t *testing.T) {
	t.Parallel()
	h := &host.Host{Root: t.TempDir()}
	h.Print("nobody listens") // no console: no error
	put(t, h, map[string]string{"/dev/console": ""})
	h.Print("CODE 1234")
	if got, err := h.ReadFile("/dev/console"); err != nil || string(got) != "CODE 1234\r\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestARegularFileStandsInForADisk(t *testing.T) {
	t.Parallel()
	h := &host.Host{Root: t.TempDir()}
	put(t, h, map[string]string{"/dev/vda": strings.Repeat("x", 1<<20)})
	d, err := h.OpenDisk("/dev/vda")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Zero(4096, 8192); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8194)
	if _, err := d.ReadAt(b, 4095); err != nil || !bytes.Equal(b, append(append([]byte("x"), make([]byte, 8192)...), 'x')) {
		t.Errorf("the range does not read as zeros: %v", err)
	}
	if _, err := h.OpenDisk("/dev/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := h.OpenDisk("/dev"); err == nil {
		t.Error("a directory passes for a disk")
	}
}

func TestReleaseWaitsForALoopDeviceThatAKilledMountLeft(t *testing.T) {
	t.Parallel()
	h := &host.Host{Root: t.TempDir()}
	const loop = "/sys/devices/virtual/block/loop3/loop/backing_file"
	put(t, h, map[string]string{loop: "/dev/vda\n", "/sys/devices/virtual/block/loop4/loop/backing_file": "/dev/vdb\n"})
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	err := h.Release(ctx, "/dev/vda", "/run/imagectl/root")
	if want := "releasing disk /dev/vda: loop3 is on it and does not go away: context deadline exceeded"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	done := make(chan error, 1)
	go func() { done <- h.Release(context.Background(), "/dev/vda", "/run/imagectl/root") }()
	if err := h.Remove(loop); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("got %v", err)
	}
}
