//go:build e2e

package byhand

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

var (
	bin      = flag.String("bin", "", "directory of imagectl and bootstrapd")
	release  = flag.String("release", "", "directory of the test release")
	upstream = flag.String("upstream", "", "directory of the upstream programs")
	work     = flag.String("work", "", "directory for disks, consoles and logs; emptied first, kept when set, else a temporary one")
	runs     = flag.Int("runs", 1, "how often both are done; the median of their ratios counts")
	planes   = flag.Int("control-planes", 3, "how many control planes")
	workers  = flag.Int("workers", 2, "how many workers")
	only     = flag.String("only", "", "make one of the two clusters alone: ours, hand")
	drills   = flag.Bool("drills", true, "take a control plane's power in the first two clusters")
	clocks   = flag.Bool("clocks", true, "with -drills: set clocks of the first cluster that imagectl made wrong")
)

// patience is how long one cluster may take, on two cores without KVM.
const patience = time.Hour

// machines are small: two cores have to do for all of them. kubeadm wants two
// processors of a control plane.
func machines() []lab.Machine {
	var out []lab.Machine
	for i := range *planes {
		out = append(out, lab.Machine{Name: fmt.Sprintf("cp%d", i+1), Role: "control-plane", Firmware: vm.SeaBIOS, CPUs: 2, MiB: 3072,
			Address: fmt.Sprintf("10.77.0.%d", 11+i), MAC: fmt.Sprintf("52:54:00:77:00:%d", 11+i)})
	}
	for i := range *workers {
		out = append(out, lab.Machine{Name: fmt.Sprintf("w%d", i+1), Role: "worker", Firmware: vm.SeaBIOS, CPUs: 1, MiB: 2048,
			Address: fmt.Sprintf("10.77.0.%d", 21+i), MAC: fmt.Sprintf("52:54:00:77:00:%d", 21+i)})
	}
	return out
}

// contestants are the machines as races know them.
func contestants(all []lab.Machine) (out []Machine) {
	for _, m := range all {
		out = append(out, Machine{Name: m.Name, Address: m.Address, Worker: m.Role == "worker"})
	}
	return out
}

func TestBesideKubeadmByHand(t *testing.T) {
	for name, value := range map[string]string{"-bin": *bin, "-release": *release, "-upstream": *upstream} {
		if value == "" {
			t.Fatalf("%s is not set; run this through make by-hand", name)
		}
	}
	dir := *work
	if dir == "" {
		dir = t.TempDir()
	}
	var ratios []float64
	for i := range *runs {
		if ratio := oneRun(t, dir, i == 0); ratio > 0 {
			ratios = append(ratios, ratio)
		}
	}
	if *only != "" {
		return // there is nothing to compare
	}
	said, failed := Judge(ratios, *runs)
	fmt.Fprintf(os.Stderr, "\n%s\n", said)
	if failed {
		t.Error(said)
	}
}

// oneRun makes both clusters, one after the other, and returns how many times as long
// as by hand ours took; 0 when only one was made.
func oneRun(t *testing.T, dir string, first bool) float64 {
	const limit = 2*patience + time.Hour
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("the run's %s are over", limit))
	defer cancel()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	rack, err := lab.New(ctx, lab.Lab{Bin: *bin, Release: *release, Upstream: *upstream, Work: dir, Machines: machines(), Butane: clockButane, Etcd: fmt.Sprintf("  heartbeatInterval: %dms\n  electionTimeout: %dms\n", heartbeatMs, electionMs), Log: lab.Stamped(os.Stderr)})
	if err != nil {
		t.Fatal(err)
	}
	defer rack.Close()
	rack.Log("%d control planes with two processors and 3 GB, %d workers with one and 2 GB, accelerator %s", *planes, *workers, rack.Accel)
	if err := rack.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	var our, their *Race
	if *only != "hand" {
		our = ours(t, ctx, rack, first && *drills)
		unplug(t, rack, rack.Config)
		// What comes next may fail.
		fmt.Fprintf(os.Stderr, "\n%s\n", Table(contestants(rack.Machines), our, nil))
	}
	if *only != "ours" {
		h := hand{t: t, rack: rack, dir: filepath.Join(dir, "hand")}
		their = h.race(ctx)
		if first && *drills {
			k, err := open(h.kubeconfig())
			if err != nil {
				t.Fatal(err)
			}
			powerLoss(t, ctx, rack, k, "made by hand", h.config)
		}
		unplug(t, rack, h.config)
	}
	if their != nil {
		fmt.Fprintf(os.Stderr, "\n%s\n", Table(contestants(rack.Machines), our, their))
	}
	if our == nil || their == nil {
		return 0
	}
	return our.Last(Ready).Seconds() / their.Last(Ready).Seconds()
}

// unplug ends the guests and takes their disks away: the next cluster needs the room.
func unplug(t *testing.T, rack *lab.Lab, config func(lab.Machine) vm.Config) {
	t.Helper()
	for _, m := range rack.Machines {
		rack.Guests[m.Name].Stop()
		delete(rack.Guests, m.Name)
		if err := os.Remove(config(m).Disk); err != nil {
			t.Fatal(err)
		}
	}
}
