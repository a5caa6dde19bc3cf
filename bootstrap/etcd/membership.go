package etcd

import (
	"fmt"
	"slices"
	"strings"
)

// Peer is an entry of the cluster's list of members, with how it is.
type Peer struct {
	ID uint64
	// Name is empty until the member has been started.
	Name                 string
	PeerURLs, ClientURLs []string
	Learner              bool
	// Answers: something that shows this member's identity answers for it.
	Answers bool
	// Healthy: it answers, follows a leader and there is no alarm.
	Healthy bool
	// Follows: it follows a leader and answers a read, whatever alarms there are. Leader: it
	// leads.
	Follows, Leader bool
	// Alarms are all that it knows of, also those of others.
	Alarms  []Alarm
	Storage Storage
}

// Self is the machine that is to become a voter.
type Self struct {
	Name    string
	PeerURL string
	// HasData: there is a data directory, and ID is the member's that it belongs to,
	// 0 when that is not on record.
	HasData bool
	ID      uint64
}

// Do is what is done next about membership.
type Do string

// What may be done.
const (
	// DoWait: nothing can be done now; the reason says why.
	DoWait Do = "wait"
	// DoWipe: the data on this machine belongs to a member that was removed.
	DoWipe Do = "wipe"
	// DoRemove: take the member with that ID off the list.
	DoRemove Do = "remove"
	// DoAdd: put this machine on the list, as a learner.
	DoAdd Do = "add"
	// DoStart: the member with that ID is this machine's and is to be started.
	DoStart Do = "start"
	// DoPromote: give the learner with that ID its vote, as soon as it is in sync.
	DoPromote Do = "promote"
	// DoNothing: this machine is a voter and has its data.
	DoNothing Do = "nothing"
)

// Decision is what to do and why, with the arithmetic; one sentence.
type Decision struct {
	Do     Do
	ID     uint64
	Reason string
}

// Next decides the next change on the way of a machine to its vote, from the list
// of members that a quorum has confirmed. It is pure. One machine at a time may
// follow it, and nobody ever starts a member whose data is lost: that one would
// have forgotten what it voted for. Such an entry is removed and a new one added.
func Next(self Self, members []Peer) Decision {
	voters, well := 0, 0
	var mine *Peer
	for i, m := range members {
		if is(self, m) {
			mine = &members[i]
		}
		if m.Learner {
			continue
		}
		voters++
		if m.Healthy {
			well++
		}
	}
	switch {
	case self.HasData && mine == nil:
		return Decision{DoWipe, 0, "etcd does not list the member any more that this machine has the data of"}
	case self.HasData && !mine.Learner:
		return Decision{DoNothing, mine.ID, fmt.Sprintf("%s has a vote, one of %d", self.Name, voters)}
	case self.HasData:
		if why := tooFew(well, voters, ""); why != "" {
			return Decision{DoWait, mine.ID, "nothing can be promoted: " + why}
		}
		if why := tooFew(well+1, voters+1, "with it"); why != "" {
			return Decision{DoWait, mine.ID, "promoting it would stop etcd: " + why}
		}
		return Decision{DoPromote, mine.ID, fmt.Sprintf("%d of %d voters are healthy; with %s quorum is %d of %d", well, voters, self.Name, quorum(voters+1), voters+1)}
	}
	for _, m := range members {
		if m.Learner && !is(self, m) {
			return Decision{DoRemove, m.ID, fmt.Sprintf("the learner %s was left behind; it has no vote", label(m))}
		}
	}
	switch {
	case mine == nil:
		if why := tooFew(well, voters, ""); why != "" {
			return Decision{DoWait, 0, "nothing can be added: " + why}
		}
		if why := tooFew(well+1, voters+1, "with it"); why != "" {
			return Decision{DoWait, 0, "adding it would stop etcd: " + why}
		}
		return Decision{DoAdd, 0, fmt.Sprintf("%d of %d voters are healthy; with %s quorum is %d of %d", well, voters, self.Name, quorum(voters+1), voters+1)}
	case mine.Answers:
		return Decision{DoWait, mine.ID, fmt.Sprintf("the member %s answers at %s, although this machine has no data: another machine runs in its place", label(*mine), strings.Join(mine.ClientURLs, " "))}
	case mine.Learner && mine.Name == "":
		return Decision{DoStart, mine.ID, self.Name + " was added and never started"}
	case mine.Learner:
		return Decision{DoRemove, mine.ID, fmt.Sprintf("the learner %s has lost its data; it has no vote", label(*mine))}
	}
	if why := tooFew(well, voters, ""); why != "" {
		return Decision{DoWait, mine.ID, fmt.Sprintf("the member %s has lost its data and cannot be removed: %s; restore a snapshot", label(*mine), why)}
	}
	if why := tooFew(well, voters-1, "without it"); why != "" {
		return Decision{DoWait, mine.ID, fmt.Sprintf("the member %s has lost its data; removing it would stop etcd: %s", label(*mine), why)}
	}
	return Decision{DoRemove, mine.ID, fmt.Sprintf("the member %s has lost its data; %d of %d voters are healthy, without it quorum is %d of %d", label(*mine), well, voters, quorum(voters-1), voters-1)}
}

// Leave decides whether the member of a machine that is retired can be taken off the
// list that a quorum has confirmed. It is pure. Whoever else changes the list
// meanwhile, etcd itself refuses what would cost the quorum.
func Leave(name string, members []Peer) Decision {
	voters, well := 0, 0
	var its *Peer
	for i, m := range members {
		if m.Name == name {
			its = &members[i]
		}
		if !m.Learner {
			voters++
			if m.Healthy {
				well++
			}
		}
	}
	if its == nil {
		return Decision{DoNothing, 0, fmt.Sprintf("etcd has no member %s; it has %d voters", name, voters)}
	}
	if its.Learner {
		return Decision{DoRemove, its.ID, fmt.Sprintf("%s is a learner; it has no vote", label(*its))}
	}
	if why := tooFew(well, voters, ""); why != "" {
		return Decision{DoWait, its.ID, fmt.Sprintf("%s cannot be removed: %s", label(*its), why)}
	}
	others := well
	if its.Healthy {
		others--
	}
	if why := tooFew(others, voters-1, "without it"); why != "" {
		return Decision{DoWait, its.ID, fmt.Sprintf("removing %s would stop etcd: %s", label(*its), why)}
	}
	return Decision{DoRemove, its.ID, fmt.Sprintf("%s is retired; %d of %d voters are healthy, without it quorum is %d of %d", label(*its), well, voters, quorum(voters-1), voters-1)}
}

// is: the data says which member this machine is. Without, it is the one that it
// was added as, or a former life of this machine.
func is(self Self, m Peer) bool {
	if self.HasData && self.ID != 0 {
		return m.ID == self.ID
	}
	return m.Name == self.Name || m.Name == "" && slices.Contains(m.PeerURLs, self.PeerURL)
}

func label(m Peer) string {
	if m.Name == "" {
		return fmt.Sprintf("%x at %s", m.ID, strings.Join(m.PeerURLs, " "))
	}
	return fmt.Sprintf("%s (%x)", m.Name, m.ID)
}

func quorum(voters int) int { return voters/2 + 1 }

// tooFew says why well healthy voters of so many are no quorum; empty if they are.
func tooFew(well, voters int, when string) string {
	if well >= quorum(voters) {
		return ""
	}
	if when != "" {
		when += " "
	}
	return fmt.Sprintf("%s%d of %d voters healthy, quorum is %d", when, well, voters, quorum(voters))
}

// InitialCluster is the value of etcd's initial-cluster for a machine that was
// added to these members: every started one's name and this machine's.
func InitialCluster(self Self, members []Peer) string {
	var all []string
	for _, m := range members {
		name := m.Name
		if is(self, m) {
			name = self.Name
		}
		for _, u := range m.PeerURLs {
			all = append(all, name+"="+u)
		}
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}
