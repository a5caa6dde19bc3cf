package coordinator

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

func TestZonesInTheSummaryOfEtcd(t *testing.T) {
	t.Parallel()
	// zones are those of the voters a, b, c ..., "-" for none; ill are voters.
	for _, tc := range []struct{ zones, ill, want string }{
		{"- - -", "", "3 of 3 voters are healthy, quorum is 2; 1 may fail"},
		{"x y z", "", "3 of 3 voters are healthy, quorum is 2; 1 may fail; any one zone may be lost"},
		{"x y z", "a", "2 of 3 voters are healthy, quorum is 2, not healthy: a; none may fail; losing zone y or z now leaves 1 of 3"},
		{"x y z", "ab", "1 of 3 voters are healthy, quorum is 2, not healthy: a, b; 1 more must come back before anything can be written"},
		{"x x z", "", "3 of 3 voters are healthy, quorum is 2; 1 may fail; losing zone x now leaves 1 of 3"},
		{"x x z", "a", "2 of 3 voters are healthy, quorum is 2, not healthy: a; none may fail; losing zone x or z now leaves 1 of 3"},
		{"x x z", "c", "2 of 3 voters are healthy, quorum is 2, not healthy: c; none may fail; losing zone x now leaves 0 of 3"},
		{"x x x", "", "3 of 3 voters are healthy, quorum is 2; 1 may fail; losing zone x now leaves 0 of 3"},
		{"x y -", "", "3 of 3 voters are healthy, quorum is 2; 1 may fail; any one zone may be lost; the zone of c is not known and not counted"},
		{"x x y y z", "", "5 of 5 voters are healthy, quorum is 3; 2 may fail; any one zone may be lost"},
		{"x x y y z", "e", "4 of 5 voters are healthy, quorum is 3, not healthy: e; 1 may fail; losing zone x or y now leaves 2 of 5"},
		{"x x x y z", "e", "4 of 5 voters are healthy, quorum is 3, not healthy: e; 1 may fail; losing zone x now leaves 1 of 5"},
		{"x x x y z", "de", "3 of 5 voters are healthy, quorum is 3, not healthy: d, e; none may fail; losing zone x now leaves 0 of 5"},
		{"x y y", "a", "2 of 3 voters are healthy, quorum is 2, not healthy: a; none may fail; losing zone y now leaves 0 of 3"},
		{"x y", "", "2 of 2 voters are healthy, quorum is 2; none may fail"},
		{"x", "", "1 of 1 voters are healthy, quorum is 1; none may fail"},
	} {
		nodes, c := zoned(strings.Fields(tc.zones), tc.ill)
		if got := EtcdSummary(nodes, c); got != tc.want {
			t.Errorf("%s without %q:\ngot  %s\nwant %s", tc.zones, tc.ill, got, tc.want)
		}
	}
	// One that is retired, and that cluster.yaml lists no more, has no zone any more.
	nodes, c := zoned([]string{"x", "y", "z"}, "c")
	if got, want := EtcdSummary(nodes[:2], c), "; losing zone x or y now leaves 1 of 3; the zone of c is not known and not counted"; !strings.HasSuffix(got, want) {
		t.Errorf("got  %s\nwant …%s", got, want)
	}
}

// zoned are control planes a, b, c ... in these zones, all of them voters.
func zoned(zones []string, ill string) (nodes []Node, c Choices) {
	for i, z := range zones {
		n := Node{Name: string(rune('a' + i)), ControlPlane: true, Zone: strings.Trim(z, "-"), State: machine.Ready}
		n.Seen = &Seen{EtcdHealthy: !strings.Contains(ill, n.Name)}
		nodes, c.EtcdVoters = append(nodes, n), append(c.EtcdVoters, n.Name)
	}
	return nodes, c
}

// What is said of a zone is what is said when it is lost: for up to five voters in up to three
// zones, whoever is ill.
func TestAZoneThatMayBeLostMay(t *testing.T) {
	t.Parallel()
	const names = "xyz"
	cases, fatal := 0, 0
	for total := 3; total <= 5; total++ {
		for layout := range pow(len(names), total) {
			var zones []string
			for rest := layout; len(zones) < total; rest /= len(names) {
				zones = append(zones, names[rest%len(names):][:1])
			}
			for sick := range 1 << total {
				ill := ""
				for i := range total {
					if sick&(1<<i) != 0 {
						ill += string(rune('a' + i))
					}
				}
				nodes, c := zoned(zones, ill)
				said := EtcdSummary(nodes, c)
				if strings.Contains(said, "must come back") {
					continue
				}
				for _, zone := range slices.Compact(slices.Sorted(slices.Values(zones))) {
					without := slices.Clone(nodes)
					for i := range without {
						if without[i].Zone == zone {
							without[i].Seen = nil
						}
					}
					dies := strings.Contains(EtcdSummary(without, c), "must come back")
					cases++
					if dies {
						fatal++
					}
					if warned := warnsOf(said, zone); warned != dies {
						t.Fatalf("%v without %q: zone %s: warned %v, and etcd stops: %v: %s", zones, ill, zone, warned, dies, said)
					}
				}
			}
		}
	}
	if cases < 1000 || fatal < 300 || fatal == cases {
		t.Errorf("%d cases, %d of them fatal", cases, fatal)
	}
}

// warnsOf says whether a summary warns of losing a zone.
func warnsOf(summary, zone string) bool {
	for part := range strings.SplitSeq(summary, "; ") {
		if rest, ok := strings.CutPrefix(part, "losing zone "); ok {
			zones, _, _ := strings.Cut(rest, " now leaves ")
			if slices.Contains(strings.Split(zones, " or "), zone) {
				return true
			}
		}
	}
	return false
}

func pow(base, n int) int {
	out := 1
	for range n {
		out *= base
	}
	return out
}

// Any zone of a rack with one control plane and one worker in each: everything goes on, and what
// was said before was true. Where two control planes share a zone, its loss stops etcd, as was
// said, and any other's does not.
func TestAnyZone(t *testing.T) {
	t.Parallel()
	for layout, stops := range map[string]string{"x y z": "", "x x y": "x", "x y x": "x", "z x x": "x"} {
		for _, zone := range []string{"x", "y", "z"} {
			m := newModel(t)
			zones := strings.Fields(layout)
			var lost []string
			for i := range m.nodes {
				m.nodes[i].Zone = zones[i%3]
				if m.nodes[i].Zone == zone {
					lost = append(lost, m.nodes[i].Name)
				}
			}
			if len(lost) == 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s without %s", layout, zone), func(t *testing.T) {
				m.t = t
				said := "3 of 3 voters are healthy, quorum is 2; 1 may fail; any one zone may be lost"
				if stops != "" {
					said = fmt.Sprintf("3 of 3 voters are healthy, quorum is 2; 1 may fail; losing zone %s now leaves 1 of 3", stops)
				}
				m.stands("before", said, true, "all 6 nodes are Ready")
				chosen := m.c
				m.lose(lost...)
				if m.holds() != (zone != stops) {
					t.Errorf("without %v etcd goes on: %v", lost, m.holds())
				}
				if !m.c.Equal(chosen) {
					t.Errorf("choices went from %+v to %+v", chosen, m.c)
				}
				if got := EtcdSummary(m.nodes, m.c); m.holds() == strings.Contains(got, "must come back") {
					t.Errorf("without %v: %s", lost, got)
				}
				// It has its power back.
				for _, name := range lost {
					m.power(name, false)
				}
				m.run()
				m.stands("after", said, true, "all 6 nodes are Ready")
			})
		}
	}
}
