//go:build root

package native

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	lifecycle "github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// joins is how many workers join, one after the other.
const joins = 20

// milestone is something that a worker passes on its way, with the name of the stage that ends
// there.
type milestone struct {
	stage  string
	passed func(*api.MachineView) bool
}

// milestones are those of a worker after it was armed, in their order.
func milestones() []milestone {
	way := []lifecycle.State{lifecycle.Armed, lifecycle.Installing, lifecycle.Installed, lifecycle.Enrolled, lifecycle.Member, lifecycle.Ready}
	state := func(s lifecycle.State) func(*api.MachineView) bool {
		return func(v *api.MachineView) bool {
			return slices.Index(way, lifecycle.State(v.GetState())) >= slices.Index(way, s)
		}
	}
	step := func(name string) func(*api.MachineView) bool {
		return func(v *api.MachineView) bool {
			return state(lifecycle.Ready)(v) || slices.ContainsFunc(v.GetSteps(), func(s *api.StepStatus) bool {
				return s.GetName() == name && s.GetState() == api.StepStatus_STATE_DONE
			})
		}
	}
	return []milestone{
		{"installed", state(lifecycle.Installed)},
		{"restarted and enrolled", state(lifecycle.Enrolled)},
		{"images imported", step("images")},
		{"kubelet's certificate", step("kubelet-certificate")},
		{"kubeadm join", step("kubeadm-join")},
		{"Ready", state(lifecycle.Ready)},
	}
}

// TestJoins measures the stages of a worker's way, over twenty that join one after the other. The
// programs are real; what a machine's firmware and kernel take is not there, and the image to
// install is an empty one.
func TestJoins(t *testing.T) {
	names := []string{"cp1"}
	for i := range joins {
		names = append(names, fmt.Sprintf("w%02d", i+1))
	}
	r := darkRack(t, func(*serverapi.Config) {}, names...)
	r.power("cp1", 1)
	r.admit("cp1")
	r.wait(15*time.Minute, "the control plane", func() (bool, string) {
		v := r.views()["cp1"]
		return v.GetState() == string(lifecycle.Ready), v.GetReason()
	})
	took := map[string][]time.Duration{}
	for i, name := range names[1:] {
		r.join(name, i+2, took)
		// Twenty running kubelets would be measured too.
		r.nodes[name].off(t)
		run(t, "truncate", "-s", "0", fmt.Sprintf("%s/%s.disk", r.dir, name))
	}
	t.Logf("%d workers, one after the other, in seconds:", joins)
	t.Logf("%-26s %6s %6s", "stage", "p50", "p99")
	stages := []string{"powered on and armed"}
	for _, m := range milestones() {
		stages = append(stages, m.stage)
	}
	for _, stage := range append(stages, fromEnrolled, fromPower) {
		all := took[stage]
		if len(all) != joins {
			t.Fatalf("%s: measured %d times, want %d", stage, len(all), joins)
		}
		slices.Sort(all)
		t.Logf("%-26s %6.2f %6.2f", stage, rank(all, 50).Seconds(), rank(all, 99).Seconds())
	}
}

const (
	fromEnrolled = "enrolled to Ready"
	fromPower    = "power-on to Ready"
)

// rank is the nearest-rank percentile of sorted times; of twenty, the 99th is the longest.
func rank(sorted []time.Duration, percent int) time.Duration {
	return sorted[(len(sorted)*percent+99)/100-1]
}

// join has one worker join and adds how long each stage took.
func (r *rack) join(name string, link int, took map[string][]time.Duration) {
	r.t.Helper()
	add := func(stage string, d time.Duration) { took[stage] = append(took[stage], d) }
	began := time.Now()
	r.power(name, link)
	r.admit(name)
	last := time.Now()
	add("powered on and armed", last.Sub(began))
	var enrolled time.Time
	for _, m := range milestones() {
		for limit := time.Now().Add(10 * time.Minute); !m.passed(r.views()[name]); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(limit) {
				r.t.Fatalf("%s: waited 10 minutes in vain for: %s; it is %s: %s", name, m.stage, r.views()[name].GetState(), r.views()[name].GetReason())
			}
		}
		now := time.Now()
		add(m.stage, now.Sub(last))
		if last = now; m.stage == "restarted and enrolled" {
			enrolled = now
		}
	}
	add(fromEnrolled, last.Sub(enrolled))
	add(fromPower, last.Sub(began))
}
