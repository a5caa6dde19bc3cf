package coordinator

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Snapshot names a file that etcd begins anew out of. The zero value is none.
type Snapshot struct {
	// SHA256 is of the whole file, in lower-case hexadecimal.
	SHA256 string `json:"sha256,omitempty"`
	// Size is in bytes.
	Size uint64 `json:"size,omitempty"`
}

// AskSnapshot says what is chosen when an operator wants etcd to begin anew on one control plane
// out of a snapshot; or why it is not. lost are all other voters, so that nobody does it who does
// not know which they are. giveUp: although some call and have data, which is given up. id names
// it once. While it has not begun, another file for the same machine takes its place.
func AskSnapshot(nodes []Node, c Choices, name string, lost []string, from Snapshot, giveUp bool, id string) (Choices, string) {
	lost = slices.Compact(slices.Sorted(slices.Values(lost)))
	others := slices.DeleteFunc(slices.Clone(c.EtcdVoters), func(v string) bool { return v == name })
	n := find(nodes, name)
	switch {
	case c.EtcdAlone == name && c.EtcdSnapshot == from:
		return c, "" // asked before
	case c.EtcdAlone != "" && (c.EtcdAlone != name || c.EtcdSnapshot == Snapshot{}):
		return c, fmt.Sprintf("%s goes on as etcd's only member already", c.EtcdAlone)
	case len(c.EtcdVoters) == 0:
		return c, "etcd has no members yet: there is no cluster that the snapshot could be of"
	case n == nil || !n.ControlPlane || n.State == machine.Retired:
		return c, "it is no control plane"
	case !slices.Equal(lost, others):
		return c, fmt.Sprintf("the other voters are %s; name exactly these as lost", cmp.Or(list(others), "none"))
	}
	if well, _ := healthy(nodes, c, ""); well >= quorum(len(c.EtcdVoters)) && !giveUp {
		return c, fmt.Sprintf("%d of %d voters are healthy, and etcd has its quorum: all that was written since the snapshot would be lost; --give-up-data does it all the same", well, len(c.EtcdVoters))
	}
	for _, v := range c.EtcdVoters {
		o := find(nodes, v)
		if !giveUp && o != nil && unheard(*o) {
			return c, fmt.Sprintf("the server has just begun, and does not know yet whether %s runs; ask again in two minutes", v)
		}
		if !giveUp && o != nil && hasEtcd(*o) {
			return c, fmt.Sprintf("%s calls and has data of etcd, which may be newer than the snapshot; --give-up-data gives it up", v)
		}
	}
	if n.Seen == nil || !n.Seen.Joined {
		for _, o := range nodes {
			if o.Name != name && o.ControlPlane && o.Seen != nil && o.Seen.Joined {
				return c, fmt.Sprintf("%s is a node of Kubernetes and %s is none: have etcd begin anew there, so that kubeadm init need not run again", o.Name, name)
			}
		}
	}
	// Who was told to stop for another file has stopped: EtcdActing stays as it is.
	c.EtcdAlone, c.EtcdAloneID, c.EtcdSnapshot = name, id, from
	c.EtcdRestores++
	c.EtcdJoining, c.EtcdLeaving, c.EtcdRemover, c.EtcdTending, c.EtcdRestarting, c.EtcdSaving, c.EtcdAsked = "", "", "", "", "", "", nil
	return c, ""
}

// unheard: it has not called, and no server was there for long enough to say that it does not.
func unheard(n Node) bool { return n.Seen == nil && !n.Gone }

// hasEtcd: its installed system calls, and has data of etcd.
func hasEtcd(n Node) bool { return n.Seen != nil && !n.Seen.Installer && !n.Seen.EtcdEmpty }

// beginsAnew: etcd is to begin anew out of a snapshot, and has not.
func (c Choices) beginsAnew() bool { return c.EtcdAlone != "" && c.EtcdSnapshot != Snapshot{} }

// snapshotThere: the machine has the file that it is to begin with.
func snapshotThere(nodes []Node, c Choices) bool {
	n := find(nodes, c.EtcdAlone)
	return c.beginsAnew() && n != nil && n.Seen != nil && !n.Seen.Installer && n.Seen.EtcdSnapshot == c.EtcdSnapshot.SHA256
}

// SnapshotWaits says what etcd's beginning anew waits for; empty when nothing holds it up. Nobody
// is stopped before the file is where it is needed, and the old etcd answers nobody any more when
// the new one begins.
func SnapshotWaits(nodes []Node, c Choices) string {
	n := find(nodes, c.EtcdAlone)
	switch {
	case !c.beginsAnew():
		return ""
	case n == nil || n.Seen == nil:
		return fmt.Sprintf("%s does not call; without its disk: imagectl machines arm %s --reinstall", c.EtcdAlone, c.EtcdAlone)
	case n.Seen.Installer || !working(n.State):
		return fmt.Sprintf("the installed system of %s does not call; it is %s", n.Name, n.State)
	case !snapshotThere(nodes, c):
		return fmt.Sprintf("the snapshot is not on %s; say imagectl etcd restore again", n.Name)
	}
	for _, v := range c.EtcdVoters {
		o := find(nodes, v)
		switch {
		case v == n.Name || o == nil:
		case unheard(*o):
			return fmt.Sprintf("the server has just begun, and does not know yet whether %s runs", v)
		case hasEtcd(*o) && o.Seen.EtcdStopped != c.EtcdAloneID:
			return fmt.Sprintf("%s stops its etcd first", v)
		}
	}
	return ""
}

// stops says whether a machine is to stop its etcd, because another one begins anew.
func stops(nodes []Node, c Choices, name string) bool {
	return c.beginsAnew() && name != c.EtcdAlone && snapshotThere(nodes, c)
}

// begunAnew is what is chosen when etcd has begun anew out of a snapshot: nobody else is a voter;
// and where the machine is no node of Kubernetes none is, so that kubeadm init runs there again,
// with the same CAs, on what the snapshot has.
func begunAnew(n Node, c Choices) Choices {
	c.EtcdVoters, c.EtcdAlone, c.EtcdSnapshot, c.EtcdActing = []string{n.Name}, "", Snapshot{}, false
	if !n.Seen.Joined {
		c.KubernetesFirst, c.KubernetesFormed, c.APIServers, c.Renewing = n.Name, false, nil, ""
	}
	return c
}
