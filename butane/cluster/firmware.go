package cluster

import (
	"net"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/pxe/quirk"
)

// nbp is what UEFI loads by PXE. GRUB asks the server that gave the address for all
// that it loads, so nobody else may give it.
func (c *checker) nbp(f rawString, def string, boot rawBoot) string {
	nbp := c.choice(f, def, []string{"ipxe", "grub"}, nil)
	if f.V != "grub" {
		return nbp
	}
	if boot.GRUB.Path == "" {
		c.add(f.Pos, f.Path, "boot: {grub: {shim: boot/shimx64.efi, grub: boot/grubx64.efi}}", "there is no GRUB: boot.grub names where it and its shim come from")
	}
	if d := boot.DHCP.or("authoritative"); strings.HasPrefix(d, "proxy") {
		c.add(f.Pos, f.Path, "dhcp: authoritative", "GRUB loads from the server that gave the address, which is another one under boot.dhcp: %s", d)
	}
	return nbp
}

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
