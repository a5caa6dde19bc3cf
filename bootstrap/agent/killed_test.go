package agent

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// scene is a machine in a situation, with what the server wants of it.
type scene struct {
	*lab
	run *api.Run
	// process is another process of the agent.
	process func() *node
	// between is what others do between two runs; nil for nothing.
	between func()
	// world is what the machine has changed outside of its disk; nil for nothing.
	world func() string
	// about are the steps at which it is killed; empty for all.
	about []string
	// ends is the step that it comes to and waits at; empty for all.
	ends string
}

// At which places of a step the agent is killed. Of one that never acts there is only the look.
const (
	atAct    = "before it acts"
	atActed  = "after it has acted"
	atLook   = "before it looks"
	atLooked = "after it has looked"
)

// killing has an agent be killed at a place of one step, once.
type killing struct {
	step, place string
	died        bool
}

func (k *killing) steps(all []Step) []Step {
	for i, s := range all {
		if s.Name != k.step {
			continue
		}
		observe, act := s.Observe, s.Act
		all[i].Observe = func(ctx context.Context) (bool, string, error) {
			k.at(atLook)
			done, missing, err := observe(ctx)
			if done {
				k.at(atLooked)
			}
			return done, missing, err
		}
		if act != nil {
			all[i].Act = func(ctx context.Context) error {
				k.at(atAct)
				defer k.at(atActed)
				return act(ctx)
			}
		}
	}
	return all
}

func (k *killing) at(place string) {
	if !k.died && place == k.place {
		k.died = true
		panic(killed{})
	}
}

// through has one process go on as settle does, until the machine is where it is to be. It returns the
// steps that acted on the way, and the last outcome.
func (s *scene) through(n *node, k *killing) (acted []string, out outcome) {
	for range 12 {
		out = runSteps(s.t.Context(), n.Log, k.steps(n.steps(s.run)), nil, false, func([]*api.StepStatus) {})
		acted = append(acted, out.changed...)
		if out.stopped() == s.ends {
			return acted, out
		}
		s.others()
	}
	s.t.Errorf("it does not come to its end: %s\n%s", states(out), s.log)
	return acted, out
}

func (s *scene) others() {
	if s.between != nil {
		s.between()
	}
}

// state is all that the machine has: its files with their modes, its units, and its traces in the world.
func (s *scene) state() map[string]string {
	s.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(s.node.Root, func(path string, d fs.DirEntry, err error) error {
		if name := strings.TrimPrefix(path, s.node.Root); err == nil && (name == "/proc" || name == "/dev") {
			return fs.SkipDir // the kernel's, and what was said on the console
		}
		if err != nil || d.IsDir() {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, s.node.Root)] = i.Mode().String() + " " + string(b)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	for unit, state := range s.node.Units() {
		out["unit "+unit] = state
	}
	if s.world != nil {
		out["world"] = s.world()
	}
	return out
}

// differs says what of a state is not as in two that nobody disturbed. What differs between those is
// a key's or a clock's.
func differs(got, one, other map[string]string) []string {
	var out []string
	for name := range maps.Keys(one) {
		if _, has := got[name]; !has {
			out = append(out, name+" is missing")
		} else if one[name] == other[name] && got[name] != one[name] {
			out = append(out, fmt.Sprintf("%s is %.200q instead of %.200q", name, got[name], one[name]))
		}
	}
	for name := range maps.Keys(got) {
		if _, has := one[name]; !has {
			out = append(out, name+" is left")
		}
	}
	slices.Sort(out)
	return out
}

// TestKilledAtEachStepOfEachRole kills the agent before and after each step of each situation that a
// machine comes to, once a time. The next one comes to the same state as if nothing had been, and
// its second run changes nothing. A step that is in no situation fails it.
func TestKilledAtEachStepOfEachRole(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	did := map[string]bool{} // steps that were killed before and after they acted
	looked := map[string]bool{}
	t.Run("situations", func(t *testing.T) {
		for name, begin := range scenes() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				calm, again := begin(t), begin(t)
				acted, out := calm.through(calm.process(), &killing{})
				again.through(again.process(), &killing{})
				one, other := calm.state(), again.state()
				for _, status := range out.steps {
					step := status.GetName()
					if step == calm.ends {
						break // it waits
					}
					var places []string
					switch {
					case len(calm.about) > 0 && !slices.Contains(calm.about, step):
						continue
					case slices.Contains(acted, step):
						places = []string{atAct, atActed}
					case onlyLook()[step]:
						places = []string{atLook, atLooked}
					case len(calm.about) > 0:
						t.Errorf("%s has nothing to do here", step)
					}
					for _, place := range places {
						t.Run(step+" "+place, func(t *testing.T) {
							s, k := begin(t), &killing{step: step, place: place}
							if !dies(func() { s.through(s.process(), k) }) {
								t.Fatal("it was not killed")
							}
							s.others()
							n := s.process()
							s.through(n, &killing{})
							if d := differs(s.state(), one, other); len(d) > 0 {
								t.Errorf("it is not as if it had not been killed:\n%s", strings.Join(d, "\n"))
							}
							if changed, _ := s.through(n, &killing{}); len(changed) > 0 {
								t.Errorf("a second run changed %v", changed)
							}
						})
					}
					mu.Lock()
					did[step] = did[step] || slices.Contains(acted, step)
					looked[step] = true
					mu.Unlock()
				}
			})
		}
	})
	for _, step := range stepNames(t) {
		switch only, listed := onlyLook()[step]; {
		case did[step] && listed:
			t.Errorf("%s acts; it is not one of those that only look", step)
		case !did[step] && !listed:
			t.Errorf("no situation has the step %s act: nobody knows what becomes of a machine whose agent is killed there", step)
		case listed && only && !looked[step]:
			t.Errorf("no situation has the step %s", step)
		}
	}
}

// onlyLook are the steps that never act; false for those that a machine waits at, and is not past.
func onlyLook() map[string]bool {
	return map[string]bool{
		"etcd-healthy": true, "etcd-data": true, "kubeadm-done": true, "node-ready": true, "network-links": true,
		"etcd": false, "kubernetes": false, "reset": false,
	}
}
