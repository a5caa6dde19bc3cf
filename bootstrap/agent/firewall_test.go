package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
)

// nft gives the node a kernel with one table. It lists what it was given in words of
// its own.
func nft(l *lab) *string {
	table := new(string)
	l.node.Program("nft", func(cmd host.Command) ([]byte, error) {
		switch args := strings.Join(cmd.Argv[1:], " "); args {
		case "--file -":
			if strings.Contains(string(cmd.Stdin), "10.9.9.9") {
				return nil, errors.New("Error: Could not process rule: No such file or directory")
			}
			_, rest, ok := strings.Cut(string(cmd.Stdin), "delete table inet imagectl\n")
			if !ok {
				return nil, errors.New("it does not replace the table")
			}
			*table = strings.ReplaceAll(rest, "{ 6443, 50500 }", "{ 50500, 6443 }")
			return nil, nil
		case "list tables":
			if *table == "" {
				return []byte("table ip kube-proxy\n"), nil
			}
			return []byte("table ip kube-proxy\ntable inet imagectl\n"), nil
		case "--stateless list table inet imagectl":
			return []byte(*table), nil
		default:
			return nil, fmt.Errorf("there is no %q", args)
		}
	})
	return table
}

func firewalled(l *lab) *api.Run {
	run := initRun(l)
	run.Firewall = &api.Firewall{ControlPlanes: []string{"10.0.0.11"}, Workers: []string{"10.0.0.21"}}
	return run
}

// settled runs the steps and returns the firewall's status and whether it acted.
func settled(t *testing.T, n *node, run *api.Run) (*api.StepStatus, bool) {
	t.Helper()
	out := once(n, run)
	for _, s := range out.steps {
		if s.GetName() == "firewall" {
			return s, slices.Contains(out.changed, "firewall")
		}
	}
	return nil, false
}

func TestTheFirewallFollowsTheDirectiveAndHealsItself(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	table := nft(l)
	n, run := l.newNode(), firewalled(l)
	expect := func(when string, acts bool, state api.StepStatus_State, detail string, holds string) {
		t.Helper()
		s, acted := settled(t, n, run)
		if s.GetState() != state || acted != acts || !strings.Contains(s.GetDetail(), detail) || !strings.Contains(*table, holds) {
			t.Errorf("%s: %v, acted: %v, want %v %q, %v; the table:\n%s", when, s, acted, state, detail, acts, *table)
		}
	}
	const done, failed, pending = api.StepStatus_STATE_DONE, api.StepStatus_STATE_FAILED, api.StepStatus_STATE_PENDING
	expect("first", true, done, "", "ip saddr { 10.0.0.11 } tcp dport { 2379, 2380 } accept")
	expect("again", false, done, "", "10.0.0.21")
	n = l.newNode()
	expect("in a new process", false, done, "", "10.0.0.21")
	*table = strings.ReplaceAll(*table, "policy drop", "policy accept")
	expect("after somebody opened it", true, done, "", "policy drop")
	*table = ""
	expect("after somebody removed it", true, done, "", "policy drop")
	run.Firewall.Workers = append(run.Firewall.Workers, "10.0.0.22")
	expect("when a worker joins", true, done, "", "10.0.0.11, 10.0.0.21, 10.0.0.22")
	run.Firewall.Allow = []*api.Firewall_Allow{{From: []string{"10.9.0.0/24"}, Ports: []uint32{53}, Udp: true}}
	expect("with a rule of the operator's", true, done, "", "ip saddr { 10.9.0.0/24 } udp dport { 53 } accept")
	run.Firewall.Workers = append(run.Firewall.Workers, "10.9.9.9")
	expect("when the kernel refuses", false, failed, "loading the firewall, which stays as it was: ", "10.0.0.22")
	run.Firewall.ControlPlanes, run.Firewall.Workers = nil, nil
	expect("without an address", false, pending, "no control plane of the cluster has an address yet", "10.0.0.22")
	run.Firewall = &api.Firewall{Off: "the switch filters"}
	expect("switched off", true, done, "", "")
	if *table != "" {
		t.Errorf("the table is still there:\n%s", *table)
	}
	expect("switched off, again", false, done, "", "")
}

func TestDirectivesThatNoFirewallCanBeMadeOf(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*api.Run){
		`reading the addresses of the cluster's machines: ParseAddr("cp1"): unable to parse IP`: func(r *api.Run) { r.Firewall.ControlPlanes = []string{"cp1"} },
		`reading the pods' network: netip.ParsePrefix("x"): no '/'`:                             func(r *api.Run) { r.Kubernetes.PodCidr = "x" },
		`reading whom the firewall lets in: netip.ParsePrefix("1.2.3.4"): no '/'`: func(r *api.Run) {
			r.Firewall.Allow = []*api.Firewall_Allow{{From: []string{"1.2.3.4"}, Ports: []uint32{1}}}
		},
		`reading what the firewall opens: 65536 is not a port`: func(r *api.Run) {
			r.Firewall.Allow = []*api.Firewall_Allow{{From: []string{"1.2.3.4/32"}, Ports: []uint32{65536}}}
		},
		`reading what the firewall opens: no port is given for [1.2.3.4/32]`: func(r *api.Run) {
			r.Firewall.Allow = []*api.Firewall_Allow{{From: []string{"1.2.3.4/32"}}}
		},
	} {
		run := &api.Run{Kubernetes: &api.KubernetesWanted{PodCidr: "10.244.0.0/16"}, Firewall: &api.Firewall{ControlPlanes: []string{"10.0.0.11"}}}
		change(run)
		if _, err := firewallScript(run); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// After a reboot without a server the last directive's rules come back.
func TestTheFirewallComesBackWithoutAServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	table := nft(l)
	n := l.newNode()
	n.handle(t.Context(), &api.SyncResponse{Directive: &api.SyncResponse_Run{Run: firewalled(l)}})
	*table = ""
	n = l.newNode()
	if s, acted := settled(t, n, n.directive()); s.GetState() != api.StepStatus_STATE_DONE || !acted || !strings.Contains(*table, "10.0.0.21") {
		t.Errorf("%v, acted: %v; the table:\n%s", s, acted, *table)
	}
}
