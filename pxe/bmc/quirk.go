package bmc

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"
)

//go:embed quirks.yaml
var quirksYAML []byte

// Quirk is something that a BMC needs done differently.
type Quirk struct {
	// ID names it.
	ID string `yaml:"id"`
	// Match is which BMCs it is about; what is empty matches all.
	Match Match `yaml:"match"`
	// Effect is what is done about it.
	Effect Effect `yaml:"effect"`
	// Evidence is where it was seen, and by whom.
	Evidence string `yaml:"evidence"`
}

// Match are regular expressions, any case; all that are set must be found.
type Match struct {
	Kind     Kind    `yaml:"kind"`
	Vendor   pattern `yaml:"vendor"` // of the machine or, where that is silent, of the BMC
	Model    pattern `yaml:"model"`
	Manager  pattern `yaml:"manager"`
	Firmware pattern `yaml:"firmware"`
}

// Effect is what quirks do. The effects of all quirks that match are joined.
type Effect struct {
	// FullOverride sends enabled, target and mode of a boot override every time,
	// changed or not. Without it the mode is left out, and enabled where it is set.
	FullOverride bool `yaml:"fullOverride"`
	// Busy are answers that mean: nothing was done, ask again later.
	Busy []Busy `yaml:"busy"`
	// MediaUnderManager looks for virtual media at the manager first.
	MediaUnderManager bool `yaml:"mediaUnderManager"`
	// MediaSlot is the only slot that works; empty means any.
	MediaSlot string `yaml:"mediaSlot"`
	// PlainMediaURL refuses URLs with a query or a colon in the path.
	PlainMediaURL bool `yaml:"plainMediaURL"`
	// StaleMedia says that media may show as inserted for a while after it was
	// ejected.
	StaleMedia bool `yaml:"staleMedia"`
	// KeepBootFlags tells an IPMI BMC not to drop a boot device after 60 seconds.
	KeepBootFlags bool `yaml:"keepBootFlags"`
	// PersistentFlag sets IPMI's persistent bit with a UEFI boot from the network.
	PersistentFlag bool `yaml:"persistentFlag"`
}

// Busy is an answer: its status and a part of its text; zero values match all.
type Busy struct {
	Status int    `yaml:"status"`
	Text   string `yaml:"text"`
}

// pattern is a regular expression in YAML.
type pattern struct{ *regexp.Regexp }

// UnmarshalYAML implements yaml.Unmarshaler.
func (p *pattern) UnmarshalYAML(n *yaml.Node) error {
	var s string
	if err := n.Decode(&s); err != nil {
		return err
	}
	re, err := regexp.Compile("(?i)" + s)
	if err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	p.Regexp = re
	return nil
}

func (p pattern) matches(s string) bool { return p.Regexp == nil || p.MatchString(s) }

// Quirks returns the data that came with this program.
func Quirks() ([]Quirk, error) { return parseQuirks(quirksYAML) }

func parseQuirks(b []byte) ([]Quirk, error) {
	var all []Quirk
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&all); err != nil {
		return nil, fmt.Errorf("reading BMC quirks: %w", err)
	}
	seen := map[string]bool{}
	for _, q := range all {
		switch {
		case q.ID == "" || seen[q.ID]:
			return nil, fmt.Errorf("reading BMC quirks: id %q is empty or twice", q.ID)
		case strings.TrimSpace(q.Evidence) == "":
			return nil, errors.New("reading BMC quirks: " + q.ID + " has no evidence")
		}
		seen[q.ID] = true
	}
	return all, nil
}

func (m Match) matches(i Info) bool {
	vendor := i.Manufacturer
	if vendor == "" {
		vendor = i.Vendor
	}
	return (m.Kind == "" || m.Kind == i.Kind) && m.Vendor.matches(vendor) && m.Model.matches(i.Model) &&
		m.Manager.matches(i.Manager) && m.Firmware.matches(i.Firmware)
}

// effectOf joins the effects of all quirks that match.
func effectOf(all []Quirk, i Info) Effect {
	var e Effect
	for _, q := range all {
		if !q.Match.matches(i) {
			continue
		}
		f := q.Effect
		e.FullOverride = e.FullOverride || f.FullOverride
		e.Busy = append(e.Busy, f.Busy...)
		e.MediaUnderManager = e.MediaUnderManager || f.MediaUnderManager
		if f.MediaSlot != "" {
			e.MediaSlot = f.MediaSlot
		}
		e.PlainMediaURL = e.PlainMediaURL || f.PlainMediaURL
		e.StaleMedia = e.StaleMedia || f.StaleMedia
		e.KeepBootFlags = e.KeepBootFlags || f.KeepBootFlags
		e.PersistentFlag = e.PersistentFlag || f.PersistentFlag
	}
	return e
}

// busy says whether an error is an answer that means: ask again later.
func (e Effect) busy(err error) bool {
	var a *Error
	if !errors.As(err, &a) || !a.answered() {
		return false
	}
	for _, b := range e.Busy {
		if (b.Status == 0 || b.Status == a.Status) && strings.Contains(a.Answer, b.Text) {
			return true
		}
	}
	return false
}
