package dhcp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Other is another DHCP server, as clients name it that take its offers.
type Other struct {
	Server netip.Addr
	// Last is when a client named it last, and MAC which one that was.
	Last time.Time
	MAC  MAC
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

// others are the other servers by their addresses.
type others map[netip.Addr]Other

// note takes in that a client named a server, and tells whether the operator should
// hear of it now.
func (o others) note(server netip.Addr, mac MAC, now time.Time) (tell bool) {
	was, known := o[server]
	if !known && len(o) >= maxOthers {
		for at, other := range o {
			if now.Sub(other.Last) >= otherTime {
				delete(o, at)
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
	o[server] = Other{Server: server, Last: now, MAC: mac, told: was.told}
	return tell
}

// recent are those that were named lately, by address.
func (o others) recent(now time.Time) []Other {
	var out []Other
	for _, other := range o {
		if now.Sub(other.Last) < otherTime {
			out = append(out, other)
		}
	}
	slices.SortFunc(out, func(a, b Other) int { return a.Server.Compare(b.Server) })
	return out
}

// Notice is one sentence on the other servers, for a server that gives out addresses or
// for a proxy, which stands beside one; empty when all is as it should be.
func Notice(proxy bool, others []Other) string {
	if len(others) == 0 || proxy && len(others) == 1 {
		return ""
	}
	var names []string
	for _, o := range others {
		names = append(names, o.Server.String())
	}
	last := slices.MaxFunc(others, func(a, b Other) int { return cmp.Or(a.Last.Compare(b.Last), a.Server.Compare(b.Server)) })
	took := fmt.Sprintf("%s (last taken by %s at %s)", strings.Join(names, ", "), last.MAC, last.Last.UTC().Format("2006-01-02 15:04:05 MST"))
	if proxy {
		return fmt.Sprintf("%d other DHCP servers give out addresses on the boot network: %s; unless they share their leases, one of them is a stranger's", len(others), took)
	}
	return "another DHCP server gives out addresses on the boot network: " + took + "; machines may get a wrong address and boot program from it: switch it off, or set boot.dhcp: proxy in cluster.yaml"
}
