//go:build root

package native

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	lifecycle "github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/test/byhand"
)

// besidePatience is how long one cluster may take.
const besidePatience = 15 * time.Minute

// besideMachines are what both clusters are made of: machines i has the address that a rack
// gives it.
func besideMachines() (out []byhand.Machine) {
	for i, name := range []string{"cp1", "cp2", "cp3", "w1", "w2"} {
		out = append(out, byhand.Machine{Name: name, Address: fmt.Sprintf("10.98.0.%d", 11+i), Worker: name[0] == 'w'})
	}
	return out
}

func besideNames() (out []string) {
	for _, m := range besideMachines() {
		out = append(out, m.Name)
	}
	return out
}

// TestBesideKubeadmByHand makes three control planes and two workers, as imagectl does it and as
// somebody types it (byhand.Typist), NATIVE_RUNS times each in turns, and compares how long both
// take from the start of written disks until Kubernetes finds all Ready. Both have the same
// programs, the same stand-ins for systemd and kubelet, the same empty ROOT and the same archive of
// images, and each begins with empty machines. What is compared is the work of both between those:
// this rung has no firmware and no kernel's start, no pods but static ones, and one kernel for all.
func TestBesideKubeadmByHand(t *testing.T) {
	runs, err := strconv.Atoi(cmp.Or(os.Getenv("NATIVE_RUNS"), "1"))
	if err != nil || runs < 1 {
		t.Fatalf("NATIVE_RUNS is %q: it is how often both clusters are made, such as 3", os.Getenv("NATIVE_RUNS"))
	}
	var ratios []float64
	for i := range runs {
		var our, their *byhand.Race
		sides := []func(){
			func() {
				t.Run(fmt.Sprintf("imagectl %d", i+1), func(t *testing.T) { our = besideOurs(t) })
			},
			func() {
				t.Run(fmt.Sprintf("by hand %d", i+1), func(t *testing.T) { their = besideHand(t) })
			},
		}
		// Who is first finds less in memory; of an odd number of runs, that is ours more often.
		if i%2 == 1 {
			slices.Reverse(sides)
		}
		for _, side := range sides {
			side()
		}
		t.Logf("run %d of %d:\n%s", i+1, runs, byhand.Table(besideMachines(), our, their))
		if our != nil && their != nil {
			ratios = append(ratios, our.Last(byhand.Ready).Seconds()/their.Last(byhand.Ready).Seconds())
		}
	}
	said, failed := byhand.Judge(ratios, runs)
	if failed {
		t.Fatal(said)
	}
	t.Log(said)
}

// besideOurs has empty machines installed, and races from there.
func besideOurs(t *testing.T) *byhand.Race {
	r := darkRack(t, func(*serverapi.Config) {}, besideNames()...)
	powered := time.Now()
	for i, name := range besideNames() {
		r.nodes[name].NoReboot = true
		r.power(name, i+1)
	}
	r.approve()
	for _, name := range besideNames() {
		r.wait(10*time.Minute, name+"'s installation", func() (bool, string) {
			v := r.views()[name]
			return v.GetState() == string(lifecycle.Installed), v.GetState() + " " + v.GetReason()
		})
		r.nodes[name].waited()
	}
	race := byhand.NewRace(time.Since(powered), t.Logf)
	for i, name := range besideNames() {
		m := r.nodes[name]
		m.Installed, m.NoReboot = true, false
		r.start(name, len(r.nodes)+i+1)
	}
	r.finish(race, func() {
		for name, v := range r.views() {
			look(race, name, v)
		}
	})
	r.ready(5*time.Minute, func(map[string]*api.MachineView) {})
	r.wait(5*time.Minute, "the server to hear of all members", func() (bool, string) {
		resp, err := r.op.Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
		if err != nil {
			return false, err.Error()
		}
		s := resp.Msg.GetEtcd().GetSummary()
		return strings.HasPrefix(s, "3 of 3 voters"), s
	})
	r.whole()
	return race
}

// look notes what the server says of a machine.
func look(race *byhand.Race, name string, v *api.MachineView) {
	switch lifecycle.State(v.GetState()) {
	case lifecycle.Enrolled, lifecycle.Member, lifecycle.Ready:
		race.Saw(byhand.Up, name)
	}
	for _, s := range v.GetSteps() {
		if s.GetState() != api.StepStatus_STATE_DONE {
			continue
		}
		switch s.GetName() {
		case "images":
			race.Saw(byhand.Imported, name)
		case "kubeadm-init", "kubeadm-join", "kubeadm-done":
			race.Saw(byhand.Joined, name)
		}
	}
}

// finish asks Kubernetes five times a second, by the administrator's kubeconfig on the first control
// plane, until it finds all nodes Ready that kubeadm is done with. step is called before each time.
func (r *rack) finish(race *byhand.Race, step func()) {
	r.t.Helper()
	var client *http.Client
	var server string
	r.wait(besidePatience, "the cluster", func() (bool, string) {
		step()
		if !race.Came(byhand.Joined, "cp1") {
			return false, "kubeadm init is not done"
		}
		if client == nil {
			client, server = r.kubernetes("cp1")
		}
		nodes, err := readNodes(client, server)
		if err != nil {
			return false, err.Error()
		}
		yes, _ := nodes.Ready()
		for name := range yes {
			if race.Came(byhand.Joined, name) {
				race.Saw(byhand.Ready, name)
			}
		}
		missing := race.Missing(byhand.Ready, besideMachines())
		return missing == "", missing
	})
}

func readNodes(client *http.Client, server string) (out byhand.Nodes, err error) {
	resp, err := client.Get(server + byhand.NodesPath)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return out, err
	}
	if resp.StatusCode != http.StatusOK {
		return out, fmt.Errorf("asking for the nodes: %s: %s", resp.Status, text)
	}
	return out, json.Unmarshal(text, &out)
}

// whole looks whether a cluster is what was asked for: the version, five nodes, an API server on
// each control plane, the add-on.
func (r *rack) whole() {
	r.t.Helper()
	var planes []string
	for _, m := range besideMachines() {
		if m.Worker {
			continue
		}
		planes = append(planes, m.Address)
		r.wait(5*time.Minute, m.Name+"'s API server", func() (bool, string) {
			out, err := r.nodes[m.Name].on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "--server", "https://"+m.Address+":6443", "get", "--raw", "/version")
			if err != nil || !strings.Contains(out, kubernetesVersion()) {
				return false, out
			}
			return true, "it is " + kubernetesVersion()
		})
	}
	r.wait(5*time.Minute, "the API servers behind the service", func() (bool, string) {
		out, err := r.kubectl("cp1", "get", "endpointslices", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[0]}")
		have := strings.Fields(out)
		slices.Sort(have)
		return err == nil && slices.Equal(have, planes), out
	})
	out, err := r.kubectl("cp1", "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
	if have := strings.Fields(out); err != nil || !slices.Equal(have, besideNames()) {
		r.t.Errorf("the nodes: got %v (%v), want %v", have, err, besideNames())
	}
	if out, err := r.kubectl("cp1", "get", "configmap", "addon"); err != nil {
		r.t.Errorf("the add-on: %v %s", err, out)
	}
}
