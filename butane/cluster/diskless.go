package cluster

import (
	"strings"

	"github.com/imagectl/imagectl/butane/snippet"
)

// diskless checks which machines have a disk to install to, and which have none.
func (c *checker) diskless(raw rawFile, s Spec) {
	for i, r := range raw.Machines {
		disk, m := r.Disk.place, s.Machines[i]
		if !m.Diskless {
			if disk.Path == "" && !c.reported(r.place.Path+".diskless") {
				c.add(r.Pos, r.place.Path, "disk:\n  path: /dev/disk/by-id/…", "required key %q is missing; only a machine with diskless: true needs none", "disk")
			}
			continue
		}
		at := r.Diskless
		if disk.Path != "" {
			c.add(disk.Pos, disk.Path, "remove disk, or diskless", "%s is diskless: nothing is ever installed on it", m.Name)
		}
		role, known := s.role(m.Role)
		if known && role.ControlPlane {
			c.add(at.Pos, at.Path, "give it a disk", "%s is a control plane, and etcd's data has to outlive a start", m.Name)
		}
		for _, b := range role.Butane {
			cfg, _ := snippet.Translate(b.File, b.Content, b.Dir)
			if keys := snippet.Disks(cfg); len(keys) > 0 {
				c.add(at.Pos, at.Path, "give it a role of its own", "%s of role %s has %s, which Ignition does at every start of a diskless machine: it would write its disks again and again", b.File, role.Name, strings.Join(keys, ", "))
			}
		}
		if s.Identity != "tpm" {
			c.warn(at.place, "identity: {policy: tpm}", "%s makes a new key at every start, and a person has to approve each: identity.policy is %s", m.Name, s.Identity)
		}
	}
}
