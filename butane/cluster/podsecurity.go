package cluster

// podSecurityLevels are those of Kubernetes' Pod Security Standards.
func podSecurityLevels() []string { return []string{"privileged", "baseline", "restricted"} }

func (c *checker) podSecurity(raw rawPodSecurity) PodSecurity {
	p := PodSecurity{
		Enforce: c.choice(raw.Enforce, "baseline", podSecurityLevels(), nil),
		Audit:   c.choice(raw.Audit, "restricted", podSecurityLevels(), nil),
		Warn:    c.choice(raw.Warn, "restricted", podSecurityLevels(), nil),
	}
	seen := map[string]place{}
	for _, ns := range raw.Exempt {
		name := c.label(ns)
		if name == "" {
			continue
		}
		c.unique(seen, "namespace", name, ns.place)
		p.Exempt = append(p.Exempt, name)
	}
	if p.Enforce == "privileged" && raw.Enforce.Set {
		c.warn(raw.Enforce.place, "enforce: baseline, and exempt: the namespaces that need more", "every pod may take its node over")
	}
	return p
}
