package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
)

func TestOnlyNodesGetPasswords(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "password"), []byte("swordfish\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := &globals{file: filepath.Join(dir, "cluster.yaml")}
	mirror := cluster.RegistryMirror{Name: "docker.io", Endpoints: []string{"https://m"}, Username: "reader", Password: cluster.Secret{File: "password"}}
	p := plan.Plan{Machines: []plan.Machine{{Name: "plain"}, {Name: "w1", Network: cluster.Network{
		Mirrors: []cluster.RegistryMirror{mirror},
		Proxy:   cluster.Proxy{HTTPS: "https://proxy.example.org:3128", Username: "nodes", Password: cluster.Secret{File: "password"}},
	}}}}
	machines := []serverapi.Machine{{Name: "plain"}, {Name: "w1"}}
	if err := g.nodeNetworks(machines, p, nil); err != nil {
		t.Fatal(err)
	}
	basic := []byte("Basic cmVhZGVyOnN3b3JkZmlzaA==") // reader:swordfish
	has := func(files []*api.File, what []byte) bool {
		for _, f := range files {
			if bytes.Contains(f.GetContent(), what) {
				return true
			}
		}
		return false
	}
	if has(machines[1].Files, basic) || has(machines[1].Files, []byte("swordfish")) || len(machines[1].Files) == 0 {
		t.Errorf("the installer would leave the password on a disk, or nothing at all: %v", machines[1].Files)
	}
	if !has(machines[1].Network.GetFiles(), basic) || !has(machines[1].Network.GetFiles(), []byte("https://nodes:swordfish@proxy.example.org:3128")) {
		t.Error("the node does not get the passwords")
	}
	// A network, and an empty one: the node takes away what it had before.
	if n := machines[0]; n.Files != nil || n.Network == nil || len(n.Network.GetFiles()) != 0 {
		t.Errorf("got %v and %v for a machine without a network", n.Files, n.Network)
	}
	p.Machines[1].Network.Mirrors[0].Password = cluster.Secret{File: "gone"}
	err := g.nodeNetworks(machines, p, nil)
	if want := "reading the password of machine w1 for the mirror of docker.io: open "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s…", err, want)
	}
	p.Machines[1].Network = cluster.Network{Proxy: cluster.Proxy{HTTPS: "https://proxy", Username: "nodes", Password: cluster.Secret{File: "gone"}}}
	err = g.nodeNetworks(machines, p, nil)
	if want := "reading the password of machine w1 for its proxy: open "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s…", err, want)
	}
}

func TestAMachineThatHasToStartAgainSaysSo(t *testing.T) {
	t.Parallel()
	const links = "bonds, VLANs, addresses or routes have changed, and hold from the next start of this machine on"
	m := &api.MachineView{State: "ready", Steps: []*api.StepStatus{
		{Name: "renewals", State: api.StepStatus_STATE_PENDING, Detail: "another machine's turn"},
		{Name: stepNetworkLinks, State: api.StepStatus_STATE_PENDING, Detail: links},
	}}
	if got := activity(m); got != links {
		t.Errorf("got %q, want %q", got, links)
	}
	m.Steps[1].State, m.Steps[1].Detail = api.StepStatus_STATE_DONE, ""
	if got := activity(m); got != "" {
		t.Errorf("got %q of a machine that waits for nothing of an operator's", got)
	}
}
