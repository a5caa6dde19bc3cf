package coordinator

import (
	"fmt"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// CallOff says what is chosen when an operator wants a restore of etcd called off that was asked for
// with a machine; or why it is not. It is, as long as nobody has been told to do anything that cannot
// be taken back: the file may be on the machine already, for that changes nothing, until a server
// has seen it there.
func CallOff(nodes []Node, c Choices, name string) (Choices, string) {
	switch {
	case c.EtcdAlone == "" && c.EtcdAloneID != "":
		return c, "no restore of etcd is under way: what was asked for last is done, or was called off"
	case c.EtcdAlone == "":
		return c, "no restore of etcd is under way"
	case c.EtcdAlone != name:
		return c, fmt.Sprintf("etcd is restored with %s, not with %s", c.EtcdAlone, name)
	case !c.beginsAnew():
		return c, fmt.Sprintf("%s was told to go on as etcd's only member, and may have done so", name)
	case c.EtcdActing || snapshotThere(nodes, c):
		return c, fmt.Sprintf("%s has the snapshot, and the other members were told to stop", name)
	}
	for _, n := range nodes {
		if n.Seen != nil && c.EtcdAloneID != "" && (n.Seen.EtcdStopped == c.EtcdAloneID || n.Seen.EtcdAlone == c.EtcdAloneID) {
			return c, fmt.Sprintf("%s has done its part already", n.Name)
		}
	}
	off := c
	off.EtcdAlone, off.EtcdSnapshot, off.EtcdActing = "", Snapshot{}, false
	// While etcd was to begin anew anybody could be armed.
	for _, v := range c.EtcdVoters {
		n := find(nodes, v)
		if n == nil || n.State != machine.Armed && n.State != machine.Installing {
			continue
		}
		if ok, why := MayLose(nodes, off, v, "wiping"); !ok {
			return c, fmt.Sprintf("%s is %s, and %s; imagectl machines disarm %s comes first", v, n.State, why, v)
		}
	}
	return off, ""
}
