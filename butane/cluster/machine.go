package cluster

import (
	"path"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/pxe/quirk"
)

func (c *checker) machines(raw []rawMachine, boot rawBoot) []Machine {
	names, macs, uuids, serials := map[string]place{}, map[string]place{}, map[string]place{}, map[string]place{}
	var out []Machine
	var selectors []selecting
	known, err := quirk.Load()
	if err != nil { // only a mistake in its data, which its own test finds
		c.add(c.root.pos, "machines", "", "%v", err)
	}
	nbp := boot.NBP.or("ipxe")
	for _, r := range raw {
		quirks, localBoot := c.quirks(known, r.Firmware.Quirks)
		if localBoot == "" {
			localBoot = "exit"
		}
		m := Machine{
			Name:          c.label(r.Name),
			Role:          r.Role.V,
			Zone:          c.label(r.Zone),
			UUID:          strings.ToLower(r.Match.UUID.V),
			Serial:        r.Match.Serial.V,
			EK:            strings.ToLower(r.TPM.EK.V),
			Address:       r.Address.V,
			Disk:          c.disk(r.Disk),
			Diskless:      r.Diskless.V,
			Labels:        c.labels(r.Labels),
			LocalBoot:     c.choice(r.Firmware.LocalBoot, localBoot, []string{"exit", "sanboot", "poweroff"}, nil),
			NBP:           c.nbp(r.Firmware.NBP, nbp, boot),
			Quirks:        quirks,
			InstallerArgs: c.kernelArgs(r.InstallerArgs),
			BMC:           c.bmc(r.BMC),
		}
		c.unique(names, "name", m.Name, r.Name.place)
		for _, mac := range r.Match.MAC {
			if !mac.Set {
				continue
			}
			if mac.V[0]&1 != 0 {
				c.add(mac.Pos, mac.Path, "", "%s is a group address, no network card has it", mac.V)
			}
			c.unique(macs, "MAC", mac.V.String(), mac.place)
			m.MACs = append(m.MACs, mac.V)
		}
		if u := r.Match.UUID; u.Set {
			switch {
			case !uuidText.MatchString(m.UUID):
				c.add(u.Pos, u.Path, "dmidecode -s system-uuid prints it", "%q is not a UUID", u.V)
			case strings.Trim(m.UUID, "0-") == "" || strings.Trim(m.UUID, "f-") == "":
				c.add(u.Pos, u.Path, "match by mac", "%s is what firmware without a UUID says", u.V)
			}
			c.unique(uuids, "UUID", m.UUID, u.place)
		}
		c.unique(serials, "serial", m.Serial, r.Match.Serial.place)
		exact := len(r.Match.MAC) > 0 || r.Match.UUID.Set || r.Match.Serial.Set
		if r.Match.Selector.Path != "" {
			sel, ok := c.selector(r.Match.Selector, exact)
			m.Selector = sel.patterns
			if ok {
				sel.machine = m.Name
				selectors = append(selectors, sel)
			}
		} else if r.Match.Path != "" && !c.reported(r.Match.Path) && !exact {
			c.add(r.Match.Pos, r.Match.Path, "match:\n  mac: [\"52:54:00:12:34:56\"]", "says nothing: want mac, uuid, serial or selector")
		}
		out = append(out, m)
	}
	c.distinct(selectors)
	return out
}

// tpms checks which TPM each machine has to have.
func (c *checker) tpms(raw rawFile, s Spec) {
	seen := map[string]place{}
	for i, r := range raw.Machines {
		ek := r.TPM.EK
		if !ek.Set {
			continue
		}
		if !sha256Text.MatchString(s.Machines[i].EK) {
			c.add(ek.Pos, ek.Path, "imagectl machines show prints it when the machine has asked", "%q is not the SHA-256 of an endorsement key: want 64 hexadecimal digits", ek.V)
			continue
		}
		if s.Identity != "tpm" {
			c.add(ek.Pos, ek.Path, "identity: {policy: tpm}", "nobody asks for this TPM: identity.policy is %s", s.Identity)
		}
		c.unique(seen, "tpm.ek", s.Machines[i].EK, ek.place)
	}
}

func (c *checker) disk(raw rawDisk) Disk {
	d := Disk{
		Path: raw.Path.V, Serial: raw.Serial.V, WWN: raw.WWN.V, Model: raw.Model.V,
		MinBytes: int64(raw.MinSize.V), MaxBytes: int64(raw.MaxSize.V),
	}
	if raw.Path.Path != "" && (!strings.HasPrefix(d.Path, "/dev/") || path.Clean(d.Path) != d.Path) && raw.Path.Set {
		c.add(raw.Path.Pos, raw.Path.Path, "such as /dev/disk/by-id/nvme-…", "%q is not the path of a device", d.Path)
	}
	if _, err := path.Match(d.Model, ""); err != nil {
		c.add(raw.Model.Pos, raw.Model.Path, "such as \"Samsung*\"", "%q is not a pattern", d.Model)
	}
	if d.MinBytes > 0 && d.MaxBytes > 0 && d.MaxBytes < d.MinBytes {
		c.add(raw.MaxSize.Pos, raw.MaxSize.Path, "", "maxSize is below minSize: no disk matches")
	}
	empty := !c.reported(raw.place.Path) && !slices.ContainsFunc([]place{raw.Path.place, raw.Serial.place, raw.WWN.place, raw.Model.place, raw.MinSize.place, raw.MaxSize.place},
		func(p place) bool { return p.Path != "" })
	if raw.place.Path != "" && empty {
		c.add(raw.Pos, raw.place.Path, "disk:\n  path: /dev/disk/by-id/…", "selects nothing: a disk is only written when a rule names it")
	}
	return d
}

// references checks that machines name roles that exist.
func (c *checker) references(raw rawFile, s Spec) {
	var names []string
	for _, r := range s.Roles {
		names = append(names, r.Name)
	}
	for _, m := range raw.Machines {
		if !m.Role.Set || slices.Contains(names, m.Role.V) {
			continue
		}
		hint := "roles here: " + strings.Join(names, ", ")
		if near, ok := nearest(m.Role.V, names); ok {
			hint = "role: " + near
		}
		c.add(m.Role.Pos, m.Role.Path, hint, "there is no role %q", m.Role.V)
	}
}
