//go:build e2e

// Package netboot boots a machine with Secure Boot from the network, as an owner with
// keys of his own would: its firmware loads the signed installer by HTTP from a real
// imagectl serve. "make netboot-test" runs it, on the test release
// (test/release/README.md).
package netboot

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

var (
	bin     = flag.String("bin", "", "directory of imagectl and bootstrapd")
	release = flag.String("release", "", "directory of the test release")
)

// bootYAML is what docs/netboot.md has in cluster.yaml.
const bootYAML = `  iso:
    stub: /usr/lib/systemd/boot/efi/linuxx64.efi.stub
  secureBoot:
    certificate: keys/secureboot/db.crt
    key: {file: keys/secureboot/db.key}
`

// scenario bounds a test.
func scenario(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 40*time.Minute, fmt.Errorf("the scenario's 40 minutes are over"))
	t.Cleanup(cancel)
	return ctx
}

// machine is one with UEFI, by the last part of its addresses.
func machine(name, last string) lab.Machine {
	return lab.Machine{Name: name, Role: "worker", Firmware: vm.OVMF, CPUs: 1, MiB: 2048, Address: "10.77.0." + last, MAC: "52:54:00:77:00:" + last}
}

// newRack is a site with these machines, and boot below boot in its cluster.yaml.
func newRack(ctx context.Context, t *testing.T, boot string, machines ...lab.Machine) *lab.Lab {
	t.Helper()
	return startRack(ctx, t, lab.Lab{Boot: boot, Machines: machines})
}

// startRack makes a rack of what like says of it.
func startRack(ctx context.Context, t *testing.T, like lab.Lab) *lab.Lab {
	t.Helper()
	for name, value := range map[string]string{"-bin": *bin, "-release": *release} {
		if value == "" {
			t.Fatalf("%s is not set; run this through make netboot-test", name)
		}
	}
	began, upstream := time.Now(), t.TempDir()
	if err := lab.StandIns(upstream); err != nil {
		t.Fatal(err)
	}
	like.Bin, like.Release, like.Upstream, like.Work, like.Accel = *bin, *release, upstream, t.TempDir(), "tcg"
	like.Machines = append([]lab.Machine{lab.Absent()}, like.Machines...)
	like.Log = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%6s  %s\n", time.Since(began).Round(time.Second), fmt.Sprintf(format, args...))
	}
	rack, err := lab.New(ctx, like)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rack.Close)
	return rack
}

func TestSecureBootFromTheNetwork(t *testing.T) {
	ctx := scenario(t)
	good, bad := machine("good", "41"), machine("bad", "42")
	rack := newRack(ctx, t, bootYAML, good, bad)
	imagectl := func(args ...string) {
		t.Helper()
		if _, err := rack.Imagectl(ctx, args...); err != nil {
			t.Fatal(err)
		}
		rack.Log("imagectl %s", strings.Join(args, " "))
	}
	imagectl("secureboot", "keys", "keys/secureboot", "--name", "demo")
	imagectl("secureboot", "enrol", "keys/secureboot")
	imagectl("validate")
	imagectl("lock")
	imagectl("build", "--format", "pxe")
	if err := rack.Serve(ctx); err == nil || !strings.Contains(err.Error(), "imagectl build --format uki makes it") {
		t.Fatalf("serving without the signed installer: got %v", err)
	}
	imagectl("build", "--format", "uki")
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	vars, err := vm.EnrolKeys(ctx, filepath.Join(rack.Site, "keys/secureboot/enrol"), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	rack.Log("the firmware has its keys")
	imagectl("machines", "arm", good.Name, bad.Name)
	powerOn := func(m lab.Machine) *vm.Console {
		t.Helper()
		// PowerOn's disk, which nothing reads here.
		if err := os.WriteFile(rack.Disk(m), make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		c := rack.Config(m)
		c.SecureVariables, c.HTTPBoot = vars, true
		if err := rack.Start(c); err != nil {
			t.Fatal(err)
		}
		rack.Log("%s: power on", m.Name)
		return rack.Guests[m.Name].Console
	}
	// load switches a machine on until a line shows what became of its program. UEFI
	// waits for 5 s for an answer by HTTP, and this host may stand still for longer.
	load := func(m lab.Machine, expr string) *vm.Console {
		t.Helper()
		for range 3 {
			console := powerOn(m)
			got, err := console.Wait(ctx, 0, regexp.MustCompile(`(`+expr+`)|BdsDxe: failed to load Boot[0-9A-F]{4} "UEFI HTTPv4`))
			if err != nil {
				t.Fatal(err)
			}
			if got[1] != "" {
				return console
			}
			rack.Log("%s: its firmware could not load the program", m.Name)
			rack.Guests[m.Name].Stop()
		}
		t.Fatalf("%s never showed %q", m.Name, expr)
		return nil
	}

	console := load(good, `Command line: .*flatcar.first_boot=1`)
	rack.Log("%s: the signed kernel started", good.Name)
	if _, err := console.Wait(ctx, 0, regexp.MustCompile(`[Ss]ecure boot enabled`)); err != nil {
		t.Fatal(err)
	}

	// The server looks at its files when it starts, so it is the firmware that finds this.
	changeKernel(t, rack, filepath.Join(rack.Site, "out", "demo-installer.efi"))
	refused := load(bad, `BdsDxe: failed to load .*: Access Denied`)
	rack.Log("%s: one byte of the kernel changed: the firmware refuses it", bad.Name)
	for _, line := range refused.Tail(1000) {
		if strings.Contains(line, "Linux version") {
			t.Errorf("the changed kernel started: %s", line)
		}
	}
	rack.Guests[bad.Name].Stop()

	getsEnrolled(ctx, t, rack, good)
	whySays(ctx, t, rack, good, "DISCOVER from http-boot", "fetches demo-installer.efi by UEFI HTTP boot")
}

// changeKernel flips a bit in the middle of the kernel that a program contains.
func changeKernel(t *testing.T, rack *lab.Lab, program string) {
	t.Helper()
	kernel, err := os.ReadFile(filepath.Join(rack.Release, "stable/amd64-usr/current/flatcar_production_pxe.vmlinuz"))
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	middle := kernel[len(kernel)/2:][:4096]
	if n := bytes.Count(image, middle); n != 1 {
		t.Fatalf("the kernel is in %s %d times", program, n)
	}
	f, err := os.OpenFile(program, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(image, middle)
	_, err = f.WriteAt([]byte{image[at] ^ 1}, int64(at))
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}
