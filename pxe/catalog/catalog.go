// Package catalog decides what each machine of a plan boots. It implements
// boot.Source from an immutable snapshot in memory: indexed once, swapped whole,
// so that a packet costs a few map look-ups and never sees half a change.
package catalog

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/selector"
)

// States tells how far a machine is. It is asked for every packet: it answers
// from memory and is safe for concurrent use. The zero State means that nothing
// is known about the machine yet.
type States interface {
	State(name string) machine.State
}

// Config is the content of a snapshot. All fields but Files and Configured are required.
type Config struct {
	Plan plan.Plan
	// Kernel and Initrd are the installer's.
	Kernel boot.Blob
	Initrd []boot.Blob
	// Configured says that the last of Initrd brings what Ignition would return.
	Configured bool
	// Files may be fetched by anyone besides Kernel and Initrd: what the
	// installer's Ignition config names.
	Files []boot.Blob
	// Ignition renders the first config of the installer on a machine; the empty
	// name stands for machines that are not in cluster.yaml.
	Ignition func(machine string) ([]byte, error)
	// Diskless is what diskless machines of Plan boot besides, by name.
	Diskless map[string]Diskless
	States   States
	// Now is time.Now unless a test says otherwise.
	Now func() time.Time
}

// Diskless is what a diskless machine boots besides the kernel and the first of Initrd.
type Diskless struct {
	// Archive takes the place of the installer's last Initrd where Configured.
	Archive boot.Blob
	// Args are kernel arguments of its role.
	Args []string
}

// Catalog implements boot.Source, dhcp.Source, dhcp6.Source and
// httpboot.Source. It is safe for
// concurrent use.
type Catalog struct {
	current atomic.Pointer[snapshot]

	mu    sync.RWMutex
	cards cards
	// bound are the machines that fitted a selector last, by its machine's name.
	bound map[string]binding
}

// New builds a catalog. It fails when anything in it could not be served as it is.
func New(cfg Config) (*Catalog, error) {
	c := &Catalog{cards: newCards(), bound: map[string]binding{}}
	return c, c.Replace(cfg)
}

// Replace swaps the whole content. After an error the old content stays.
func (c *Catalog) Replace(cfg Config) error {
	s, err := newSnapshot(cfg)
	if err != nil {
		return err
	}
	c.current.Store(s)
	return nil
}

// Network implements dhcp.Source.
func (c *Catalog) Network() *boot.Network { return &c.current.Load().network }

// Network6 implements dhcp6.Source.
func (c *Catalog) Network6() *boot.Network6 { return &c.current.Load().network6 }

// Blob finds a public file by its digest.
func (c *Catalog) Blob(sha256 string) (boot.Blob, bool) {
	b, ok := c.current.Load().blobs[sha256]
	return b, ok
}

// Look is Decide for people who ask: the machine is not there, and nothing is learned.
func (c *Catalog) Look(m boot.Machine) boot.Answer {
	m.Here = false
	return c.Decide(m)
}

// Decide implements boot.Source. It remembers who a machine is that is here; others are
// answered by what they say, and leave no trace.
func (c *Catalog) Decide(m boot.Machine) boot.Answer {
	s := c.current.Load()
	found, fits := s.find(m), false
	if len(found) == 0 {
		found = s.fitting(m)
		fits = len(found) > 0
	}
	if len(found) == 0 {
		if at, ok := c.learned(m.MAC); ok {
			if i, ok := s.byName[at.name]; ok && !s.entries[i].selector.Contradicts(shown(m)) {
				found = []int{i}
			}
		}
	}
	switch len(found) {
	case 0:
		return s.forProcessor(m, s.unknown(m))
	case 1:
		e := s.entries[found[0]]
		if fits {
			if other, ok := c.bind(m, e.Name, s.now()); !ok {
				return conflict("it fits the selector of %s, and so does the machine with the card %s, which was seen less than %s ago: make the selector narrower", e.Name, other, bindTime)
			}
		}
		a := s.known(e)
		if other := c.learn(s, m, e.Name, fits); other != "" {
			a.Reason += fmt.Sprintf(" (but its card stays with %s, whose address it has by a lease that goes on; if it was moved for good, list it under match.mac of cluster.yaml)", other)
		}
		return s.forProcessor(m, a)
	}
	names := []string{s.entries[found[0]].Name, s.entries[found[1]].Name}
	slices.Sort(names)
	if fits {
		return conflict("it fits the selectors of two machines of cluster.yaml, %s and %s: make them narrower", names[0], names[1])
	}
	return conflict("it shows marks of two machines of cluster.yaml, %s and %s: correct their mac, uuid or serial", names[0], names[1])
}

// conflict is the answer to a machine that nobody can name.
func conflict(format string, args ...any) boot.Answer {
	return boot.Answer{Action: boot.None, Code: "conflict", Refused: true, Reason: fmt.Sprintf(format, args...)}
}

// Ignition implements boot.Source.
func (c *Catalog) Ignition(m boot.Machine) ([]byte, error) {
	a := c.Decide(m)
	if !a.Action.Loads() {
		return nil, fmt.Errorf("rendering Ignition: the machine is to %s, not to boot a system of ours: %s", a.Action, a.Reason)
	}
	return c.current.Load().ignitionOf(a.Name)
}

// entry is a machine with everything its answer needs.
type entry struct {
	Name      string
	Address   netip.Addr
	LocalBoot string
	Program   boot.Program
	Quirks    []string
	Args      []string
	// Initrd is nil for a machine with a disk, which has the installer's.
	Initrd   []boot.Blob
	selector selector.Selector
}

// notArmed is the code of a machine that an operator has to arm.
const notArmed = "not-armed"

// known answers for a machine of cluster.yaml: its own disk, unless an operator
// has armed it.
func (s *snapshot) known(e entry) boot.Answer {
	a := boot.Answer{Action: boot.Local, Name: e.Name, Address: e.Address, LocalBoot: e.LocalBoot, Program: e.Program, Quirks: e.Quirks}
	state := s.states.State(e.Name)
	a.Code = string(state)
	arm := "imagectl machines arm " + e.Name
	if e.Initrd != nil {
		return s.diskless(e, state, a)
	}
	switch state {
	case machine.Armed:
		a.Action, a.Reason = boot.Install, "it is armed: once its key is approved the installer writes its disk"
	case machine.Installing:
		a.Action, a.Reason = boot.Install, "its installation has begun and goes on"
	case machine.Installed, machine.Enrolled, machine.Member, machine.Ready:
		a.Reason = "it is installed and boots its own disk"
	case machine.Failed:
		a.Refused = true
		a.Reason = "it has failed (imagectl status " + e.Name + "); to install it again: " + arm
	case machine.Quarantined:
		a.Refused = true
		a.Reason = "two keys claim to be it; compare the codes: imagectl machines ls"
	case machine.Retired:
		a.Refused = true
		a.Reason = "it is retired"
	default: // Approved, Discovered, or nothing known yet
		a.Refused = true
		a.Code, a.Reason = notArmed, "it is not armed, its disk stays as it is; to install it: "+arm
	}
	if a.Action == boot.Install {
		a.Kernel, a.Initrd, a.Configured, a.Args = s.kernel, s.initrd, s.configured, e.Args
	}
	return a
}

// diskless answers for a machine that has nothing of its own to boot. Who it is, its key
// says: a machine that has failed, or whose key waits, starts and is told so.
func (s *snapshot) diskless(e entry, state machine.State, a boot.Answer) boot.Answer {
	switch state {
	case machine.Retired:
		a.Refused, a.Reason = true, "it is retired"
	case machine.Armed, machine.Installing:
		// From before: nobody can arm it now.
		a.Refused, a.Reason = true, "it was armed before cluster.yaml said that it is diskless; take that back: imagectl machines disarm "+e.Name
	default:
		a.Action, a.Code, a.Reason = boot.Run, "diskless", "it is diskless and runs in its memory; no disk is written"
		a.Kernel, a.Initrd, a.Configured, a.Args = s.kernel, e.Initrd, s.configured, e.Args
	}
	return a
}

func (s *snapshot) unknown(m boot.Machine) boot.Answer {
	if len(m.MAC) == 6 {
		if server, ok := s.theirs[card(m.MAC)]; ok {
			return boot.Answer{Action: boot.None, Code: boot.CodeNeighbour, Refused: true, Reason: fmt.Sprintf("it is a machine of another cluster, whose server %s answers it (boot.neighbours)", server)}
		}
	}
	if s.unknownPolicy == plan.Ignore {
		return boot.Answer{Action: boot.None, Code: "unknown-machine", Refused: true, Reason: "it is not in cluster.yaml, which says to ignore such machines"}
	}
	return boot.Answer{
		Action: boot.Discover, Code: "unknown-machine", LocalBoot: defaultLocalBoot, Program: s.program,
		Reason: "it is not in cluster.yaml: it reports itself and writes no disk",
		Kernel: s.kernel, Initrd: s.initrd, Configured: s.configured, Args: s.args,
	}
}

// forProcessor takes from an answer what the machine's processor cannot run: there is one
// installer and one image for each role, all for flatcar.arch. Who boots its own disk may
// do so on any.
func (s *snapshot) forProcessor(m boot.Machine, a boot.Answer) boot.Answer {
	has := m.Firmware.Arch()
	if has != "" && has != "amd64" {
		a.Program = boot.IPXE // shim and GRUB are for x86-64
	}
	if has == "" || has == s.arch || a.Action == boot.None || a.Action == boot.Local && a.Code != notArmed {
		return a
	}
	return boot.Answer{
		Action: boot.Local, Name: a.Name, Address: a.Address, LocalBoot: a.LocalBoot, Program: a.Program, Quirks: a.Quirks,
		Code: "no-image", Refused: true, Told: true,
		Reason: fmt.Sprintf("its processor is %s, and all images of this cluster are for %s (flatcar.arch in cluster.yaml): nothing is started and nothing is written", has, s.arch),
	}
}
