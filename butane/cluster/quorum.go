package cluster

import "slices"

// quorum does etcd's arithmetic: what may fail before the cluster stops.
func (c *checker) quorum(raw rawFile, s Spec) {
	if len(raw.Machines) == 0 {
		c.warn(raw.place, "", "there are no machines: images can be built, and nothing will boot")
		return
	}
	at := raw.Machines[0].place
	if m, ok := c.root.member("machines"); ok {
		at = place{Pos: m.pos, Path: "machines"}
	}
	var members []rawMachine
	for _, m := range raw.Machines {
		if r, ok := s.role(m.Role.V); ok && r.ControlPlane {
			members = append(members, m)
		}
	}
	n := len(members)
	need := n/2 + 1
	switch {
	case n == 0:
		// A role that does not exist is reported already, and may be the reason.
		unknown := func(m rawMachine) bool { _, ok := s.role(m.Role.V); return !ok }
		if !c.reported("roles") && !slices.ContainsFunc(raw.Machines, unknown) {
			c.add(at.Pos, at.Path, "", "no machine has a role of kind control-plane")
		}
		return
	case n%2 == 0:
		c.warn(at, "use an odd number of control planes", "%d control planes: quorum is %d of %d, so %d may fail, no more than with %d", n, need, n, n-need, n-1)
	case n > 7:
		c.warn(at, "use 3 or 5 control planes", "%d control planes: every write waits for %d of them", n, need)
	}
	if n < 3 {
		return // losing any zone that matters stops it; nobody expects otherwise
	}
	zones := map[string]int{}
	var order []string
	for _, m := range members {
		z := m.Zone.V
		if !m.Zone.Set {
			continue
		}
		if zones[z]++; zones[z] == 1 {
			order = append(order, z)
		}
	}
	if len(order) == 0 {
		return
	}
	for _, m := range members {
		if !m.Zone.Set {
			c.warn(m.place, "zone: rack1", "control plane %s has no zone, while others have: the loss of its zone is not accounted for", m.Name.V)
		}
	}
	for _, z := range order {
		if n-zones[z] < need {
			c.warn(at, "spread the control planes over three zones", "losing zone %s loses %d of %d etcd members, quorum is %d", z, zones[z], n, need)
		}
	}
}
