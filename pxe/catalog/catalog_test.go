package catalog

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
)

type states map[string]machine.State

func (s states) State(name string) machine.State { return s[name] }

func mac(n int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, byte(n >> 8), byte(n)} }

const uuidOfC = "00112233-4455-6677-8899-aabbccddeeff"

func blob(name string, n byte) boot.Blob {
	return boot.Blob{Name: name, SHA256: strings.Repeat(fmt.Sprintf("%02x", n), 32), Size: 1}
}

// rack has a by card, b by card and serial, c by UUID and d by serial.
func rack() Config {
	return Config{
		Plan: plan.Plan{
			Boot: plan.Boot{Unknown: plan.Discover, InstallerArgs: []string{"console=ttyS0"},
				Subnets: []plan.Subnet{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), LeaseSeconds: 60}}},
			Machines: []plan.Machine{
				{Name: "a", MACs: []net.HardwareAddr{mac(1), mac(11)}, Address: netip.MustParseAddr("10.0.0.1"), InstallerArgs: []string{"quiet"}},
				{Name: "b", MACs: []net.HardwareAddr{mac(2)}, Serial: "B", Address: netip.MustParseAddr("10.0.0.2"), LocalBoot: "sanboot"},
				{Name: "c", UUID: uuidOfC, Address: netip.MustParseAddr("10.0.0.3")},
				{Name: "d", Serial: "D", Address: netip.MustParseAddr("10.0.0.4")},
			},
		},
		Kernel: blob("vmlinuz", 1), Initrd: []boot.Blob{blob("initrd.cpio.gz", 2)}, Files: []boot.Blob{blob("imagectl.raw", 3)},
		Ignition: func(name string) ([]byte, error) {
			return []byte(`{"ignition":{"version":"3.4.0"},"storage":{"files":[{"path":"/etc/n","contents":{"source":"data:,` + name + `"}}]}}`), nil
		},
		States: states{"a": machine.Armed},
	}
}

func newCatalog(t *testing.T, cfg Config) *Catalog {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWhoIsWho(t *testing.T) {
	c := newCatalog(t, rack())
	for _, tt := range []struct {
		name string
		m    boot.Machine
		want string
	}{
		{"by card", boot.Machine{MAC: mac(1)}, "a install armed"},
		{"by its other card", boot.Machine{MAC: mac(11)}, "a install armed"},
		{"by card, with an unknown UUID", boot.Machine{MAC: mac(2), UUID: "ffffffff-0000-0000-0000-000000000001"}, "b local not-armed"},
		{"by UUID", boot.Machine{MAC: mac(99), UUID: uuidOfC}, "c local not-armed"},
		{"by UUID as a ROM sends it, little-endian", boot.Machine{MAC: mac(99), UUID: "33221100-5544-7766-8899-aabbccddeeff"}, "c local not-armed"},
		{"by serial", boot.Machine{MAC: mac(98), Serial: "D"}, "d local not-armed"},
		{"card and serial agree", boot.Machine{MAC: mac(2), Serial: "B"}, "b local not-armed"},
		{"card of one, serial of another", boot.Machine{MAC: mac(1), Serial: "B"}, " none conflict"},
		{"card of one, UUID of another", boot.Machine{MAC: mac(2), UUID: uuidOfC}, " none conflict"},
		{"unknown", boot.Machine{MAC: mac(77)}, " discover unknown-machine"},
		{"nothing known", boot.Machine{}, " discover unknown-machine"},
	} {
		a := c.Decide(tt.m)
		if got := fmt.Sprintf("%s %s %s", a.Name, a.Action, a.Code); got != tt.want {
			t.Errorf("%s: got %q, want %q (%s)", tt.name, got, tt.want, a.Reason)
		}
		if a.Reason == "" {
			t.Errorf("%s: no reason", tt.name)
		}
	}
}

func TestOnlyArmedMachinesInstall(t *testing.T) {
	for _, tt := range []struct {
		state machine.State
		want  string
	}{
		{"", "local not-armed"}, {machine.Discovered, "local not-armed"}, {machine.Approved, "local not-armed"},
		{machine.Armed, "install armed"}, {machine.Installing, "install installing"},
		{machine.Installed, "local installed"}, {machine.Enrolled, "local enrolled"}, {machine.Member, "local member"}, {machine.Ready, "local ready"},
		{machine.Quarantined, "local quarantined"}, {machine.Failed, "local failed"}, {machine.Retired, "local retired"},
		{"something new", "local not-armed"},
	} {
		cfg := rack()
		cfg.States = states{"a": tt.state}
		c := newCatalog(t, cfg)
		a := c.Decide(boot.Machine{MAC: mac(1)})
		if got := fmt.Sprintf("%s %s", a.Action, a.Code); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.state, got, tt.want)
		}
		if a.Address != netip.MustParseAddr("10.0.0.1") {
			t.Errorf("%s: without its address", tt.state)
		}
		if _, err := c.Ignition(boot.Machine{MAC: mac(1)}); (err == nil) != (a.Action == boot.Install) {
			t.Errorf("%s: action %s, but Ignition says %v", tt.state, a.Action, err)
		}
		if (a.Kernel.Name != "") != (a.Action == boot.Install) {
			t.Errorf("%s: action %s with the kernel %q", tt.state, a.Action, a.Kernel.Name)
		}
	}
}

func TestAnswerCarriesEverything(t *testing.T) {
	c := newCatalog(t, rack())
	a := c.Decide(boot.Machine{MAC: mac(1)})
	if got, want := fmt.Sprint(a.Args), "[flatcar.first_boot=1 console=ttyS0 quiet]"; got != want {
		t.Errorf("arguments %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(c.Decide(boot.Machine{MAC: mac(77)}).Args), "[flatcar.first_boot=1 console=ttyS0]"; got != want {
		t.Errorf("discovery's arguments %s, want %s", got, want)
	}
	if got := c.Decide(boot.Machine{MAC: mac(2)}).LocalBoot; got != "sanboot" {
		t.Errorf("local boot by %s", got)
	}
	if got := c.Decide(boot.Machine{UUID: uuidOfC}).LocalBoot; got != "exit" {
		t.Errorf("local boot by default is %s", got)
	}
	ign, err := c.Ignition(boot.Machine{MAC: mac(1)})
	if err != nil || !strings.Contains(string(ign), "data:,a") {
		t.Errorf("Ignition of a is %s, %v", ign, err)
	}
	for _, tt := range []struct {
		b    boot.Blob
		want bool
	}{{blob("", 1), true}, {blob("", 2), true}, {blob("", 3), true}, {blob("", 4), false}} {
		if _, ok := c.Blob(tt.b.SHA256); ok != tt.want {
			t.Errorf("%s: served is %t, want %t", tt.b.SHA256[:4], ok, tt.want)
		}
	}
	if got := c.Network().Reserved[netip.MustParseAddr("10.0.0.3")]; got != "c" {
		t.Errorf("10.0.0.3 is reserved for %q", got)
	}
}

func TestProgramByMachine(t *testing.T) {
	cfg := rack()
	cfg.Plan.Boot.NBP = plan.NBPGRUB
	cfg.Plan.Machines[0].NBP = plan.NBPGRUB
	cfg.Plan.Machines[1].NBP = plan.NBPIPXE
	c := newCatalog(t, cfg)
	for n, want := range map[int]boot.Program{1: boot.GRUB, 2: boot.IPXE, 77: boot.GRUB} {
		if got := c.Decide(boot.Machine{MAC: mac(n)}).Program; got != want {
			t.Errorf("card %d: got %q, want %q", n, got, want)
		}
	}
}

func TestTheMachinesOfANeighbour(t *testing.T) {
	cfg := rack()
	cfg.Plan.Boot.Neighbours = []cluster.Neighbour{{Address: netip.MustParseAddr("10.0.0.9"), Machines: []net.HardwareAddr{mac(77)}}}
	c := newCatalog(t, cfg)
	a := c.Decide(boot.Machine{MAC: mac(77), Here: true})
	if a.Action != boot.None || a.Code != boot.CodeNeighbour || !strings.Contains(a.Reason, "whose server 10.0.0.9 answers it") {
		t.Errorf("got %+v", a)
	}
	if _, err := c.Ignition(boot.Machine{MAC: mac(77)}); err == nil {
		t.Error("it gets an installer's config")
	}
	if a := c.Decide(boot.Machine{MAC: mac(78)}); a.Action != boot.Discover {
		t.Errorf("a stranger: %+v", a)
	}
	if n := c.Network(); len(n.Neighbours) != 1 || n.Neighbours[0] != netip.MustParseAddr("10.0.0.9") || n.OnlyListed {
		t.Errorf("DHCP is told %+v", n)
	}
}

func TestIgnoredStrangers(t *testing.T) {
	cfg := rack()
	cfg.Plan.Boot.Unknown = plan.Ignore
	a := newCatalog(t, cfg).Decide(boot.Machine{MAC: mac(77)})
	if a.Action != boot.None || a.Code != "unknown-machine" {
		t.Errorf("got %+v", a)
	}
}

func TestCardOfAMachineKnownByOtherMarksIsLearned(t *testing.T) {
	c := newCatalog(t, rack())
	who := func(m boot.Machine) string { m.Here = true; return c.Decide(m).Name }
	if got := who(boot.Machine{MAC: mac(98)}); got != "" {
		t.Fatalf("before it showed its serial number: %q", got)
	}
	who(boot.Machine{MAC: mac(98), Serial: "D"})
	if got := who(boot.Machine{MAC: mac(98)}); got != "d" {
		t.Errorf("after it showed its serial number: %q", got)
	}
	who(boot.Machine{MAC: mac(98), UUID: uuidOfC})
	if got := who(boot.Machine{MAC: mac(98)}); got != "c" {
		t.Errorf("after the card moved: %q", got)
	}
	if got := who(boot.Machine{MAC: mac(2), Serial: "D"}); got != "" {
		t.Errorf("the listed card of b shows d's serial number: %q", got)
	}
	if got := who(boot.Machine{MAC: mac(2)}); got != "b" {
		t.Errorf("a listed card became %q", got)
	}
	for n := range 10000 {
		who(boot.Machine{MAC: mac(1000 + n), Serial: "D"})
	}
	if got := len(c.Cards("d")); got > cardsPerMachine || len(c.cards.known) != got+1 {
		t.Errorf("%d cards learned, %d of d, limit %d", len(c.cards.known), got, cardsPerMachine)
	}
	if got := who(boot.Machine{MAC: mac(98)}); got != "c" {
		t.Errorf("after a flood of cards in the name of another: %q", got)
	}
}

func TestNothingUnservableIsAccepted(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*Config)
		want  string
	}{
		{"invalid Ignition", func(c *Config) {
			c.Ignition = func(string) ([]byte, error) {
				return []byte(`{"ignition":{"version":"3.4.0"},"storage":{"files":[{"path":"relative"}]}}`), nil
			}
		}, `building the boot catalog: the installer's Ignition config of "a" is not valid`},
		{"Ignition of an unknown version", func(c *Config) {
			c.Ignition = func(string) ([]byte, error) { return []byte(`{"ignition":{"version":"9.0.0"}}`), nil }
		}, `building the boot catalog: the installer's Ignition config of "a" is not valid`},
		{"invalid Ignition of one machine of many", func(c *Config) {
			all := c.Ignition
			c.Ignition = func(name string) ([]byte, error) {
				if name == "c" {
					return []byte("{}"), nil
				}
				return all(name)
			}
		}, `building the boot catalog: the installer's Ignition config of "c" is not valid`},
		{"no Ignition", func(c *Config) { c.Ignition = func(string) ([]byte, error) { return nil, errors.New("no CA") } },
			`building the boot catalog: rendering the installer's Ignition config of "a": no CA`},
		{"a kernel argument for iPXE's shell", func(c *Config) { c.Plan.Boot.InstallerArgs = []string{"a=${mac}"} },
			`building the boot catalog: boot.installerArgs: "a=${mac}" is not one kernel argument`},
		{"two arguments in one", func(c *Config) { c.Plan.Machines[0].InstallerArgs = []string{"a b"} },
			`building the boot catalog: machine a: installerArgs: "a b" is not one kernel argument`},
		{"the same card twice", func(c *Config) { c.Plan.Machines[1].MACs = []net.HardwareAddr{mac(1)} },
			`building the boot catalog: machine b: a has the same mac 02:00:00:00:00:01`},
		{"the same UUID twice", func(c *Config) { c.Plan.Machines[3].UUID = strings.ToUpper(uuidOfC) },
			`building the boot catalog: machine d: c has the same uuid 00112233-4455-6677-8899-AABBCCDDEEFF`},
		{"the same serial twice", func(c *Config) { c.Plan.Machines[3].Serial = "B" },
			`building the boot catalog: machine d: b has the same serial B`},
		{"a file without a digest", func(c *Config) { c.Kernel.SHA256 = "" },
			`building the boot catalog: file "vmlinuz" with digest ""`},
		{"a file name for a shell", func(c *Config) { c.Kernel.Name = "a b" },
			`building the boot catalog: file "a b" with digest`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCatalog(t, rack())
			cfg := rack()
			tt.spoil(&cfg)
			err := c.Replace(cfg)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v, want %s...", err, tt.want)
			}
			if got := c.Decide(boot.Machine{MAC: mac(1)}).Name; got != "a" {
				t.Errorf("the old content is gone: %q", got)
			}
		})
	}
}

// thousand is a rack of 1,000 machines with card, UUID and serial.
func thousand() Config {
	cfg := rack()
	cfg.Plan.Machines = nil
	for i := range 1000 {
		cfg.Plan.Machines = append(cfg.Plan.Machines, plan.Machine{Name: fmt.Sprintf("m%d", i), MACs: []net.HardwareAddr{mac(i)},
			UUID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i), Serial: fmt.Sprint(i), Address: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})})
	}
	return cfg
}

func BenchmarkDecide(b *testing.B) {
	c, err := New(thousand())
	if err != nil {
		b.Fatal(err)
	}
	m := boot.Machine{MAC: mac(500), UUID: "00000000-0000-4000-8000-000000000500", Serial: "500"}
	for b.Loop() {
		if a := c.Decide(m); a.Name != "m500" {
			b.Fatal(a)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		if _, err := New(thousand()); err != nil {
			b.Fatal(err)
		}
	}
}
