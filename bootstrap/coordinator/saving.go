package coordinator

import (
	"fmt"
	"slices"
)

// BeginSaving gives the turn to have a snapshot taken of its member to one machine, or says why
// nobody has it now: one thing is done to etcd at a time. A follower comes before the leader, whose
// disk everybody waits for, and avoid, of which one was taken in vain, after all others. away are
// machines that were told to reboot, to switch off or to forget what they have and are not back:
// what is rolled over the control planes one by one goes first. It is pure; c is to be stored.
func BeginSaving(nodes []Node, c Choices, away []string, avoid string) (Choices, string) {
	switch {
	case len(c.EtcdVoters) == 0:
		return c, "etcd has no members yet"
	case c.EtcdAlone != "":
		return c, fmt.Sprintf("etcd begins anew with %s", c.EtcdAlone)
	case c.EtcdSaving != "":
		return c, fmt.Sprintf("one is taken of %s", c.EtcdSaving)
	case c.leaving():
		return c, fmt.Sprintf("the member of %s is removed first", c.EtcdLeaving)
	case c.EtcdJoining != "":
		return c, c.EtcdJoining + " joins etcd first"
	case c.EtcdTending != "":
		return c, fmt.Sprintf("the database of %s is defragmented first", c.EtcdTending)
	case c.EtcdRestarting != "":
		return c, c.EtcdRestarting + " starts its etcd anew first"
	}
	if i := slices.IndexFunc(nodes, busy); i >= 0 {
		return c, fmt.Sprintf("the database of %s is defragmented first", nodes[i].Name)
	}
	for _, v := range c.EtcdVoters {
		if slices.Contains(away, v) {
			return c, fmt.Sprintf("%s is on its way down by order, or not back yet", v)
		}
	}
	if well, ill := healthy(nodes, c, ""); well < quorum(len(c.EtcdVoters)) {
		return c, fmt.Sprintf("etcd has no quorum: %d of %d voters are healthy, not %s", well, len(c.EtcdVoters), list(ill))
	}
	best, rank := "", 0
	for _, n := range nodes {
		if !slices.Contains(c.EtcdVoters, n.Name) || !fit(&n) {
			continue
		}
		r := 1
		if n.Seen.Etcd.Leader {
			r++
		}
		if n.Name == avoid {
			r += 2
		}
		if best == "" || r < rank {
			best, rank = n.Name, r
		}
	}
	if best == "" {
		return c, "no voter has lately said that its member is well"
	}
	c.EtcdSaving = best
	return c, ""
}

// EndSaving takes the turn back.
func EndSaving(c Choices) Choices {
	c.EtcdSaving = ""
	return c
}
