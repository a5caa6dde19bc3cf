package coordinator

import (
	"fmt"
	"slices"
)

// Keeping says how a member of etcd is, for its upkeep. The zero value is not known.
type Keeping struct {
	// Fit: it answers reads, follows a leader, and etcd has not found it corrupt.
	Fit bool
	// Leader: it leads. Leaderless: it answers, has a vote, sees no leader, and is not corrupt.
	Leader, Leaderless bool
	// Full: etcd has raised NOSPACE. Room: its own database is well below its quota.
	Full, Room bool
	// Worth: defragmenting it gives more than half of a large database back.
	Worth bool
	// Busy: it is being compacted or defragmented this moment.
	Busy bool
	// Tended: that was done or tried within the last minutes; nothing is tried again so soon.
	Tended bool
}

// chooseTending gives the right to defragment the database of its member to one machine at a
// time, the leader last. It is one right with that to change the membership: who joins or
// leaves comes first, and nobody does while it is given. A member that is defragmented answers
// nobody meanwhile, so it is given while every voter is well only, and taken back as soon as one is
// not; the machine looks for itself too.
func chooseTending(nodes []Node, c Choices) Choices {
	c.EtcdAsked = slices.DeleteFunc(slices.Clone(c.EtcdAsked), func(name string) bool { return !slices.Contains(c.EtcdVoters, name) })
	if n := find(nodes, c.EtcdTending); c.EtcdTending != "" {
		done := n == nil || n.Seen != nil && n.Seen.Etcd.Tended && !n.Seen.Etcd.Busy
		if done {
			c.EtcdAsked = slices.DeleteFunc(c.EtcdAsked, func(name string) bool { return name == c.EtcdTending })
		}
		if ok, _ := mayTend(nodes, c); done || !ok {
			c.EtcdTending = ""
		}
	}
	if len(c.EtcdAsked) == 0 {
		c.EtcdAsked = nil
	}
	if c.EtcdTending != "" {
		return c
	}
	if ok, _ := mayTend(nodes, c); !ok || slices.ContainsFunc(nodes, busy) {
		return c
	}
	for _, n := range nodes {
		if !wantsTending(nodes, n, c) || n.Seen.Etcd.Tended {
			continue
		}
		if c.EtcdTending == "" || !n.Seen.Etcd.Leader {
			c.EtcdTending = n.Name
		}
		if !n.Seen.Etcd.Leader {
			break
		}
	}
	return c
}

func busy(n Node) bool { return n.Seen != nil && n.Seen.Etcd.Busy }

// fit: it is a voter whose member can stand in for one that answers nobody.
func fit(n *Node) bool {
	return n != nil && n.ControlPlane && n.Seen != nil && !n.Seen.Installer && n.Seen.Etcd.Fit && working(n.State)
}

// mayTend says whether a member may be tended now, and if not, why.
func mayTend(nodes []Node, c Choices) (bool, string) {
	if ok, why := nothingElse(c); !ok {
		return false, why
	}
	var unfit []string
	for _, v := range c.EtcdVoters {
		if !fit(find(nodes, v)) {
			unfit = append(unfit, v)
		}
	}
	if len(unfit) > 0 {
		return false, "not while it is not well: " + list(unfit)
	}
	return true, ""
}

// nothingElse says whether nothing else is done to etcd, and if something is, what.
func nothingElse(c Choices) (bool, string) {
	switch {
	case c.leaving():
		return false, fmt.Sprintf("the member of %s is removed first", c.EtcdLeaving)
	case c.EtcdJoining != "":
		return false, c.EtcdJoining + " joins etcd first"
	case c.EtcdSaving != "":
		return false, fmt.Sprintf("a snapshot of %s is taken first", c.EtcdSaving)
	case c.EtcdRestarting != "":
		return false, c.EtcdRestarting + " starts its etcd anew first"
	}
	return true, ""
}

// full: etcd has raised NOSPACE.
func full(nodes []Node) bool {
	return slices.ContainsFunc(nodes, func(n Node) bool { return n.Seen != nil && n.Seen.Etcd.Full })
}

// wantsTending: there is something to be done on its member. When all have room again, anybody
// may take NOSPACE back.
func wantsTending(nodes []Node, n Node, c Choices) bool {
	if !slices.Contains(c.EtcdVoters, n.Name) || !fit(&n) {
		return false
	}
	if n.Seen.Etcd.Worth || slices.Contains(c.EtcdAsked, n.Name) {
		return true
	}
	if !full(nodes) {
		return false
	}
	roomy := !slices.ContainsFunc(c.EtcdVoters, func(v string) bool {
		o := find(nodes, v)
		return o == nil || o.Seen == nil || !o.Seen.Etcd.Room
	})
	return roomy || !n.Seen.Etcd.Room
}

// tendingSummary says what is done about etcd's databases; empty for nothing.
func tendingSummary(nodes []Node, c Choices) string {
	what := "is defragmented"
	if full(nodes) {
		what = "is compacted and defragmented, for etcd is full"
	}
	if c.EtcdTending != "" {
		return fmt.Sprintf("the database of %s %s, one member at a time", c.EtcdTending, what)
	}
	var want, late []string
	for _, n := range nodes {
		if wantsTending(nodes, n, c) {
			want = append(want, n.Name)
			if n.Seen.Etcd.Tended {
				late = append(late, n.Name)
			}
		}
	}
	if len(want) == 0 {
		return ""
	}
	s := fmt.Sprintf("to be defragmented: %s", list(want))
	if ok, why := mayTend(nodes, c); !ok {
		return s + "; " + why
	}
	if len(late) == len(want) {
		return s + "; it was tried, and is tried again within ten minutes"
	}
	return s
}

// AskTending says what is asked for when an operator wants members defragmented, by name, and
// why one cannot be; no name is empty then.
func AskTending(nodes []Node, c Choices, name string) (Choices, string) {
	n := find(nodes, name)
	switch {
	case !slices.Contains(c.EtcdVoters, name):
		return c, "it is no member of etcd with a vote"
	case n == nil || !fit(n):
		return c, "its member is not well, or has not said so lately"
	}
	c.EtcdAsked = with(c.EtcdAsked, name)
	return c, ""
}

// MayPause says whether etcd goes on while a machine is away for some minutes, and if not, why.
// how is what is to be done to it, such as "rebooting".
func MayPause(nodes []Node, c Choices, name, how string) (bool, string) {
	total := len(c.EtcdVoters)
	if !slices.Contains(c.EtcdVoters, name) {
		return true, ""
	}
	well, ill := healthy(nodes, c, name)
	if well >= quorum(total) {
		return true, ""
	}
	why := fmt.Sprintf("it is one of %d etcd voters, quorum is %d and %d of the others are healthy", total, quorum(total), well)
	if total == 1 {
		why = "it is the only etcd voter"
	} else if len(ill) > 0 {
		why += ", not " + list(ill)
	}
	return false, fmt.Sprintf("%s; while it is away for %s nothing can be written", why, how)
}
