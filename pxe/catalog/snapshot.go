package catalog

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coreos/ignition/v2/config"

	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/selector"
)

// defaultLocalBoot suits most firmware; see docs/netboot.md for the others.
const defaultLocalBoot = "exit"

// FirstBoot is the kernel argument that makes Flatcar's initramfs run Ignition.
const FirstBoot = "flatcar.first_boot=1"

// snapshot is immutable.
type snapshot struct {
	entries  []entry
	byMAC    map[card]int
	byUUID   map[[16]byte]int
	bySerial map[string]int
	byName   map[string]int
	// theirs are the servers of other clusters by their machines' cards.
	theirs map[card]netip.Addr
	// selecting are the entries that have a selector.
	selecting []int

	kernel     boot.Blob
	initrd     []boot.Blob
	configured bool
	args       []string
	// arch is the processor that kernel and images are for.
	arch  string
	blobs map[string]boot.Blob
	// ignition by machine name.
	ignition map[string][]byte

	network       boot.Network
	network6      boot.Network6
	unknownPolicy plan.UnknownMachines
	// program is that of unknown machines.
	program boot.Program
	states  States
	now     func() time.Time
}

func newSnapshot(cfg Config) (*snapshot, error) {
	p := cfg.Plan
	s := &snapshot{
		byMAC: map[card]int{}, byUUID: map[[16]byte]int{}, bySerial: map[string]int{}, byName: map[string]int{}, theirs: map[card]netip.Addr{},
		arch: cmp.Or(p.Flatcar.Arch, "amd64"), kernel: cfg.Kernel, initrd: cfg.Initrd, configured: cfg.Configured, blobs: map[string]boot.Blob{}, ignition: map[string][]byte{},
		unknownPolicy: p.Boot.Unknown, program: program(p.Boot.NBP), states: cfg.States, now: cfg.Now,
	}
	if s.now == nil {
		s.now = time.Now
	}
	for _, b := range slices.Concat([]boot.Blob{cfg.Kernel}, cfg.Initrd, cfg.Files) {
		if err := s.addBlob(b); err != nil {
			return nil, err
		}
	}
	s.args = append([]string{FirstBoot}, p.Boot.InstallerArgs...)
	if err := checkArgs(s.args); err != nil {
		return nil, fmt.Errorf("building the boot catalog: boot.installerArgs: %w", err)
	}
	for _, m := range p.Machines {
		if err := s.addMachine(m, cfg.Diskless); err != nil {
			return nil, fmt.Errorf("building the boot catalog: machine %s: %w", m.Name, err)
		}
	}
	for _, n := range p.Boot.Neighbours {
		for _, mac := range n.Machines {
			if len(mac) != 6 {
				return nil, fmt.Errorf("building the boot catalog: machine of the neighbour %s: %s is not an Ethernet address", n.Address, mac)
			}
			s.theirs[card(mac)] = n.Address
		}
	}
	s.network, s.network6 = network(p), network6(p.Boot.DHCP6)
	return s, s.addIgnition(cfg.Ignition)
}

var blobForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// fileForm keeps URLs and iPXE scripts free of anything to escape.
var fileForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]*$`)

func (s *snapshot) addBlob(b boot.Blob) error {
	if !blobForm.MatchString(b.SHA256) || !fileForm.MatchString(b.Name) || b.Size <= 0 {
		return fmt.Errorf("building the boot catalog: file %q with digest %q and size %d is not complete", b.Name, b.SHA256, b.Size)
	}
	s.blobs[b.SHA256] = b
	return nil
}

func (s *snapshot) addMachine(m plan.Machine, diskless map[string]Diskless) error {
	if err := checkArgs(m.InstallerArgs); err != nil {
		return fmt.Errorf("installerArgs: %w", err)
	}
	e := entry{Name: m.Name, Address: m.Address, LocalBoot: m.LocalBoot, Program: program(m.NBP), Quirks: m.Quirks, Args: slices.Clip(s.args)}
	if len(m.InstallerArgs) > 0 {
		e.Args = slices.Concat(s.args, m.InstallerArgs) // most have none, and share one piece of memory
	}
	if e.LocalBoot == "" {
		e.LocalBoot = defaultLocalBoot
	}
	if m.Diskless {
		if err := s.addDiskless(&e, diskless); err != nil {
			return err
		}
	}
	var err error
	if e.selector, err = selector.New(m.Selector); err != nil {
		return fmt.Errorf("selector: %w", err)
	}
	i := len(s.entries)
	s.entries = append(s.entries, e)
	s.byName[m.Name] = i
	if !e.selector.IsZero() {
		s.selecting = append(s.selecting, i)
	}
	for _, mac := range m.MACs {
		if len(mac) != 6 {
			return fmt.Errorf("%s is not an Ethernet address", mac)
		}
		if j, ok := s.byMAC[card(mac)]; ok && j != i {
			return fmt.Errorf("%s has the same mac %s", s.entries[j].Name, mac)
		}
		s.byMAC[card(mac)] = i
	}
	if m.UUID != "" {
		u, err := parseUUID(m.UUID)
		if err != nil {
			return err
		}
		for _, u := range [][16]byte{u, swapped(u)} {
			if j, ok := s.byUUID[u]; ok && j != i {
				return fmt.Errorf("%s has the same uuid %s", s.entries[j].Name, m.UUID)
			}
			s.byUUID[u] = i
		}
	}
	if m.Serial != "" {
		if j, ok := s.bySerial[m.Serial]; ok {
			return fmt.Errorf("%s has the same serial %s", s.entries[j].Name, m.Serial)
		}
		s.bySerial[m.Serial] = i
	}
	return nil
}

// addDiskless has a machine load its own archive where others load the installer's.
func (s *snapshot) addDiskless(e *entry, all map[string]Diskless) error {
	d, ok := all[e.Name]
	if !ok || len(s.initrd) == 0 {
		return errors.New("it is diskless, and there is nothing for it to boot")
	}
	if err := checkArgs(d.Args); err != nil {
		return fmt.Errorf("kernelArgs of its role: %w", err)
	}
	e.Args = slices.Concat(e.Args, d.Args)
	e.Initrd = slices.Clone(s.initrd)
	if s.configured {
		if err := s.addBlob(d.Archive); err != nil {
			return err
		}
		e.Initrd[len(e.Initrd)-1] = d.Archive
	}
	return nil
}

func program(nbp plan.NBP) boot.Program {
	if nbp == plan.NBPGRUB {
		return boot.GRUB
	}
	return boot.IPXE
}

// find returns the machines that a client shows marks of; more than one is a
// contradiction.
func (s *snapshot) find(m boot.Machine) []int {
	found := make([]int, 0, 3)
	add := func(i int, ok bool) {
		if ok && !slices.Contains(found, i) {
			found = append(found, i)
		}
	}
	if len(m.MAC) == 6 {
		i, ok := s.byMAC[card(m.MAC)]
		add(i, ok)
	}
	if m.UUID != "" { // a system shows none, and an error costs more than all the rest
		if u, err := parseUUID(m.UUID); err == nil {
			i, ok := s.byUUID[u]
			add(i, ok)
		}
	}
	if m.Serial != "" {
		i, ok := s.bySerial[m.Serial]
		add(i, ok)
	}
	return found
}

func parseUUID(text string) (u [16]byte, err error) {
	h := strings.ReplaceAll(text, "-", "")
	if len(h) != 32 {
		return u, fmt.Errorf("%q is not a UUID", text)
	}
	if _, err := hex.Decode(u[:], []byte(h)); err != nil {
		return u, fmt.Errorf("%q is not a UUID: %w", text, err)
	}
	return u, nil
}

// swapped is a UUID with its first three fields in the other byte order. SMBIOS
// stores them little-endian; ROMs send them so in option 97, iPXE and dmidecode
// show them turned round.
func swapped(u [16]byte) [16]byte {
	slices.Reverse(u[0:4])
	slices.Reverse(u[4:6])
	slices.Reverse(u[6:8])
	return u
}

// checkArgs refuses what iPXE would not pass on to the kernel as it is.
func checkArgs(args []string) error {
	for _, a := range args {
		bad := a == "" || a == "||" || a == "&&" || a == ";" || a[0] == '#' || strings.ContainsAny(a, "\"'\\$")
		for _, r := range a {
			bad = bad || r <= ' ' || r > '~'
		}
		if bad {
			return fmt.Errorf("%q is not one kernel argument that iPXE can pass on: printable ASCII without blanks, quotes, backslash and $", a)
		}
	}
	return nil
}

func network(p plan.Plan) boot.Network {
	n := boot.Network{Reserved: map[netip.Addr]string{}, Relays: p.Boot.Relays,
		Proxy: p.Boot.DHCP == plan.DHCPProxy || p.Boot.DHCP == plan.DHCPProxy4011, OnlyListed: p.Boot.Unknown == plan.Ignore}
	for _, other := range p.Boot.Neighbours {
		n.Neighbours = append(n.Neighbours, other.Address)
	}
	for _, s := range p.Boot.Subnets {
		var routes []boot.Route
		for _, r := range s.Routes {
			routes = append(routes, boot.Route(r))
		}
		n.Subnets = append(n.Subnets, boot.Subnet{Prefix: s.Prefix, First: s.First, Last: s.Last, Router: s.Router,
			DNS: s.DNS, NTP: s.NTP, Domain: s.Domain, MTU: s.MTU, Routes: routes, Lease: time.Duration(s.LeaseSeconds) * time.Second})
	}
	for _, m := range p.Machines {
		if m.Address.IsValid() {
			n.Reserved[m.Address] = m.Name
		}
	}
	return n
}

func network6(d plan.DHCP6) boot.Network6 {
	n := boot.Network6{Stateless: d.Mode == plan.DHCP6Stateless, RapidCommit: d.RapidCommit}
	for _, s := range d.Subnets {
		n.Subnets = append(n.Subnets, boot.Subnet6{Prefix: s.Prefix, First: s.First, Last: s.Last, DNS: s.DNS, Domain: s.Domain,
			Lease: time.Duration(s.LeaseSeconds) * time.Second})
	}
	return n
}

// addIgnition renders every config now, so that an invalid one stops the change
// and not a machine.
func (s *snapshot) addIgnition(render func(string) ([]byte, error)) error {
	names := make([]string, 0, len(s.entries)+1)
	for _, e := range s.entries {
		names = append(names, e.Name)
	}
	if s.unknownPolicy != plan.Ignore {
		names = append(names, "")
	}
	// Machines share configs: judging one takes milliseconds, and keeping it once for each
	// of very many machines takes memory.
	valid := map[[sha256.Size]byte][]byte{}
	for _, name := range names {
		content, err := render(name)
		if err != nil {
			return fmt.Errorf("building the boot catalog: rendering the installer's Ignition config of %q: %w", name, err)
		}
		sum := sha256.Sum256(content)
		if valid[sum] == nil {
			if _, report, err := config.Parse(content); err != nil || report.IsFatal() {
				return fmt.Errorf("building the boot catalog: the installer's Ignition config of %q is not valid: %w\n%s", name, err, report.String())
			}
			valid[sum] = content
		}
		s.ignition[name] = valid[sum]
	}
	return nil
}

func (s *snapshot) ignitionOf(name string) ([]byte, error) {
	content, ok := s.ignition[name]
	if !ok {
		return nil, fmt.Errorf("rendering Ignition: there is no config for %q any more", name)
	}
	return content, nil
}
