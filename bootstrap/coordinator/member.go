package coordinator

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// chooseMember keeps the list of voters, and gives the right to change etcd's
// membership to one machine at a time. That right is a matter of order, not of
// safety alone: whoever holds it looks at the members themselves before each
// change, and etcd refuses what would cost the quorum.
func chooseMember(nodes []Node, c Choices) Choices {
	if !c.EtcdFormed {
		return c
	}
	if len(c.EtcdVoters) == 0 { // records of older servers have no list
		c.EtcdVoters = []string{c.EtcdFirst}
	}
	if c.EtcdAlone != "" {
		return chooseAlone(nodes, c)
	}
	if n := find(nodes, c.EtcdLeaving); !c.leaving() && (n == nil || !n.ControlPlane || !working(n.State)) {
		c.EtcdLeaving = ""
	}
	for _, n := range nodes {
		// What one that leaves said last is no news.
		if n.ControlPlane && n.Seen != nil && n.Seen.EtcdHealthy && n.Name != c.EtcdLeaving && n.State != machine.Retired && !stale(nodes, c, n.Name) {
			c.EtcdVoters = with(c.EtcdVoters, n.Name)
		}
	}
	if c = chooseLeaving(nodes, c); c.leaving() {
		// One change at a time. What a joining machine leaves behind has no vote.
		c.EtcdJoining = ""
		return c
	}
	if c.EtcdJoining != "" && joiningEnds(find(nodes, c.EtcdJoining)) {
		c.EtcdJoining = ""
	}
	if c.EtcdJoining != "" || c.EtcdTending != "" || c.EtcdSaving != "" || c.EtcdRestarting != "" || slices.ContainsFunc(nodes, busy) {
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

// leaving: a member is being taken off etcd's list.
func (c Choices) leaving() bool {
	return c.EtcdLeaving != "" && slices.Contains(c.EtcdVoters, c.EtcdLeaving)
}

// chooseLeaving has the members of retired machines taken off etcd's list, one at a
// time, by a voter that is well and that lists them.
func chooseLeaving(nodes []Node, c Choices) Choices {
	for _, v := range c.EtcdVoters {
		if n := find(nodes, v); n != nil && leaves(*n, c) && removed(nodes, c, v) {
			c.EtcdVoters = slices.DeleteFunc(slices.Clone(c.EtcdVoters), func(o string) bool { return o == v })
		}
	}
	if !c.leaving() {
		c.EtcdRemover = ""
		// One that was well when it left stays out until it is retired or wiped.
		if n := find(nodes, c.EtcdLeaving); n == nil || !n.ControlPlane || !working(n.State) {
			c.EtcdLeaving = ""
		}
	}
	if c.EtcdLeaving == "" {
		for _, v := range c.EtcdVoters {
			if n := find(nodes, v); n != nil && n.State == machine.Retired {
				c.EtcdLeaving = v
				break
			}
		}
	}
	if !c.leaving() {
		return c
	}
	if n := find(nodes, c.EtcdLeaving); n == nil || !leaves(*n, c) {
		// It is wiped instead, and replaces its own member.
		c.EtcdLeaving, c.EtcdRemover = "", ""
		return c
	}
	if n := find(nodes, c.EtcdRemover); n != nil && lists(*n, c, c.EtcdLeaving) {
		return c
	}
	c.EtcdRemover = ""
	if ok, _ := mayLeave(nodes, c); !ok || c.EtcdSaving != "" || slices.ContainsFunc(nodes, busy) {
		return c
	}
	for _, n := range nodes {
		if lists(n, c, c.EtcdLeaving) {
			c.EtcdRemover = n.Name
			break
		}
	}
	return c
}

// leaves: it is retired, or asked to leave while it is at work.
func leaves(n Node, c Choices) bool {
	return n.State == machine.Retired || n.Name == c.EtcdLeaving && working(n.State)
}

// sound: it is a voter that others can rely on.
func sound(n Node, c Choices) bool {
	return slices.Contains(c.EtcdVoters, n.Name) && n.Seen != nil && n.Seen.EtcdHealthy && working(n.State)
}

// lists: it is another voter that is well, and its list has that member.
func lists(n Node, c Choices, name string) bool {
	return n.Name != name && sound(n, c) && slices.Contains(n.Seen.EtcdMembers, name)
}

// removed: every other voter that is well has a list without that member.
func removed(nodes []Node, c Choices, name string) bool {
	without := 0
	for _, n := range nodes {
		if n.Name == name || !sound(n, c) || len(n.Seen.EtcdMembers) == 0 {
			continue
		}
		if slices.Contains(n.Seen.EtcdMembers, name) {
			return false
		}
		without++
	}
	return without > 0
}

// mayLeave does the arithmetic for the member that is to be taken off the list: a
// quorum of today's voters has to agree, and the others are to be one of their own.
func mayLeave(nodes []Node, c Choices) (bool, string) {
	total := len(c.EtcdVoters)
	others, ill := healthy(nodes, c, c.EtcdLeaving)
	well := others
	if n := find(nodes, c.EtcdLeaving); n != nil && sound(*n, c) {
		well++
	}
	switch {
	case total < 2:
		return false, fmt.Sprintf("%s holds the only copy of the cluster's etcd", c.EtcdLeaving)
	case well < quorum(total):
		return false, fmt.Sprintf("removing %s from etcd needs a quorum of %d of %d voters, and %d are healthy, not %s", c.EtcdLeaving, quorum(total), total, well, list(ill))
	case others < quorum(total-1):
		return false, fmt.Sprintf("without %s etcd has %d voters, quorum is %d and %d are healthy, not %s", c.EtcdLeaving, total-1, quorum(total-1), others, list(ill))
	}
	return true, fmt.Sprintf("%s is removed from etcd: quorum goes from %d of %d voters to %d of %d", c.EtcdLeaving, quorum(total), total, quorum(total-1), total-1)
}

// MayLeave says whether a voter that is well can be taken off etcd's list first, where
// retiring it at once would stop the cluster: it has to help to decide that.
func MayLeave(nodes []Node, c Choices, name string) bool {
	if c.EtcdLeaving != "" && c.EtcdLeaving != name || c.EtcdJoining != "" {
		return false
	}
	n := find(nodes, name)
	if n == nil || !sound(*n, c) {
		return false
	}
	c.EtcdLeaving = name
	ok, _ := mayLeave(nodes, c)
	return ok
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
	return n.Name != c.EtcdLeaving && n.ControlPlane && n.Seen != nil && !n.Gone && !n.Seen.Installer && !n.Seen.EtcdHealthy && working(n.State) &&
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
	// What voters have was given up, and what counts is a file.
	if !slices.Contains(c.EtcdVoters, name) || c.beginsAnew() {
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

// Without is what etcd is while a voter's connections are refused, in one sentence; empty for a
// machine that is none.
func Without(nodes []Node, c Choices, name string) string {
	total := len(c.EtcdVoters)
	if !slices.Contains(c.EtcdVoters, name) {
		return ""
	}
	well, ill := healthy(nodes, c, name)
	s := fmt.Sprintf("without %s %d of %d etcd voters are healthy, quorum is %d", name, well, total, quorum(total))
	if len(ill) > 0 {
		s += ", not healthy: " + list(ill)
	}
	if well < quorum(total) {
		s += ": nothing can be written until it has a certificate again"
	}
	return s
}

// EtcdSummary says how far etcd is from losing its quorum, by machines and by zones; one
// sentence.
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
	if c.beginsAnew() {
		return s + fmt.Sprintf("; %s begins anew out of a snapshot: %s", c.EtcdAlone, cmp.Or(SnapshotWaits(nodes, c), "nothing holds it up"))
	}
	if c.EtcdAlone != "" {
		return s + fmt.Sprintf("; %s goes on as the only member", c.EtcdAlone)
	}
	if c.leaving() {
		_, why := mayLeave(nodes, c)
		s += "; " + why
	}
	if c.EtcdSaving != "" {
		s += fmt.Sprintf("; a snapshot of %s is taken", c.EtcdSaving)
	}
	if why := restartSummary(nodes, c); why != "" {
		s += "; " + why
	}
	if why := tendingSummary(nodes, c); why != "" {
		s += "; " + why
	}
	switch spare := well - need; {
	case spare < 0:
		return s + fmt.Sprintf("; %d more must come back before anything can be written", -spare)
	case spare == 0:
		return s + "; none may fail" + zoneSummary(nodes, c)
	default:
		return s + fmt.Sprintf("; %d may fail", spare) + zoneSummary(nodes, c)
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
	case c.EtcdAlone == n.Name && c.beginsAnew():
		return EtcdAlone, "it begins anew as etcd's only member, out of a snapshot"
	case c.EtcdAlone == n.Name:
		return EtcdAlone, "all other voters are lost: it goes on as the only member with what it has"
	case c.EtcdAlone != "":
		return EtcdWait, fmt.Sprintf("etcd begins anew with what %s has first", c.EtcdAlone)
	case c.EtcdJoining == n.Name && member:
		return EtcdJoin, fmt.Sprintf("the lost etcd member %s is replaced: quorum is %d of %d voters, then %d of %d, then %d of %d again",
			n.Name, quorum(voters), voters, quorum(voters-1), voters-1, quorum(voters), voters)
	case c.EtcdJoining == n.Name:
		return EtcdJoin, fmt.Sprintf("%s is added to etcd as a learner and gets a vote when it is in sync: quorum goes from %d of %d voters to %d of %d",
			n.Name, quorum(voters), voters, quorum(voters+1), voters+1)
	case c.EtcdLeaving == n.Name && !member:
		return EtcdWait, fmt.Sprintf("its etcd member is removed; imagectl machines retire %s", n.Name)
	case member && !n.Seen.EtcdEmpty:
		return EtcdRun, ""
	case !working(n.State):
		return EtcdWait, fmt.Sprintf("%s is %s and takes no part until it is approved again", n.Name, n.State)
	case c.leaving():
		return EtcdWait, fmt.Sprintf("the etcd member of %s is removed first", c.EtcdLeaving)
	case c.EtcdJoining != "":
		return EtcdWait, fmt.Sprintf("%s joins etcd first, one at a time", c.EtcdJoining)
	}
	if ok, why := mayJoin(nodes, c, n); !ok {
		return EtcdWait, why
	}
	if c.EtcdSaving != "" {
		return EtcdWait, fmt.Sprintf("%s is next to join etcd, when the snapshot of %s is taken", n.Name, c.EtcdSaving)
	}
	return EtcdWait, fmt.Sprintf("%s is next to join etcd", n.Name)
}
