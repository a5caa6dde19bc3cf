package coordinator

import (
	"fmt"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// AskAlone says what is chosen when an operator wants etcd to go on with one voter, since so
// many others are lost with their disks that it has no quorum any more; or why it is not. lost
// are all other voters, so that nobody does it who does not know which they are. id names it
// once.
func AskAlone(nodes []Node, c Choices, name string, lost []string, id string) (Choices, string) {
	lost = slices.Compact(slices.Sorted(slices.Values(lost)))
	others := slices.DeleteFunc(slices.Clone(c.EtcdVoters), func(v string) bool { return v == name })
	n := find(nodes, name)
	switch {
	case c.EtcdAlone == name && !c.beginsAnew():
		return c, "" // asked before
	case c.beginsAnew():
		return c, fmt.Sprintf("%s begins anew out of a snapshot already", c.EtcdAlone)
	case c.EtcdAlone != "":
		return c, fmt.Sprintf("%s goes on as etcd's only member already", c.EtcdAlone)
	case len(c.EtcdVoters) == 0:
		return c, "etcd has no members yet"
	case len(others) == len(c.EtcdVoters):
		return c, fmt.Sprintf("it is no voter of etcd; they are %s", list(c.EtcdVoters))
	case len(others) == 0:
		return c, "it is etcd's only voter: nothing is lost that others had"
	case n == nil || n.Seen == nil || n.Seen.Installer || !working(n.State):
		return c, "its installed system does not call"
	case n.Seen.EtcdEmpty:
		return c, "it has no data of etcd"
	case !slices.Equal(lost, others):
		return c, fmt.Sprintf("the other voters are %s; name exactly these as lost", list(others))
	}
	if well, _ := healthy(nodes, c, ""); well >= quorum(len(c.EtcdVoters)) {
		return c, fmt.Sprintf("%d of %d voters are healthy, and etcd has its quorum: replace the others one by one", well, len(c.EtcdVoters))
	}
	for _, v := range others {
		if o := find(nodes, v); o != nil && unheard(*o) {
			return c, fmt.Sprintf("the server has just begun, and does not know yet whether %s runs; ask again in two minutes", v)
		}
		if o := find(nodes, v); o != nil && o.Seen != nil && !o.Seen.Installer && !o.Seen.EtcdEmpty {
			return c, fmt.Sprintf("%s calls, and is not lost: its member may come back", v)
		}
	}
	// It calls, and is told within seconds.
	c.EtcdAlone, c.EtcdAloneID, c.EtcdActing = name, id, true
	c.EtcdJoining, c.EtcdLeaving, c.EtcdRemover, c.EtcdTending, c.EtcdRestarting, c.EtcdSaving, c.EtcdAsked = "", "", "", "", "", "", nil
	return c, ""
}

// chooseAlone waits until etcd has begun anew with one member, and then the others are no
// voters any more. Nothing else about the membership is chosen meanwhile.
func chooseAlone(nodes []Node, c Choices) Choices {
	n := find(nodes, c.EtcdAlone)
	switch {
	case n == nil || !n.ControlPlane || n.State == machine.Retired || !c.beginsAnew() && !working(n.State):
		c.EtcdAlone, c.EtcdSnapshot, c.EtcdActing = "", Snapshot{}, false // it takes no part any more, and has not begun
	case n.Seen != nil && n.Seen.EtcdAlone == c.EtcdAloneID && n.Seen.Etcd.Fit && slices.Equal(n.Seen.EtcdMembers, []string{n.Name}):
		if c.beginsAnew() {
			return begunAnew(*n, c)
		}
		c.EtcdVoters, c.EtcdAlone, c.EtcdActing = []string{n.Name}, "", false
	case snapshotThere(nodes, c):
		// From here on the others stop. That is stored before anybody is told.
		c.EtcdActing = true
	}
	return c
}

// stale: it answers as a member of the etcd that was given up. Since etcd has begun anew, only
// who joins or is on the list of a voter that is well becomes one.
func stale(nodes []Node, c Choices, name string) bool {
	if c.EtcdAloneID == "" || name == c.EtcdJoining || slices.Contains(c.EtcdVoters, name) {
		return false
	}
	return !slices.ContainsFunc(nodes, func(n Node) bool { return lists(n, c, name) })
}
