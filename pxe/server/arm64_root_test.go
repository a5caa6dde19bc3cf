//go:build root

package server_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
	"github.com/imagectl/imagectl/test/vm"
)

// arm64Variable names the directory of test/qemu/arm64.
const arm64Variable = "IMAGECTL_TEST_ARM64"

func arm64File(t *testing.T, name string) []byte {
	t.Helper()
	dir := os.Getenv(arm64Variable)
	if dir == "" {
		t.Fatal(arm64Variable + " is not set; run this through make test-root")
	}
	return readFile(t, filepath.Join(dir, name))
}

func withArm64(t *testing.T) func(*listen.Config, *server.Config) {
	return func(_ *listen.Config, c *server.Config) { c.IPXEArm64 = arm64File(t, "ipxe.efi") }
}

// arm64Guest is a machine with UEFI on arm64 and an empty disk.
func arm64Guest(t *testing.T, n int, changes ...func(*vm.Config)) *vm.Guest {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	tap := fmt.Sprintf("tap%d", n)
	if err := vm.Tap(tap, bridge); err != nil {
		t.Fatal(err)
	}
	cfg := vm.Config{Name: string(vm.AAVMF), Firmware: vm.AAVMF, Accel: "tcg", CPUs: 1, MemoryMiB: 1024, Disk: disk, DiskSerial: "empty",
		MAC: mac(n).String(), UUID: fmt.Sprintf("12345678-9abc-4def-8123-%012d", n), Serial: fmt.Sprintf("SN %d", n), Tap: tap, Dir: dir}
	for _, change := range changes {
		change(&cfg)
	}
	return powerOn(t, cfg)
}

// A machine with arm64 in a cluster of x86-64 loads the iPXE of its own kind, by PXE and by
// HTTP, and that says on the machine's screen why there is nothing to start. Then the
// firmware goes on. Nothing of another processor was fetched.
func TestArm64IsToldThatThereIsNoImage(t *testing.T) {
	for i, c := range []struct {
		name   string
		byHTTP bool
		entry  string
		want   []string
	}{
		{"PXE", false, "UEFI PXEv4", []string{"DISCOVER from firmware", "boot program snponly-arm64.efi", "nbp: fetches snponly-arm64.efi by TFTP", "DISCOVER from ipxe", "script: local: its processor is arm64"}},
		{"HTTP", true, "UEFI HTTPv4", []string{"DISCOVER from http-boot", "nbp: fetches snponly-arm64.efi by UEFI HTTP boot", "DISCOVER from ipxe", "script: local: its processor is arm64"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := 71 + i
			r := startRack(t, nil, nil, withArm64(t))
			start := time.Now()
			g := arm64Guest(t, n, func(cfg *vm.Config) { cfg.HTTPBoot = c.byHTTP })
			r.waitEvent(t, n, boot.StageScript, 1)
			wait(t, g, `imagectl: local \(no-image\)`)
			wait(t, g, `imagectl: its processor is arm64, and all images of this cluster are for amd64 \(flatcar.arch in cluster.yaml\)`)
			t.Logf("told after %s", time.Since(start))
			wait(t, g, `imagectl: going on in 30 s`)
			wait(t, g, `imagectl: back to the firmware, which boots the next device`)
			wait(t, g, `BdsDxe: failed to start Boot[0-9A-F]{4} "`+c.entry)
			t.Logf("gone on after %s", time.Since(start))
			g.Stop()
			got := stages(r.Events(mac(n)))
			rest := got
			for _, want := range c.want {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Fatalf("no event %q in its place in:\n%s", want, got)
				}
				rest = after
			}
			if r.came(n, boot.StageKernel) != 0 || strings.Contains(got, "snponly.efi") {
				t.Errorf("it was given what is for another processor:\n%s", got)
			}
			t.Logf("events:\n%s", got)
		})
	}
}

// In a cluster of arm64 it is given the installer, and the kernel starts.
func TestArm64StartsTheKernel(t *testing.T) {
	const n = 73
	in := installer{"arm64", arm64File(t, "vmlinuz"), []string{"console=ttyAMA0"}}
	r := startRackWith(t, in, nil, nil, withArm64(t))
	start := time.Now()
	g := arm64Guest(t, n)
	r.waitEvent(t, n, boot.StageScript, 1)
	wait(t, g, `imagectl: discover \(unknown-machine\)`)
	r.waitEvent(t, n, boot.StageKernel, 1)
	wait(t, g, `Kernel command line: .*flatcar\.first_boot=1`)
	t.Logf("kernel started after %s", time.Since(start))
	g.Stop()
	t.Logf("events:\n%s", stages(r.Events(mac(n))))
}
