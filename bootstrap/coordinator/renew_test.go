package coordinator

import (
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Three control planes in every state of their certificates, whoever's turn it is.
func TestRenewingInEverySituation(t *testing.T) {
	t.Parallel()
	said := []*Seen{nil, {Installer: true}, {EtcdHealthy: true}}
	for _, ready := range []bool{false, true} {
		for _, certificates := range []Certificates{CertificatesGood, CertificatesDue, CertificatesUrgent} {
			said = append(said, &Seen{EtcdHealthy: true, Joined: true, APIServerReady: ready, Certificates: certificates})
		}
	}
	states := []machine.State{machine.Ready, machine.Armed, machine.Retired}
	n := 0
	for _, turn := range []string{"", "a", "b", "c", "gone"} {
		for _, servers := range [][]string{nil, {"a"}, {"a", "b", "c"}} {
			before := Choices{EtcdFirst: "a", EtcdFormed: true, EtcdVoters: []string{"a", "b", "c"}, KubernetesFirst: "a", KubernetesFormed: true, APIServers: servers, Renewing: turn}
			for _, ra := range said {
				for _, rb := range said {
					for _, rc := range said {
						for _, sc := range states {
							for _, controls := range []bool{true, false} {
								for _, gone := range []bool{false, true} {
									check(t, []Node{
										{Name: "a", ControlPlane: true, State: machine.Ready, Seen: ra, Gone: gone && ra == nil},
										{Name: "b", ControlPlane: controls, State: machine.Ready, Seen: rb},
										{Name: "c", ControlPlane: true, State: sc, Seen: rc, Gone: gone && rc == nil},
									}, before)
									n++
								}
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d situations", n)
}

// Three control planes renew what kubeadm made, told as a story.
func TestThreeControlPlanesRenewOneAfterTheOther(t *testing.T) {
	t.Parallel()
	c := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1", "cp2", "cp3"}, KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1", "cp2", "cp3"}}
	say := func(ready bool, certificates Certificates) *Seen {
		return &Seen{EtcdHealthy: true, EtcdMember: true, Joined: true, APIServerReady: ready, Certificates: certificates}
	}
	nodes := []Node{
		{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: say(true, CertificatesDue)},
		{Name: "cp2", ControlPlane: true, State: machine.Ready, Seen: say(true, CertificatesDue)},
		{Name: "cp3", ControlPlane: true, State: machine.Ready, Seen: say(true, CertificatesDue)},
		{Name: "w1", State: machine.Ready, Seen: &Seen{Joined: true, Certificates: CertificatesDue}},
	}
	step := func(when, renewing string, summaries ...string) {
		t.Helper()
		c = Choose(nodes, c)
		if c.Renewing != renewing {
			t.Errorf("%s: %q renews, want %q", when, c.Renewing, renewing)
		}
		for i, want := range summaries {
			if got := RenewalSummary(nodes, c, nodes[i].Name); got != want {
				t.Errorf("%s: %s\ngot  %s\nwant %s", when, nodes[i].Name, got, want)
			}
			if d := Direct(nodes, c, nodes[i].Name); nodes[i].Seen != nil && d.Renew != (nodes[i].Name == renewing) {
				t.Errorf("%s: %s is told %+v", when, nodes[i].Name, d)
			}
		}
	}
	const now, first = "they are being renewed", "cp1 renews its own first, one at a time"
	step("all are due", "cp1", now, first, first, "")
	nodes[0].Seen = say(false, CertificatesDue)
	step("cp1's API server starts anew", "cp1", now, "cp1 renews its own first, one at a time", first)
	nodes[0].Seen = nil
	step("cp1 says nothing", "cp1")
	nodes[0].Seen = say(false, CertificatesGood)
	step("cp1 is not ready yet", "cp1", "", first, first)
	nodes[0].Seen = say(true, CertificatesGood)
	step("cp1 is back", "cp2", "", now, "cp2 renews its own first, one at a time")
	nodes[1].Seen, nodes[1].Gone = nil, true
	step("cp2 loses power", "cp3", "", "", now)
	nodes[2].Seen = say(true, CertificatesGood)
	nodes[0].Seen = say(false, CertificatesGood)
	nodes[1].Seen, nodes[1].Gone = say(true, CertificatesDue), false
	nodes[2].Seen = say(false, CertificatesGood)
	step("cp3 is not ready, cp2 is back", "cp3", "", "no other API server would be ready while that of cp2 starts anew, not cp1, cp3")
	nodes[2].State = machine.Retired
	step("cp3 is retired, cp1 still not ready", "", "", "no other API server would be ready while that of cp2 starts anew, not cp1")
	nodes[1].Seen = say(true, CertificatesUrgent)
	step("it cannot wait any longer", "cp2", "", now)
	nodes[1].Seen = say(true, CertificatesGood)
	step("and is done", "", "", "")
	// All are over: nothing is lost by renewing the first, and it is the first to be well.
	nodes[0].Seen, nodes[1].Seen = say(false, CertificatesUrgent), say(false, CertificatesUrgent)
	step("all have ended", "cp1", now, "cp1 renews its own first, one at a time")
	nodes[0].Seen = say(true, CertificatesGood)
	step("one is back", "cp2", "", now)
}

// The add-ons are applied by whoever ran init, and by another control plane when that one
// is retired; the cluster is ready when that has happened.
func TestAddonsMoveWhenTheFirstControlPlaneIsRetired(t *testing.T) {
	t.Parallel()
	c := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp2", "cp3"}, KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1", "cp2", "cp3"}}
	say := func(applied bool) *Seen {
		return &Seen{EtcdHealthy: true, Joined: true, APIServerReady: true, AddonsApplied: applied}
	}
	nodes := []Node{
		{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: say(true)}, {Name: "cp2", ControlPlane: true, State: machine.Ready, Seen: say(false)},
		{Name: "cp3", ControlPlane: true, State: machine.Ready, Seen: say(false)},
	}
	step := func(when, on string, ready bool) {
		t.Helper()
		for _, n := range nodes {
			if d := Direct(nodes, c, n.Name); d.First != (n.Name == on) {
				t.Errorf("%s: %s is told %+v", when, n.Name, d)
			}
		}
		if got, why := Summary(nodes, c); got != ready {
			t.Errorf("%s: ready %v: %s", when, got, why)
		}
	}
	step("at first", "cp1", true)
	nodes[0].State = machine.Retired
	step("cp1 is retired", "cp2", false)
	nodes[1].Seen = say(true)
	step("cp2 has applied them", "cp2", true)
	nodes[1].State = machine.Armed
	step("cp2 is installed anew", "cp3", false)
	nodes = nodes[1:]
	nodes[0].State = machine.Ready
	step("cp1 is not even listed", "cp2", true)
}
