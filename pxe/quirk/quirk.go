// Package quirk knows what firmware does differently from what standards say when
// it netboots, and what is done about it: as data (quirks.yaml) with the evidence
// for each. Most of it is done for everybody, in the protocol servers; the data
// then only says so, and transcripts in testdata show it. The rest applies to
// clients that a rule matches, or to machines whose cluster.yaml names the quirk.
//
// It is pure, and knows no protocol: servers say what a client shows of itself and
// carry out the Effect. Quirks of BMCs are in pxe/bmc.
package quirk

import (
	"bytes"
	_ "embed"
	"encoding/hex"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

//go:embed quirks.yaml
var quirksYAML []byte

// Handling says for whom a quirk is answered.
type Handling string

// The ways to handle a quirk.
const (
	// Always: the servers behave so towards everybody.
	Always Handling = "always"
	// Matched: by Effect, towards clients that Match selects.
	Matched Handling = "matched"
	// Not: Answer says why.
	Not Handling = "not"
)

// Quirk is one habit of firmware. Several may have the same number.
type Quirk struct {
	// Number is the quirk's in the catalogue that the project began with.
	Number int `yaml:"number"`
	// Name is unique; cluster.yaml uses it.
	Name    string   `yaml:"name"`
	Handled Handling `yaml:"handled"`
	// Habit is what firmware does, Answer what is done about it, or why nothing is.
	Habit  string `yaml:"habit"`
	Answer string `yaml:"answer"`
	// Evidence is where it was seen, and by whom.
	Evidence string `yaml:"evidence"`
	// Match and Effect are set for Matched only.
	Match  Match  `yaml:"match"`
	Effect Effect `yaml:"effect"`
	// Tests are those that show the behaviour where no transcript can, each as
	// "directory TestName".
	Tests []string `yaml:"tests"`
}

// Client is what a packet shows of its sender.
type Client struct {
	MAC net.HardwareAddr
	// VendorClass and UserClass are options 60 and 77.
	VendorClass, UserClass string
	// Archs is option 93, or what the vendor class says.
	Archs []uint16
	// Features are the codes inside iPXE's option 175; nil when it did not come.
	Features []byte
}

// Match selects clients: all that is set must hold, of a list one item. A match
// with nothing but Named holds for no client by itself.
type Match struct {
	// Named: only machines whose firmware.quirks in cluster.yaml name it.
	Named bool `yaml:"named"`
	// MAC are beginnings of card addresses, such as b8:27:eb.
	MAC []string `yaml:"mac"`
	// VendorClass is the beginning of option 60, UserClass the whole option 77.
	VendorClass string `yaml:"vendorClass"`
	UserClass   string `yaml:"userClass"`
	// Arch are values of option 93.
	Arch []uint16 `yaml:"arch"`
	// Lacks is a code that iPXE's option 175 does not have, although it came.
	Lacks byte `yaml:"lacks"`
}

// Effect is what a server does for a client. The zero value is the usual.
type Effect struct {
	// Silent is why the client gets no answer to its netboot; empty means it gets one.
	Silent string `yaml:"silent"`
	// Delay is how much later the answer leaves.
	Delay time.Duration `yaml:"delay"`
	// Program gives an iPXE our network boot program as if it were firmware.
	Program bool `yaml:"program"`
	// PlainName leaves out the NUL that ends option 67.
	PlainName bool `yaml:"plainName"`
	// VendorClass and VendorOptions are options 60 and 43 of the answer, the latter
	// in hex; empty leaves them as they are.
	VendorClass   string `yaml:"vendorClass"`
	VendorOptions Hex    `yaml:"vendorOptions"`
	// BlockSize is the most bytes that a TFTP block may have; 0 means that the
	// network decides.
	BlockSize int `yaml:"blockSize"`
	// NoBlockSize does not grant the TFTP option blksize.
	NoBlockSize bool `yaml:"noBlockSize"`
	// LocalBoot is how iPXE continues with the own disk where cluster.yaml does not
	// say.
	LocalBoot string `yaml:"localBoot"`
}

// Hex is bytes that YAML has in hexadecimal.
type Hex []byte

// UnmarshalYAML implements yaml.Unmarshaler.
func (h *Hex) UnmarshalYAML(n *yaml.Node) error {
	b, err := hex.DecodeString(n.Value)
	if err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	*h = b
	return nil
}

// Set is a list of quirks. The zero value has none; it is immutable.
type Set struct {
	all []Quirk
	// rules are those with an effect.
	rules []Quirk
}

// Load returns the data that came with this program.
func Load() (Set, error) { return Parse(quirksYAML) }

// Parse reads a list of quirks.
func Parse(b []byte) (Set, error) {
	var s Set
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&s.all); err != nil {
		return Set{}, fmt.Errorf("reading firmware quirks: %w", err)
	}
	seen := map[string]bool{}
	for _, q := range s.all {
		if why := q.incomplete(); why != "" {
			return Set{}, fmt.Errorf("reading firmware quirks: %q: %s", q.Name, why)
		}
		if seen[q.Name] {
			return Set{}, fmt.Errorf("reading firmware quirks: %q is there twice", q.Name)
		}
		seen[q.Name] = true
		if q.Handled == Matched {
			s.rules = append(s.rules, q)
		}
	}
	return s, nil
}

var (
	nameForm = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	macForm  = regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2}){0,5}$`)
)

const (
	// maxDelay is how long UEFI asks: again after 4, 8, 16 and 32 s (EDK2, PxeBcDhcp4.c).
	maxDelay = time.Minute
	// minBlock and maxBlock are RFC 2348's.
	minBlock, maxBlock = 8, 65464
)

func (q Quirk) incomplete() string {
	bad := func(mac string) bool { return !macForm.MatchString(mac) }
	m := q.Match
	packet := m.MAC != nil || m.VendorClass != "" || m.UserClass != "" || m.Arch != nil || m.Lacks != 0
	switch {
	case !nameForm.MatchString(q.Name):
		return "this is not a name: lower-case words joined by -"
	case q.Number <= 0 || q.Habit == "" || q.Answer == "" || strings.TrimSpace(q.Evidence) == "":
		return "number, habit, answer and evidence must all be there"
	case q.Handled != Always && q.Handled != Matched && q.Handled != Not:
		return "handled is none of always, matched, not"
	case q.Handled == Matched && m.Named == packet:
		return "match is either named or what a packet shows"
	case q.Handled == Matched && q.Effect.none():
		return "it has no effect"
	case q.Handled != Matched && (m.Named || packet || !q.Effect.none()):
		return "only what is matched has match and effect"
	case q.Effect.Delay < 0 || q.Effect.Delay > maxDelay:
		return fmt.Sprintf("delay: %s is not between 0 and %s, after which firmware has given up", q.Effect.Delay, maxDelay)
	case q.Effect.BlockSize != 0 && (q.Effect.BlockSize < minBlock || q.Effect.BlockSize > maxBlock):
		return fmt.Sprintf("blockSize: %d is not between %d and %d", q.Effect.BlockSize, minBlock, maxBlock)
	case slices.ContainsFunc(m.MAC, bad):
		return "mac: want the beginning of an address in lower case with colons"
	}
	return ""
}

// Part is a part of the boot path.
type Part int

// The parts that effects are about.
const (
	DHCP Part = iota + 1
	TFTP
	// Disk is how iPXE continues with the own disk.
	Disk
)

// on says whether an effect is about a part.
func (e Effect) on(p Part) bool {
	switch p {
	case DHCP:
		return e.Silent != "" || e.Delay != 0 || e.Program || e.PlainName || e.VendorClass != "" || e.VendorOptions != nil
	case TFTP:
		return e.BlockSize != 0 || e.NoBlockSize
	case Disk:
		return e.LocalBoot != ""
	}
	return false
}

func (e Effect) none() bool { return !e.on(DHCP) && !e.on(TFTP) && !e.on(Disk) }

// All returns every quirk, in the order of the data.
func (s Set) All() []Quirk { return slices.Clone(s.all) }

// Named returns the names that cluster.yaml may give a machine.
func (s Set) Named() []string {
	var names []string
	for _, q := range s.rules {
		if q.Match.Named {
			names = append(names, q.Name)
		}
	}
	return names
}

// Without is the set less one quirk.
func (s Set) Without(name string) Set {
	is := func(q Quirk) bool { return q.Name == name }
	return Set{all: slices.DeleteFunc(slices.Clone(s.all), is), rules: slices.DeleteFunc(slices.Clone(s.rules), is)}
}

// Apply joins the effects on a part for a client whose machine has the named
// quirks, and says which quirks they are from. Where two set the same, the later one
// in the data counts.
func (s Set) Apply(on Part, c Client, named []string) (Effect, []string) {
	var e Effect
	var names []string
	for _, q := range s.rules {
		if !q.Effect.on(on) || q.Match.Named && !slices.Contains(named, q.Name) || !q.Match.Named && !q.Match.holds(c) {
			continue
		}
		names = append(names, q.Name)
		e = e.join(q.Effect)
	}
	return e, names
}

func (m Match) holds(c Client) bool {
	begins := func(prefix string) bool { return strings.HasPrefix(c.MAC.String(), prefix) }
	known := func(a uint16) bool { return slices.Contains(m.Arch, a) }
	return (m.MAC == nil || slices.ContainsFunc(m.MAC, begins)) &&
		strings.HasPrefix(c.VendorClass, m.VendorClass) &&
		(m.UserClass == "" || c.UserClass == m.UserClass) &&
		(m.Arch == nil || slices.ContainsFunc(c.Archs, known)) &&
		(m.Lacks == 0 || c.Features != nil && !slices.Contains(c.Features, m.Lacks))
}

func (e Effect) join(f Effect) Effect {
	if f.Silent != "" {
		e.Silent = f.Silent
	}
	e.Delay = max(e.Delay, f.Delay)
	e.Program = e.Program || f.Program
	e.PlainName = e.PlainName || f.PlainName
	if f.VendorClass != "" {
		e.VendorClass = f.VendorClass
	}
	if f.VendorOptions != nil {
		e.VendorOptions = f.VendorOptions
	}
	if e.BlockSize == 0 || f.BlockSize != 0 && f.BlockSize < e.BlockSize {
		e.BlockSize = f.BlockSize
	}
	e.NoBlockSize = e.NoBlockSize || f.NoBlockSize
	if f.LocalBoot != "" {
		e.LocalBoot = f.LocalBoot
	}
	return e
}
