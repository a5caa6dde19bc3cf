//go:build e2e

// Package diskless switches a machine on that cluster.yaml calls diskless: each time it
// loads its system from the network into its memory, proves itself by its TPM with a new
// key and is enrolled without a person, and its disk is asked for no change; and as a part
// of a cluster it joins anew and runs pods. "make diskless-test" runs it, on the test release
// (test/release/README.md); the TPMs are swtpm's.
package diskless

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
	others  = flag.String("upstream", "", "directory of the programs of others")
)

// starts is how often the machine is switched on.
const starts = 2

func TestADisklessMachineIsEnrolledAtEachStart(t *testing.T) {
	ctx := scenario(t)
	upstream := t.TempDir()
	if err := lab.StandIns(upstream); err != nil {
		t.Fatal(err)
	}
	own := tpmtest.New(t, "")
	m := lab.Machine{Name: "w1", Role: "worker", Firmware: vm.SeaBIOS, CPUs: 1, MiB: 3072, Address: "10.77.0.41", MAC: "52:54:00:77:00:41", Diskless: true, EK: own.EK()}
	rack, err := lab.New(ctx, lab.Lab{Bin: *bin, Release: *release, Upstream: upstream, Work: t.TempDir(), Accel: "tcg", Identity: "tpm",
		Machines: []lab.Machine{lab.Absent(), m}, Log: lab.Stamped(os.Stderr)})
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
	if _, err := rack.Imagectl(ctx, "machines", "arm", m.Name); err == nil || !strings.Contains(err.Error(), "it is diskless") {
		t.Errorf("arming it: got %v, want a refusal that says that it is diskless", err)
	}

	for n := 1; n <= starts; n++ {
		m.TPM = own.ForGuest() // its power was off
		if err := rack.PowerOn(m); err != nil {
			t.Fatal(err)
		}
		power := time.Now()
		guest := rack.Guests[m.Name]
		if _, err := guest.Console.Wait(ctx, 0, regexp.MustCompile(`imagectl: enrolled as w1`)); err != nil {
			t.Fatal(err)
		}
		rack.Log("%s: start %d: enrolled %s after power-on", m.Name, n, time.Since(power).Round(time.Second))
		if err := rack.WaitState(ctx, m.Name, "enrolled"); err != nil {
			t.Fatal(err)
		}
		look(ctx, t, rack, m)
		writes, err := guest.DiskWrites(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if writes != 0 {
			t.Errorf("start %d: its disk was asked to change %d times", n, writes)
		}
		if bad := guest.Console.Bad(); len(bad) > 0 {
			t.Errorf("start %d: its console shows: %s", n, strings.Join(bad, "; "))
		}
		guest.Stop()
	}

	log, err := rack.Imagectl(ctx, "audit", "ls")
	if err != nil {
		t.Fatal(err)
	}
	for action, want := range map[string]int{"key-approved": 1, "key-replaced": starts - 1, "certificate-revoked": starts - 1, "key-conflict": 0, "arm": 0} {
		if got := strings.Count(log, action); got != want {
			t.Errorf("the audit log says %s %d times, want %d:\n%s", action, got, want, log)
		}
	}
}

// Beside a control plane with a disk it becomes Ready, and again after each start, with
// nobody at hand: the Node object of the start before is removed, and it joins as a new one.
func TestADisklessWorkerJoinsAtEachStart(t *testing.T) {
	ctx := scenario(t)
	first, own := tpmtest.New(t, ""), tpmtest.New(t, "")
	cp := lab.Machine{Name: "cp1", Role: "control-plane", Firmware: vm.SeaBIOS, CPUs: 2, MiB: 3584, Address: "10.77.0.11", MAC: "52:54:00:77:00:11", EK: first.EK(), TPM: first.ForGuest()}
	w := lab.Machine{Name: "w1", Role: "worker", Firmware: vm.SeaBIOS, CPUs: 1, MiB: 4096, Address: "10.77.0.41", MAC: "52:54:00:77:00:41", Diskless: true, EK: own.EK()}
	w.TPM = own.ForGuest()
	rack, err := lab.New(ctx, lab.Lab{Bin: *bin, Release: *release, Upstream: *others, Work: t.TempDir(), Accel: "tcg", Identity: "tpm",
		Machines: []lab.Machine{cp, w}, Log: lab.Stamped(os.Stderr)})
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
	if _, err := rack.Imagectl(ctx, "machines", "arm", cp.Name); err != nil {
		t.Fatal(err)
	}
	for _, m := range []lab.Machine{cp, w} {
		if err := rack.PowerOn(m); err != nil {
			t.Fatal(err)
		}
	}
	for n := 1; ; n++ {
		power := time.Now()
		if err := rack.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		if err := rack.RunProbe(ctx, w.Name); err != nil {
			t.Fatal(err)
		}
		rack.Log("%s: start %d: Ready, and runs a pod, %s after power-on", w.Name, n, time.Since(power).Round(time.Second))
		guest := rack.Guests[w.Name]
		if writes, err := guest.DiskWrites(ctx); err != nil || writes != 0 {
			t.Errorf("start %d: its disk was asked to change %d times, %v", n, writes, err)
		}
		disks, err := rack.Imagectl(ctx, "node", "disks", w.Name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(os.Stderr, disks) // how much of its memory it takes
		if n == starts {
			return
		}
		// The next one is to be another pod than this.
		if _, err := rack.Kubectl(ctx, "delete", "pod", "probe", "--wait=false"); err != nil {
			t.Fatal(err)
		}
		if err := lab.Until(ctx, func() (bool, string, error) {
			out, err := rack.Kubectl(ctx, "get", "pod", "probe", "--ignore-not-found", "-o", "name")
			return err == nil && out == "", "waiting for the pod's end", nil
		}); err != nil {
			t.Fatal(err)
		}
		guest.Stop()
		w.TPM = own.ForGuest()
		if err := rack.PowerOn(w); err != nil {
			t.Fatal(err)
		}
		if _, err := rack.Guests[w.Name].Console.Wait(ctx, 0, regexp.MustCompile(`imagectl: enrolled as w1`)); err != nil {
			t.Fatal(err)
		}
		if err := rack.WaitState(ctx, w.Name, "enrolled"); err != nil {
			t.Fatal(err)
		}
	}
}

func scenario(t *testing.T) context.Context {
	t.Helper()
	for name, value := range map[string]string{"-bin": *bin, "-release": *release, "-upstream": *others} {
		if value == "" {
			t.Fatalf("%s is not set; run this through make diskless-test", name)
		}
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 40*time.Minute, fmt.Errorf("the scenario's 40 minutes are over"))
	t.Cleanup(cancel)
	return ctx
}

// look asks the node itself, which lets in who has a certificate of its CA, where it runs.
func look(ctx context.Context, t *testing.T, rack *lab.Lab, m lab.Machine) {
	t.Helper()
	var disks string
	err := lab.Until(ctx, func() (bool, string, error) {
		var err error
		disks, err = rack.Imagectl(ctx, "node", "disks", m.Name)
		return err == nil, fmt.Sprintf("waiting for the node API of %s: %v", m.Name, err), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^/ +tmpfs `).MatchString(disks) {
		t.Errorf("its root is not in its memory:\n%s", disks)
	}
}
