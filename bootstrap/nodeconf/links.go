package nodeconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// LinksPath is where an installer finds the links that cluster.yaml gives to machines. The
// file is public, as all is that a netbooted machine gets.
const LinksPath = "/etc/imagectl/links.json"

// LinkFiles is how paths of LinkFile begin: systemd-networkd's, and nothing else.
const LinkFiles = "/etc/systemd/network/20-imagectl-"

// Links are those of all machines: an installer gets one file, whoever it is, and finds
// itself in it.
type Links struct {
	Machines []MachineLinks `json:"machines"`
}

// MachineLinks are one machine's.
type MachineLinks struct {
	Machine string `json:"machine"`
	// MACs, UUID and Serial are what it is recognised by, and the MAC addresses that its
	// links name; lower case. Empty ones say nothing.
	MACs   []string `json:"macs,omitempty"`
	UUID   string   `json:"uuid,omitempty"`
	Serial string   `json:"serial,omitempty"`
	// Files are what the installed system has too.
	Files []LinkFile `json:"files"`
	// Own are the only addresses that a link has, by its name or MAC address: none for a card
	// in a bond. A link that asks by DHCP is not in it.
	Own map[string][]netip.Addr `json:"own,omitempty"`
	// Made are the links that are not there before: bonds and VLANs.
	Made []string `json:"made,omitempty"`
}

// LinkFile is a file for systemd-networkd, readable by all.
type LinkFile struct {
	Path    string `json:"path"`
	Content string `json:"content"`
}

// ParseLinks reads a file at LinksPath. Unknown keys are errors.
func ParseLinks(b []byte) (Links, error) {
	var l Links
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return Links{}, fmt.Errorf("parsing the links of machines: %w", err)
	}
	if d.More() {
		return Links{}, errors.New("parsing the links of machines: there is more than one JSON value")
	}
	for _, m := range l.Machines {
		for _, f := range m.Files {
			if name, ok := strings.CutPrefix(f.Path, LinkFiles); !ok || strings.ContainsAny(name, "/ \n\t") {
				return Links{}, fmt.Errorf("parsing the links of machines: %s has the file %q, which is none of systemd-networkd's", m.Machine, f.Path)
			}
		}
	}
	return l, nil
}
