package catalog

import (
	"net"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/selector"
)

// bindTime is how long a machine that fitted a selector keeps another one from taking
// its name. Who replaces hardware takes longer, or has to wait for it.
const bindTime = 15 * time.Minute

// binding is the machine that fitted a selector.
type binding struct {
	card card
	// uuid is in one of its two byte orders, always the same; zero when not shown.
	uuid [16]byte
	seen time.Time
}

// shown is a machine as selectors see it.
func shown(m boot.Machine) selector.Shown {
	out := selector.Shown{}
	for field, text := range map[selector.Field]string{selector.UUID: m.UUID, selector.Serial: m.Serial, selector.CircuitID: m.CircuitID, selector.RemoteID: m.RemoteID} {
		if text != "" {
			out[field] = text
		}
	}
	if len(m.MAC) == 6 {
		out[selector.MAC] = m.MAC.String()
	}
	if m.Network.IsValid() {
		out[selector.Network] = m.Network.String()
	}
	return out
}

// fitting returns the machines whose selector a client fits.
func (s *snapshot) fitting(m boot.Machine) []int {
	if len(s.selecting) == 0 {
		return nil
	}
	as := shown(m)
	var out []int
	for _, i := range s.selecting {
		if s.entries[i].selector.Match(as) {
			out = append(out, i)
		}
	}
	return out
}

// bind says whether a machine that fits a selector is the one that fitted it before,
// or the only one lately; else it names the other's card. It is remembered when it is here.
func (c *Catalog) bind(m boot.Machine, name string, now time.Time) (other string, ok bool) {
	b := binding{uuid: canonical(m.UUID), seen: now}
	if len(m.MAC) == 6 {
		b.card = card(m.MAC)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old, known := c.bound[name]
	same := old.card == b.card || old.uuid == b.uuid && b.uuid != [16]byte{}
	if known && !same && now.Sub(old.seen) < bindTime {
		return net.HardwareAddr(old.card[:]).String(), false
	}
	if !m.Here {
		return "", true
	}
	if same && b.uuid == ([16]byte{}) {
		b.uuid = old.uuid
	}
	c.bound[name] = b
	if known && !same {
		c.cards.forgetAll(name) // of the machine before
	}
	return "", true
}

// canonical is a UUID in the smaller of its byte orders: firmware shows one, iPXE the
// other.
func canonical(text string) [16]byte {
	u, err := parseUUID(text)
	if err != nil {
		return [16]byte{}
	}
	if v := swapped(u); string(v[:]) < string(u[:]) {
		return v
	}
	return u
}
