//go:build e2e

// Package tpm switches empty machines with a TPM on: firmware, kernel and agent find
// it, and the machine whose TPM cluster.yaml lists is installed and enrolled without a
// person. "make tpm-test" runs it, on the test release (test/release/README.md), whose
// kernel has the drivers built in as Flatcar's; the TPMs are swtpm's.
package tpm

import (
	"context"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/tpm/tpmtest"
	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

var (
	bin     = flag.String("bin", "", "directory of imagectl and bootstrapd")
	release = flag.String("release", "", "directory of the test release")
)

func TestEmptyMachinesProveThemselvesByTheirTPM(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 40*time.Minute, fmt.Errorf("the scenario's 40 minutes are over"))
	defer cancel()
	for name, value := range map[string]string{"-bin": *bin, "-release": *release} {
		if value == "" {
			t.Fatalf("%s is not set; run this through make tpm-test", name)
		}
	}
	upstream := t.TempDir()
	if err := lab.StandIns(upstream); err != nil {
		t.Fatal(err)
	}
	own, other := tpmtest.New(t, ""), tpmtest.New(t, "")
	listed := own.EK()
	machine := func(name, last, socket string, fw vm.Firmware) lab.Machine {
		return lab.Machine{Name: name, Role: "worker", Firmware: fw, CPUs: 1, MiB: 2048, Address: "10.77.0." + last, MAC: "52:54:00:77:00:" + last, EK: listed, TPM: socket}
	}
	good, bad, none := machine("good", "41", own.ForGuest(), vm.OVMF), machine("bad", "42", other.ForGuest(), vm.SeaBIOS), machine("none", "43", "", vm.SeaBIOS)
	bad.EK, none.EK = strings.Repeat("ab", 32), ""
	rack, err := lab.New(ctx, lab.Lab{Bin: *bin, Release: *release, Upstream: upstream, Work: t.TempDir(), Accel: "tcg", Identity: "tpm",
		Machines: []lab.Machine{lab.Absent(), good, bad, none},
		Log:      lab.Stamped(os.Stderr)})
	if err != nil {
		t.Fatal(err)
	}
	defer rack.Close()
	if err := rack.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := rack.Imagectl(ctx, "machines", "arm", good.Name, bad.Name, none.Name); err != nil {
		t.Fatal(err)
	}

	for _, m := range []lab.Machine{bad, none, good} {
		if err := rack.PowerOn(m); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(m lab.Machine, want string) {
		t.Helper()
		if _, err := rack.Guests[m.Name].Console.Wait(ctx, 0, regexp.MustCompile(`status +`+want)); err != nil {
			t.Fatal(err)
		}
		rack.Log("%s: refused", m.Name)
		views, err := rack.Views(ctx)
		if err != nil || views[m.Name].State != "armed" || views[m.Name].PendingCode != "" {
			t.Errorf("%s: %+v, %v", m.Name, views[m.Name], err)
		}
		rack.Guests[m.Name].Stop()
	}
	refused(bad, "its TPM is [0-9a-f]{64}, and cluster.yaml says that bad has "+bad.EK)
	refused(none, "none shows no TPM 2.0, and cluster.yaml says identity.policy: tpm")

	// Nobody approves it: from power-on to its own disk, with the key that never left
	// its TPM.
	if err := rack.WaitState(ctx, good.Name, "installing", "installed", "enrolled"); err != nil {
		t.Fatal(err)
	}
	rack.Log("%s: enrolled by its TPM, and installs", good.Name)
	if err := rack.WaitState(ctx, good.Name, "enrolled"); err != nil {
		t.Fatal(err)
	}
	rack.Log("%s: runs from its disk with the same key", good.Name)
	show, err := rack.Imagectl(ctx, "machines", "show", good.Name)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(os.Stderr, show)
	for _, want := range []string{`tpm\.ek +` + listed, `tpm +accepted, proven at `} {
		if !regexp.MustCompile(want).MatchString(show) {
			t.Errorf("machines show does not say %q:\n%s", want, show)
		}
	}
	// Firmware has measured what it started.
	if !regexp.MustCompile(`(?m)^0 +[0-9a-f]{64}`).MatchString(show) || regexp.MustCompile(`(?m)^0 +0{64}`).MatchString(show) {
		t.Errorf("the firmware measured nothing:\n%s", show)
	}
}
