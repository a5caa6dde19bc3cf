//go:build e2e

package netboot

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

// The server dies when an installer's kernel has started, by BIOS and by UEFI: what iPXE
// loaded is all that it needs to run the agent, which goes on when a server answers.
func TestInstallerNeedsNoServerToStart(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 40*time.Minute, fmt.Errorf("the scenario's 40 minutes are over"))
	defer cancel()
	for name, value := range map[string]string{"-bin": *bin, "-release": *release} {
		if value == "" {
			t.Fatalf("%s is not set; run this through make netboot-test", name)
		}
	}
	began, upstream := time.Now(), t.TempDir()
	if err := lab.StandIns(upstream); err != nil {
		t.Fatal(err)
	}
	machine := func(name, last string, firmware vm.Firmware) lab.Machine {
		return lab.Machine{Name: name, Role: "worker", Firmware: firmware, CPUs: 1, MiB: 2048, Address: "10.77.0." + last, MAC: "52:54:00:77:00:" + last}
	}
	machines := []lab.Machine{machine("bios", "41", vm.SeaBIOS), machine("uefi", "42", vm.OVMF)}
	rack, err := lab.New(ctx, lab.Lab{Bin: *bin, Release: *release, Upstream: upstream, Work: t.TempDir(), Accel: "tcg",
		// A cluster has a control plane; this one is never switched on.
		Machines: append([]lab.Machine{{Name: "cp1", Role: "control-plane", Firmware: vm.SeaBIOS, Address: "10.77.0.11", MAC: "52:54:00:77:00:11", Idle: true}}, machines...),
		Log: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%6s  %s\n", time.Since(began).Round(time.Second), fmt.Sprintf(format, args...))
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rack.Close)
	for _, args := range [][]string{{"validate"}, {"lock"}, {"build", "--format", "pxe"}} {
		if _, err := rack.Imagectl(ctx, args...); err != nil {
			t.Fatal(err)
		}
		rack.Log("imagectl %s", strings.Join(args, " "))
	}
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := rack.Imagectl(ctx, "machines", "arm", "bios", "uefi"); err != nil {
		t.Fatal(err)
	}
	for _, m := range machines {
		if err := os.WriteFile(rack.Disk(m), make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := rack.PowerOn(m); err != nil {
			t.Fatal(err)
		}
	}
	says := func(m lab.Machine, expr string) {
		t.Helper()
		if _, err := rack.Guests[m.Name].Console.Wait(ctx, 0, regexp.MustCompile(expr)); err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		rack.Log("%s says %s", m.Name, expr)
	}
	for _, m := range machines {
		says(m, `Command line: .*initrd=initrd1`)
	}
	rack.KillServe()
	rack.Log("imagectl serve: killed")
	for _, m := range machines {
		says(m, `status  no server answers`)
		for _, line := range rack.Guests[m.Name].Console.Tail(1 << 20) {
			if strings.Contains(line, "Ignition needs the network") {
				t.Errorf("%s: its Ignition asked for something: %s", m.Name, line)
			}
		}
	}
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	for _, m := range machines {
		if err := rack.Approve(ctx, m); err != nil {
			t.Fatal(err)
		}
		rack.Log("%s: its key is approved", m.Name)
		why, err := rack.Imagectl(ctx, "why", m.MAC)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(why, "sent the installer's config") {
			t.Errorf("%s asked a server for its config:\n%s", m.Name, why)
		}
	}
}
