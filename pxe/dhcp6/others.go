package dhcp6

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// Other is another DHCPv6 server, as clients name it that take its offers: by its DUID,
// since no packet of theirs has its address.
type Other struct {
	// Server is the DUID, in hexadecimal with colons.
	Server string
	// Last is when a client named it last, and Client which one that was: its card, or
	// where nothing tells that its DUID.
	Last   time.Time
	Client string
	// told is when the operator was told.
	told time.Time
}

const (
	// otherTime is how long another server is shown after it was named last, and how
	// often the log says it again.
	otherTime = time.Hour
	// maxOthers bounds the memory of them: anybody can name some.
	maxOthers = 16
)

// others are the other servers by their DUIDs.
type others map[string]Other

// duidText is a DUID as dhclient and Wireshark write it.
func duidText(duid []byte) string {
	var parts []string
	for _, b := range duid {
		parts = append(parts, hex.EncodeToString([]byte{b}))
	}
	return strings.Join(parts, ":")
}

// note takes in that a client named a server, and tells whether the operator should
// hear of it now.
func (o others) note(server, client string, now time.Time) (tell bool) {
	was, known := o[server]
	if !known && len(o) >= maxOthers {
		for name, other := range o {
			if now.Sub(other.Last) >= otherTime {
				delete(o, name)
			}
		}
		if len(o) >= maxOthers {
			return false
		}
	}
	tell = now.Sub(was.told) >= otherTime
	if tell {
		was.told = now
	}
	o[server] = Other{Server: server, Last: now, Client: client, told: was.told}
	return tell
}

// recent are those that were named lately, by name.
func (o others) recent(now time.Time) []Other {
	var out []Other
	for _, other := range o {
		if now.Sub(other.Last) < otherTime {
			out = append(out, other)
		}
	}
	slices.SortFunc(out, func(a, b Other) int { return strings.Compare(a.Server, b.Server) })
	return out
}

// Notice is one sentence on the other servers, for a server that gives out addresses or
// for a stateless one, which stands beside one; empty when all is as it should be.
func Notice(stateless bool, others []Other) string {
	if len(others) == 0 || stateless && len(others) == 1 {
		return ""
	}
	var names []string
	for _, o := range others {
		names = append(names, o.name())
	}
	last := slices.MaxFunc(others, func(a, b Other) int { return cmp.Or(a.Last.Compare(b.Last), strings.Compare(a.Server, b.Server)) })
	took := fmt.Sprintf("%s (last taken by %s at %s)", strings.Join(names, ", "), last.Client, last.Last.UTC().Format("2006-01-02 15:04:05 MST"))
	if stateless {
		return fmt.Sprintf("%d other DHCPv6 servers give out addresses on the boot network: %s; unless they share their leases, one of them is a stranger's", len(others), took)
	}
	return "another DHCPv6 server gives out addresses on the boot network: " + took + "; machines may get a wrong address and boot program from it: switch it off, or set boot.dhcp6.mode: stateless in cluster.yaml"
}

// name is what a person can look for: the DUID, and the network card in it, if it was
// made from one (RFC 8415 sections 11.2 and 11.4).
func (o Other) name() string {
	raw, err := hex.DecodeString(strings.ReplaceAll(o.Server, ":", ""))
	if err != nil {
		return "DUID " + o.Server
	}
	duid, err := dhcpv6.DUIDFromBytes(raw)
	if err != nil {
		return "DUID " + o.Server
	}
	switch d := duid.(type) {
	case *dhcpv6.DUIDLLT:
		return fmt.Sprintf("DUID %s of the card %s", o.Server, d.LinkLayerAddr)
	case *dhcpv6.DUIDLL:
		return fmt.Sprintf("DUID %s of the card %s", o.Server, d.LinkLayerAddr)
	}
	return "DUID " + o.Server
}
