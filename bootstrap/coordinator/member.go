package coordinator

import (
	"fmt"
	"slices"
)

// chooseMember keeps the list of voters, and gives the right to change etcd's
// membership to one machine at a time. That right is a matter of order, not of
// safety alone: whoever holds it looks at the members themselves before each
// change, and etcd refuses what would cost the quorum.
func chooseMember(nodes []Node, c Choices) Choices {
	if !c.EtcdFormed {
		return c
	}
	// Records of older servers have no list.
	c.EtcdVoters = with(c.EtcdVoters, c.EtcdFirst)
	for _, n := range nodes {
		if n.ControlPlane && n.Seen != nil && n.Seen.EtcdHealthy {
			c.EtcdVoters = with(c.EtcdVoters, n.Name)
		}
	}
	if c.EtcdJoining != "" && joiningEnds(find(nodes, c.EtcdJoining)) {
		c.EtcdJoining = ""
	}
	if c.EtcdJoining != "" {
		return c
	}
	for _, n := range nodes {
		if !wantsMember(n, c) {
			continue
		}
		if ok, _ := mayJoin(nodes, c, n); ok {
			c.EtcdJoining = n.Name
			break
		}
	}
	return c
}

// joiningEnds: it is a voter, or it will not become one now. What it leaves
// behind, at most a learner, has no vote; the next one removes it.
func joiningEnds(n *Node) bool {
	return n == nil || !n.ControlPlane || n.Gone || !working(n.State) ||
		n.Seen != nil && (n.Seen.Installer || n.Seen.EtcdHealthy)
}

// wantsMember: it should be a voter and is none, or it was one and has lost its
// data. One that is merely down is not concerned: its data says who it is.
func wantsMember(n Node, c Choices) bool {
	return n.ControlPlane && n.Seen != nil && !n.Gone && !n.Seen.Installer && !n.Seen.EtcdHealthy && working(n.State) &&
		(n.Seen.EtcdEmpty || !slices.Contains(c.EtcdVoters, n.Name))
}

// healthy voters answer and are not about to be wiped.
func healthy(nodes []Node, c Choices, but string) (well int, ill []string) {
	for _, v := range c.EtcdVoters {
		switch n := find(nodes, v); {
		case v == but:
		case n != nil && n.Seen != nil && n.Seen.EtcdHealthy && working(n.State):
			well++
		default:
			ill = append(ill, v)
		}
	}
	return well, ill
}

// mayJoin does the arithmetic for a machine that is to become a member.
func mayJoin(nodes []Node, c Choices, n Node) (bool, string) {
	total := len(c.EtcdVoters)
	well, ill := healthy(nodes, c, n.Name)
	if !slices.Contains(c.EtcdVoters, n.Name) {
		if len(ill) > 0 {
			return false, fmt.Sprintf("%d of %d etcd voters are healthy, not %s; %s is added when all are", well, total, list(ill), n.Name)
		}
		return true, ""
	}
	if need := quorum(total); well < need {
		return false, fmt.Sprintf("%s was an etcd voter and has lost its data; removing it needs a quorum of %d of %d, and %d others are healthy", n.Name, need, total, well)
	}
	return true, ""
}

// MayLose says whether etcd goes on without a machine, and if not, why. how is what
// is to be done to it, such as "wiping".
func MayLose(nodes []Node, c Choices, name, how string) (bool, string) {
	total := len(c.EtcdVoters)
	if !slices.Contains(c.EtcdVoters, name) {
		return true, ""
	}
	if total < 2 {
		return false, fmt.Sprintf("it holds the only copy of the cluster's etcd; %s it would destroy the cluster", how)
	}
	if well, _ := healthy(nodes, c, name); well < quorum(total) {
		return false, fmt.Sprintf("it is one of %d etcd voters, quorum is %d and %d of the others are healthy; %s it now would stop the cluster", total, quorum(total), well, how)
	}
	return true, ""
}

// EtcdSummary says how far etcd is from losing its quorum; one sentence.
func EtcdSummary(nodes []Node, c Choices) string {
	total := len(c.EtcdVoters)
	if total == 0 {
		return "etcd has no members yet"
	}
	well, ill := healthy(nodes, c, "")
	need := quorum(total)
	s := fmt.Sprintf("%d of %d voters are healthy, quorum is %d", well, total, need)
	if len(ill) > 0 {
		s += ", not healthy: " + list(ill)
	}
	switch spare := well - need; {
	case spare < 0:
		return s + fmt.Sprintf("; %d more must come back before anything can be written", -spare)
	case spare == 0:
		return s + "; none may fail"
	default:
		return s + fmt.Sprintf("; %d may fail", spare)
	}
}

func quorum(voters int) int { return voters/2 + 1 }

func etcd(nodes []Node, n Node, c Choices) (EtcdAction, string) {
	voters := len(c.EtcdVoters)
	member := slices.Contains(c.EtcdVoters, n.Name)
	switch {
	case !n.ControlPlane:
		return EtcdNone, ""
	case c.EtcdFirst == "":
		return EtcdWait, fmt.Sprintf("%s is %s and takes no part until it is approved again", n.Name, n.State)
	case !c.EtcdFormed && c.EtcdFirst == n.Name:
		return EtcdBootstrap, ""
	case !c.EtcdFormed:
		return EtcdWait, fmt.Sprintf("%s starts etcd first", c.EtcdFirst)
	case c.EtcdJoining == n.Name && member:
		return EtcdJoin, fmt.Sprintf("the lost etcd member %s is replaced: quorum is %d of %d voters, then %d of %d, then %d of %d again",
			n.Name, quorum(voters), voters, quorum(voters-1), voters-1, quorum(voters), voters)
	case c.EtcdJoining == n.Name:
		return EtcdJoin, fmt.Sprintf("%s is added to etcd as a learner and gets a vote when it is in sync: quorum goes from %d of %d voters to %d of %d",
			n.Name, quorum(voters), voters, quorum(voters+1), voters+1)
	case member && !n.Seen.EtcdEmpty:
		return EtcdRun, ""
	case !working(n.State):
		return EtcdWait, fmt.Sprintf("%s is %s and takes no part until it is approved again", n.Name, n.State)
	case c.EtcdJoining != "":
		return EtcdWait, fmt.Sprintf("%s joins etcd first, one at a time", c.EtcdJoining)
	}
	if ok, why := mayJoin(nodes, c, n); !ok {
		return EtcdWait, why
	}
	return EtcdWait, fmt.Sprintf("%s is next to join etcd", n.Name)
}
