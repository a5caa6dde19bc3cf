package agent

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
)

const (
	bondFile   = linksDir + "20-imagectl-bond0.netdev"
	dnsFile    = "/etc/systemd/resolved.conf.d/20-imagectl.conf"
	proxyFile  = unitsDir + "containerd.service.d/20-imagectl-proxy.conf"
	kubeFile   = unitsDir + "kubelet.service.d/20-imagectl-proxy.conf"
	mirrorFile = "/etc/containerd/certs.d/docker.io/hosts.toml"
)

// connected is a directive with files, in pairs of path and content, and their list.
func connected(pairs ...string) *api.Run {
	run := &api.Run{Machine: "w1", Network: &api.Network{}}
	list := ""
	for i := 0; i < len(pairs); i += 2 {
		mode := uint32(0o644)
		if strings.Contains(pairs[i+1], "password") {
			mode = 0o600
		}
		run.Network.Files = append(run.Network.Files, &api.File{Path: pairs[i], Mode: mode, Content: []byte(pairs[i+1])})
		list += pairs[i] + "\n"
	}
	if len(pairs) > 0 {
		run.Network.Files = append(run.Network.Files, &api.File{Path: networkList, Mode: 0o644, Content: []byte(list)})
	}
	return run
}

// settleNetwork runs the two steps, and returns which acted and what systemd was asked for.
func settleNetwork(l *lab, run *api.Run) (outcome, []string) {
	n := l.newNode()
	l.node.Ran()
	out := runSteps(context.Background(), n.Log, []Step{n.networkFiles(run), n.networkLinks()}, nil, false, func([]*api.StepStatus) {})
	var asked []string
	for _, cmd := range l.node.Ran() {
		if !strings.Contains(cmd, "is-active") {
			asked = append(asked, strings.TrimPrefix(cmd, "systemctl "))
		}
	}
	return out, asked
}

func TestTheNetworkFollowsTheDirective(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, u := range []string{containerd, "systemd-resolved.service"} {
		l.node.SetUnit(u, "active") // kubelet does not run yet
	}
	expect := func(when string, run *api.Run, acts bool, waits string, asks ...string) {
		t.Helper()
		out, asked := settleNetwork(l, run)
		if got := slices.Contains(out.changed, "network"); got != acts || !slices.Equal(asked, asks) {
			t.Errorf("%s: acted: %v, want %v; asked for %q, want %q; %s", when, got, acts, asked, asks, states(out))
		}
		last := out.steps[1]
		if !strings.Contains(last.GetDetail(), waits) || out.done != (waits == "") {
			t.Errorf("%s: %v, want %q", when, last, waits)
		}
		if l.exists(networkOwed) {
			t.Errorf("%s: something is still owed: %s", when, l.read(networkOwed))
		}
		var names []string
		for _, f := range run.GetNetwork().GetFiles() {
			if f.GetPath() != networkList {
				names = append(names, f.GetPath())
			}
			if got := l.read(f.GetPath()); got != string(f.GetContent()) {
				t.Errorf("%s: %s has %q, want %q", when, f.GetPath(), got, f.GetContent())
			}
			if mode, err := l.node.Mode(f.GetPath()); err != nil || mode != fs.FileMode(f.GetMode()) {
				t.Errorf("%s: %s has mode %v, %v", when, f.GetPath(), mode, err)
			}
		}
		for _, f := range []string{bondFile, dnsFile, proxyFile, kubeFile, mirrorFile, networkList} {
			if l.exists(f) && f != networkList && !slices.Contains(names, f) {
				t.Errorf("%s: %s is left over", when, f)
			}
		}
	}
	const restart = "from the next start of this machine on"
	all := []string{bondFile, "a bond", dnsFile, "dns 1", proxyFile, "proxy 1", kubeFile, "proxy 1", mirrorFile, "password 1"}
	expect("first", connected(all...), true, restart, "daemon-reload", "restart systemd-resolved.service", "restart "+containerd)
	expect("again, in a new process", connected(all...), false, restart)
	l.put(bootIDPath, "boot-2\n")
	expect("after a restart", connected(all...), false, "")
	l.node.SetUnit("kubelet.service", "active")
	expect("another password, which containerd reads by itself", connected(append(slices.Clone(all[:9]), "password 2")...), true, "")
	expect("another proxy", connected(bondFile, "a bond", dnsFile, "dns 1", proxyFile, "proxy 2", kubeFile, "proxy 2"), true, "",
		"daemon-reload", "restart "+containerd, "restart kubelet.service")
	if err := l.node.WriteFile(dnsFile, []byte("by hand"), 0o644); err != nil {
		t.Fatal(err)
	}
	expect("somebody changed a file", connected(bondFile, "a bond", dnsFile, "dns 1", proxyFile, "proxy 2", kubeFile, "proxy 2"), true, "", "restart systemd-resolved.service")
	if err := l.node.WriteFile("/etc/systemd/network/10-own.network", []byte("of a Butane snippet"), 0o644); err != nil {
		t.Fatal(err)
	}
	expect("nothing more", connected(), true, restart, "daemon-reload", "restart systemd-resolved.service", "restart "+containerd, "restart kubelet.service")
	expect("and still nothing", connected(), false, restart)
	if l.exists(networkList) || !l.exists("/etc/systemd/network/10-own.network") {
		t.Error("the list is still there, or what is not ours is gone")
	}
}

// What was owed to a service when the agent died is done by the next one.
func TestServicesAreToldOfTheNetworkAfterADeath(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.node.SetUnit(containerd, "active")
	dies := true
	l.node.Program("systemctl", func(cmd host.Command) ([]byte, error) {
		switch {
		case cmd.Argv[1] == "is-active":
			return []byte("active\n"), nil
		case cmd.Argv[1] == "restart" && dies:
			return nil, errors.New("killed")
		}
		return nil, nil
	})
	run := connected(proxyFile, "proxy 1")
	if out, _ := settleNetwork(l, run); out.done || !l.exists(networkOwed) {
		t.Fatalf("nothing is owed after a restart that was not: %s", states(out))
	}
	dies = false
	out, asked := settleNetwork(l, run)
	if !out.done || !slices.Contains(asked, "restart "+containerd) || l.exists(networkOwed) {
		t.Errorf("%s, asked for %q", states(out), asked)
	}
	if out, asked := settleNetwork(l, run); len(out.changed)+len(asked) != 0 {
		t.Errorf("a second run changed %q and asked for %q", out.changed, asked)
	}
}

// A server writes and removes nothing else by this way, also with a list that somebody made.
func TestTheNetworkIsNothingElse(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, path := range []string{"/etc/hostname", "/etc/systemd/network/../system/x.service", "/etc/systemd/network/10-own.network", unitsDir + "x.service", "/var/lib/imagectl/node.key"} {
		out, _ := settleNetwork(l, connected(path, "x"))
		if s := out.steps[0]; s.GetState() != api.StepStatus_STATE_FAILED || !strings.Contains(s.GetDetail(), "which is none") || l.exists(path) && path != "/etc/hostname" {
			t.Errorf("%s: %v", path, s)
		}
	}
	l.put("/etc/hostname", "w1\n")
	l.put(networkList, "/etc/hostname\n/etc/systemd/network/../../hostname\n")
	if out, _ := settleNetwork(l, connected()); !out.done || !l.exists("/etc/hostname") {
		t.Errorf("%s; a list takes away what is no network", states(out))
	}
}
