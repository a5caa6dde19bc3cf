package coordinator

import (
	"fmt"
	"slices"
)

// chooseRestarting gives the right to start etcd anew to one machine at a time, the leader last.
// etcd reads its certificates at each handshake, but the CAs and its times at its start only. It is
// given while every voter is well, and neither with the right to change the membership, nor with
// that to tend a database, nor with that to start an API server anew: each API server speaks to the
// etcd of its own machine.
func chooseRestarting(nodes []Node, c Choices) Choices {
	if c.EtcdRestarting != "" && restartingEnds(nodes, c) {
		c.EtcdRestarting = ""
	}
	if c.EtcdRestarting != "" {
		return c
	}
	chosen := ""
	for _, n := range nodes {
		if !wantsRestart(n, c) {
			continue
		}
		if ok, _ := mayRestart(nodes, c, n); !ok {
			continue
		}
		if chosen = n.Name; !n.Seen.Etcd.Leader {
			break
		}
	}
	c.EtcdRestarting = chosen
	return c
}

// wantsRestart: its etcd runs with what it read when it started, and has to read it again.
func wantsRestart(n Node, c Choices) bool {
	return slices.Contains(c.EtcdVoters, n.Name) && n.Seen != nil && (n.Seen.CAStale || n.Seen.TimingStale)
}

// restartingEnds: it runs with the CAs and the times of now and is well, or there is nobody to wait
// for. Where nobody follows a leader, others may have to start anew too before anybody does.
func restartingEnds(nodes []Node, c Choices) bool {
	n := find(nodes, c.EtcdRestarting)
	switch {
	case n == nil || !n.ControlPlane || n.Gone || !working(n.State):
		return true
	case n.Seen == nil:
		return false
	case n.Seen.Installer:
		return true
	case n.Seen.CAStale || n.Seen.TimingStale:
		return false
	}
	return n.Seen.Etcd.Fit || leaderless(nodes, *n, c)
}

// leaderless: it sees no leader, and no voter says that it follows one.
func leaderless(nodes []Node, n Node, c Choices) bool {
	return n.Seen.Etcd.Leaderless && !slices.ContainsFunc(c.EtcdVoters, func(v string) bool { return fit(find(nodes, v)) })
}

// mayRestart says whether the member of a machine that calls may be started anew now, and if not,
// why.
func mayRestart(nodes []Node, c Choices, n Node) (bool, string) {
	switch {
	case c.EtcdAlone != "":
		return false, "etcd begins anew with what " + c.EtcdAlone + " has first"
	case c.EtcdTending != "" || slices.ContainsFunc(nodes, busy):
		return false, "a database of etcd is tended first"
	case c.Renewing != "":
		return false, c.Renewing + " starts its API server anew first"
	}
	if ok, why := nothingElse(c); !ok {
		return false, why
	}
	// Members that elect nobody because their times are too short would wait for ever to be well.
	// While they do, nobody misses one of them.
	if n.Seen.TimingStale && leaderless(nodes, n, c) {
		return true, ""
	}
	if ok, why := mayTend(nodes, c); !ok {
		return false, why
	}
	return mayRenew(nodes, c, n) // its API server is not ready without it
}

// restartSummary says who starts its etcd anew, and who is to; empty for nobody.
func restartSummary(nodes []Node, c Choices) string {
	if c.EtcdRestarting != "" {
		with := ""
		if n := find(nodes, c.EtcdRestarting); n != nil && n.Seen != nil && n.Seen.CAStale {
			with = " with other CAs"
		} else if n != nil && n.Seen != nil && n.Seen.TimingStale {
			with = " with other times"
		}
		return fmt.Sprintf("%s starts its member anew%s, one at a time", c.EtcdRestarting, with)
	}
	var late []string
	why := ""
	for _, n := range nodes {
		if !wantsRestart(n, c) || !n.Seen.TimingStale {
			continue
		}
		late = append(late, n.Name)
		if ok, w := mayRestart(nodes, c, n); !ok && why == "" {
			why = "; " + w
		}
	}
	if len(late) == 0 {
		return ""
	}
	return "to be started anew with etcd.heartbeatInterval and etcd.electionTimeout of cluster.yaml: " + list(late) + why
}
