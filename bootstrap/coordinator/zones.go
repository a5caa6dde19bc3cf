package coordinator

import (
	"fmt"
	"slices"
	"strings"
)

// zoneSummary goes on with EtcdSummary while etcd has its quorum: what is left of the voters
// that are healthy now when all of a zone is lost. "imagectl validate" does the same for what
// cluster.yaml lists; this is for what works. It is empty where no voter has a zone, and for
// fewer than three voters, of which none may be lost anyway.
func zoneSummary(nodes []Node, c Choices) string {
	total := len(c.EtcdVoters)
	if total < 3 {
		return ""
	}
	well, ill := healthy(nodes, c, "")
	in := map[string]int{} // healthy voters by zone
	var nowhere []string
	for _, v := range c.EtcdVoters {
		switch n := find(nodes, v); {
		case n == nil || n.Zone == "":
			nowhere = append(nowhere, v)
		case slices.Contains(ill, v):
			in[n.Zone] += 0 // it is lost already
		default:
			in[n.Zone]++
		}
	}
	if len(in) == 0 {
		return ""
	}
	fatal := map[int][]string{} // zones by how many voters their loss leaves
	for zone, n := range in {
		if left := well - n; left < quorum(total) {
			fatal[left] = append(fatal[left], zone)
		}
	}
	out := "; any one zone may be lost"
	if len(fatal) > 0 {
		out = ""
	}
	for left := range total {
		if zones := fatal[left]; len(zones) > 0 {
			slices.Sort(zones)
			out += fmt.Sprintf("; losing zone %s now leaves %d of %d", strings.Join(zones, " or "), left, total)
		}
	}
	if len(nowhere) > 0 {
		out += fmt.Sprintf("; the zone of %s is not known and not counted", list(nowhere))
	}
	return out
}
