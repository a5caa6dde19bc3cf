package cluster

import (
	"net"
	"slices"

	"github.com/imagectl/imagectl/pxe/quirk"
)

// quirks checks names of firmware quirks, and returns them with what they are
// for: how the machine goes on to its own disk, when one of them says so.
func (c *checker) quirks(known quirk.Set, raw []rawString) (names []string, localBoot string) {
	for _, q := range raw {
		if !q.Set {
			continue
		}
		switch name := c.choice(q, "", known.Named(), nil); {
		case name == "":
		case slices.Contains(names, name):
			c.add(q.Pos, q.Path, "remove one", "%q is there twice", name)
		default:
			names = append(names, name)
		}
	}
	effect, _ := known.Apply(quirk.Disk, quirk.Client{MAC: net.HardwareAddr{}}, names)
	return names, effect.LocalBoot
}
