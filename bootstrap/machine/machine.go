// Package machine owns the lifecycle of a machine: its states, the events that
// move it, and the one transition function. It is pure: no clock, no store, no
// network. Who stores the result and who is told about it is decided elsewhere.
package machine

import "fmt"

// State is a stage of a machine's life. The zero value is not a valid state.
type State string

// The states, in the order of a normal life.
const (
	// Discovered: seen on the network or enrolled, but not in cluster.yaml.
	Discovered State = "discovered"
	// Approved: its hardware is listed in the reviewed cluster.yaml. Nothing may
	// write its disk.
	Approved State = "approved"
	// Armed: the next netboot may install it, once.
	Armed State = "armed"
	// Installing: an approved key holds the arming and is writing the disk.
	Installing State = "installing"
	// Installed: the image was written and verified; it boots its own disk now.
	Installed State = "installed"
	// Enrolled: its installed system has called with its certificate.
	Enrolled State = "enrolled"
	// Member: a voting or learning etcd member (control planes only).
	Member State = "member"
	// Ready: its Kubernetes node is Ready.
	Ready State = "ready"

	// Quarantined: two keys claim the machine; an operator decides.
	Quarantined State = "quarantined"
	// Failed: it gave up and says why; arming it again is the way out.
	Failed State = "failed"
	// Retired: removed for good; its certificates are refused.
	Retired State = "retired"
)

// Event is something that happened to a machine.
type Event string

// The events.
const (
	// Listed: cluster.yaml names it.
	Listed Event = "listed"
	// Arm: an operator allows one installation.
	Arm Event = "arm"
	// ArmReinstall: an operator allows one installation over an existing one.
	ArmReinstall Event = "arm-reinstall"
	// Disarm: an operator takes an arming back.
	Disarm Event = "disarm"
	// InstallBegun: an installer with an approved key took the install directive.
	InstallBegun Event = "install-begun"
	// InstallDone: the image is on the disk, verified.
	InstallDone Event = "install-done"
	// NodeSeen: the installed system called with its certificate.
	NodeSeen Event = "node-seen"
	// EtcdJoined: it is an etcd member.
	EtcdJoined Event = "etcd-joined"
	// NodeReady: Kubernetes says Ready.
	NodeReady Event = "node-ready"
	// NodeNotReady: Kubernetes no longer says Ready.
	NodeNotReady Event = "node-not-ready"
	// KeyConflict: a second key claims the machine.
	KeyConflict Event = "key-conflict"
	// ConflictResolved: an operator accepted one of the keys.
	ConflictResolved Event = "conflict-resolved"
	// Fail: it reported a failure.
	Fail Event = "fail"
	// Retire: an operator removed it.
	Retire Event = "retire"
	// Replace: an operator gave its name to other hardware.
	Replace Event = "replace"
)

// RefusedError says that an event is not possible in a state.
type RefusedError struct {
	State State
	Event Event
	// Hint is what to do about it, one sentence.
	Hint string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("a machine that is %s does not take %s: %s", e.State, e.Event, e.Hint)
}
