package ova_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/ovf"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/imagectl/imagectl/images/ova"
	"github.com/imagectl/imagectl/images/vmdk"
)

const capacity = 5 << 20

var modTime = time.Date(2026, 8, 13, 10, 0, 0, 500, time.FixedZone("east", 7200))

// disk is a small real VMDK, and the raw image that it was made from.
func disk(t testing.TB) (content []byte, raw string) {
	t.Helper()
	raw = filepath.Join(t.TempDir(), "raw")
	f, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(capacity); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("something in the middle"), 3<<20); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := vmdk.Write(context.Background(), &b, f, capacity, vmdk.Options{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), raw
}

func describe(content []byte) ova.Disk {
	return ova.Disk{
		Content: bytes.NewReader(content), Size: int64(len(content)), Capacity: capacity,
		SHA256: fmt.Sprintf("%x", sha256.Sum256(content)),
	}
}

func write(t testing.TB, m ova.Machine, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := ova.Write(context.Background(), &b, m, describe(content), modTime); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// file writes an archive to a file of its own.
func file(t testing.TB, m ova.Machine, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "machine.ova")
	if err := os.WriteFile(path, write(t, m, content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// tool runs a foreign judge in dir; one that is not installed fails the test.
func tool(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestForeignToolsUnpackWhatWeWrote(t *testing.T) {
	t.Parallel()
	content, raw := disk(t)
	path, dir := file(t, ova.Machine{Name: "demo-worker-4593.2.5", Version: "4593.2.5"}, content), t.TempDir()
	var got []string
	for line := range strings.Lines(tool(t, dir, "tar", "--numeric-owner", "-tvf", path)) {
		f := strings.Fields(line)
		got = append(got, strings.Join([]string{f[0], f[1], f[3], f[4], f[5]}, " "))
	}
	want := []string{
		"-rw-r--r-- 0/0 2026-08-13 08:00 demo-worker-4593.2.5.ovf",
		"-rw-r--r-- 0/0 2026-08-13 08:00 demo-worker-4593.2.5.mf",
		"-rw-r--r-- 0/0 2026-08-13 08:00 demo-worker-4593.2.5-disk1.vmdk",
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("tar lists (got, want):\n%s", diff)
	}
	if got := tool(t, dir, "file", "-b", path); !strings.Contains(got, "POSIX tar archive") {
		t.Errorf("file(1) says %s", got)
	}
	tool(t, dir, "tar", "-xf", path)
	if got, want := tool(t, dir, "sha256sum", "-c", "demo-worker-4593.2.5.mf"), "demo-worker-4593.2.5.ovf: OK\ndemo-worker-4593.2.5-disk1.vmdk: OK\n"; got != want {
		t.Errorf("sha256sum says %q, want %q", got, want)
	}
	tool(t, dir, "xmllint", "--noout", "demo-worker-4593.2.5.ovf")
	tool(t, dir, "qemu-img", "compare", "-f", "vmdk", "-F", "raw", "demo-worker-4593.2.5-disk1.vmdk", raw)
}

func TestGovmomiReadsTheMachine(t *testing.T) {
	t.Parallel()
	content, _ := disk(t)
	path, dir := file(t, ova.Machine{Name: "m", Version: `<4593> & "more"`, CPUs: 6, MemoryMiB: 16384}, content), t.TempDir()
	tool(t, dir, "tar", "-xf", path)
	f, err := os.Open(filepath.Join(dir, "m.ovf"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e, err := ovf.Unmarshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := e.References, []ovf.File{{ID: "file1", Href: "m-disk1.vmdk", Size: uint(len(content))}}; !cmp.Equal(got, want) {
		t.Errorf("got files %+v, want %+v", got, want)
	}
	p := e.VirtualSystem.Product[0]
	if p.Version != `<4593> & "more"` {
		t.Errorf("got version %q", p.Version)
	}
	var keys []string
	for _, x := range p.Property {
		if x.UserConfigurable == nil || !*x.UserConfigurable || x.Type != "string" || x.Default == nil || *x.Default != "" {
			t.Errorf("property %s is no empty string that the user may set", x.Key)
		}
		keys = append(keys, x.Key)
	}
	want := []string{
		"guestinfo.imagectl.node",
		"guestinfo.hostname",
		"guestinfo.ignition.config.data",
		"guestinfo.ignition.config.data.encoding",
		"guestinfo.ignition.config.url",
		"guestinfo.afterburn.initrd.network-kargs",
	}
	if diff := cmp.Diff(keys, want); diff != "" {
		t.Errorf("properties (got, want):\n%s", diff)
	}
	if got := *e.VirtualSystem.VirtualHardware[0].Transport; got != "iso com.vmware.guestInfo" {
		t.Errorf("properties travel by %q", got)
	}

	spec, err := e.ToConfigSpecWithOptions(ovf.ToConfigSpecOptions{Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	if spec.Name != "m" || spec.NumCPUs != 6 || spec.MemoryMB != 16384 || spec.Firmware != "efi" || spec.Version != "vmx-13" || spec.GuestId != "other3xLinux64Guest" {
		t.Errorf("got name %q, %d CPUs, %d MB, firmware %q, hardware %q, guest %q", spec.Name, spec.NumCPUs, spec.MemoryMB, spec.Firmware, spec.Version, spec.GuestId)
	}
	if b := spec.BootOptions; b == nil || b.EfiSecureBootEnabled == nil || *b.EfiSecureBootEnabled {
		t.Errorf("got boot options %+v, want Secure Boot off", b)
	}
	var scsi *types.ParaVirtualSCSIController
	var nic *types.VirtualVmxnet3
	var hard *types.VirtualDisk
	var ide *types.VirtualIDEController
	var cd *types.VirtualCdrom
	for _, c := range spec.DeviceChange {
		switch d := c.GetVirtualDeviceConfigSpec().Device.(type) {
		case *types.ParaVirtualSCSIController:
			scsi = d
		case *types.VirtualVmxnet3:
			nic = d
		case *types.VirtualDisk:
			hard = d
		case *types.VirtualIDEController:
			ide = d
		case *types.VirtualCdrom:
			cd = d
		default:
			t.Errorf("the machine has a %T", d)
		}
	}
	if scsi == nil || nic == nil || hard == nil || ide == nil || cd == nil {
		t.Fatalf("got controllers %v and %v, network %v, disk %v, CD drive %v", scsi, ide, nic, hard, cd)
	}
	if cd.ControllerKey != ide.Key {
		t.Errorf("got the CD drive on controller %d, want %d", cd.ControllerKey, ide.Key)
	}
	if hard.ControllerKey != scsi.Key || hard.CapacityInBytes != capacity {
		t.Errorf("got a disk of %d bytes on controller %d, want %d on %d", hard.CapacityInBytes, hard.ControllerKey, capacity, scsi.Key)
	}
}

func TestMachineHasDefaults(t *testing.T) {
	t.Parallel()
	content, _ := disk(t)
	got := string(write(t, ova.Machine{Name: "m"}, content))
	for _, want := range []string{"<rasd:VirtualQuantity>2<", "<rasd:VirtualQuantity>4096<"} {
		if !strings.Contains(got, want) {
			t.Errorf("the envelope lacks %s", want)
		}
	}
}

func TestSameArgumentsGiveTheSameBytes(t *testing.T) {
	t.Parallel()
	content, _ := disk(t)
	if !bytes.Equal(write(t, ova.Machine{Name: "m"}, content), write(t, ova.Machine{Name: "m"}, content)) {
		t.Error("two archives differ")
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	good := ova.Machine{Name: "m"}
	for want, c := range map[string]struct {
		m      ova.Machine
		change func(*ova.Disk)
	}{
		`writing OVA "a b": a name has 1 to 80 letters, digits, dots, underscores and minus signs`:                                    {m: ova.Machine{Name: "a b"}},
		`writing OVA "m": a machine cannot have -1 CPUs and 4096 MiB of memory; vSphere takes multiples of 4 MiB`:                     {m: ova.Machine{Name: "m", CPUs: -1}},
		`writing OVA "m": a machine cannot have 2 CPUs and 2001 MiB of memory; vSphere takes multiples of 4 MiB`:                      {m: ova.Machine{Name: "m", MemoryMiB: 2001}},
		`writing OVA "m": the disk's digest "beef" is malformed`:                                                                      {m: good, change: func(d *ova.Disk) { d.SHA256 = "beef" }},
		`writing OVA "m": a disk of 0 bytes cannot come from a file of 68608`:                                                         {m: good, change: func(d *ova.Disk) { d.Capacity, d.Size = 0, 68608 }},
		`writing OVA "m": the compressed disk has 8589934592 bytes, this kind of archive holds 8589934591; import the VMDK by itself`: {m: good, change: func(d *ova.Disk) { d.Size = 8 << 30 }},
		"writing OVA m: adding m-disk1.vmdk: after 69632 of 69633 bytes: EOF": {m: good, change: func(d *ova.Disk) {
			d.Content, d.Size = bytes.NewReader(make([]byte, 69632)), 69633
		}},
	} {
		content, _ := disk(t)
		d := describe(content)
		if c.change != nil {
			c.change(&d)
		}
		err := ova.Write(context.Background(), &bytes.Buffer{}, c.m, d, modTime)
		if err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
	content, _ := disk(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := ova.Write(ctx, &bytes.Buffer{}, good, describe(content), modTime); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}
