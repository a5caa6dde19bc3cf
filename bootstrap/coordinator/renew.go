package coordinator

import (
	"fmt"
	"slices"
)

// Certificates says how it stands with those that kubeadm made on a control plane.
type Certificates int

// What there is to say about them. Who does not know says that they are good.
const (
	CertificatesGood Certificates = iota
	// CertificatesDue are to be renewed when that stops nothing: the API server starts
	// anew with them.
	CertificatesDue
	// CertificatesUrgent are to be renewed whatever it stops.
	CertificatesUrgent
)

// chooseRenewing gives the right to renew kubeadm's certificates, or to start the API server
// with another policy, to one control plane at a time. Whoever has it keeps it until its API server is ready again: one that does not
// come back stops the round before it gets to the next.
func chooseRenewing(nodes []Node, c Choices) Choices {
	if c.Renewing != "" && renewingEnds(find(nodes, c.Renewing)) {
		c.Renewing = ""
	}
	if c.Renewing != "" || !c.KubernetesFormed || c.EtcdRestarting != "" {
		return c
	}
	for _, at := range []Certificates{CertificatesUrgent, CertificatesDue} {
		for _, n := range nodes {
			if !wantsRenewal(n) || (n.Seen.Certificates == CertificatesUrgent) != (at == CertificatesUrgent) {
				continue
			}
			if ok, _ := mayRenew(nodes, c, n); ok {
				c.Renewing = n.Name
				return c
			}
		}
	}
	return c
}

func wantsRenewal(n Node) bool {
	return n.ControlPlane && working(n.State) && n.Seen != nil && !n.Seen.Installer && n.Seen.Joined && (n.Seen.Certificates != CertificatesGood || n.Seen.Outdated)
}

// renewingEnds: it is done and well, or there is nobody to wait for.
func renewingEnds(n *Node) bool {
	return n == nil || !n.ControlPlane || n.Gone || !working(n.State) ||
		n.Seen != nil && (n.Seen.Installer || !n.Seen.Joined || n.Seen.Certificates == CertificatesGood && !n.Seen.Outdated && n.Seen.APIServerReady)
}

// mayRenew says whether the cluster has an API server while this one starts anew.
func mayRenew(nodes []Node, c Choices, n Node) (bool, string) {
	var others, ready []string
	for _, o := range nodes {
		if o.Name == n.Name || !o.ControlPlane || !working(o.State) || !slices.Contains(c.APIServers, o.Name) {
			continue
		}
		others = append(others, o.Name)
		if o.Seen != nil && !o.Seen.Installer && o.Seen.Joined && o.Seen.APIServerReady {
			ready = append(ready, o.Name)
		}
	}
	switch {
	case !n.Seen.APIServerReady: // nobody loses anything
	case len(others) == 0, len(ready) > 0:
	case n.Seen.Certificates == CertificatesUrgent:
	default:
		return false, fmt.Sprintf("no other API server would be ready while that of %s starts anew, not %s", n.Name, list(others))
	}
	return true, ""
}

// RenewalSummary says how far kubeadm's certificates on a machine are from being
// renewed; empty when nothing is to be done about them.
func RenewalSummary(nodes []Node, c Choices, name string) string {
	n := find(nodes, name)
	if n == nil || !wantsRenewal(*n) || n.Seen.Certificates == CertificatesGood {
		return ""
	}
	if c.Renewing == name {
		return "they are being renewed"
	}
	if ok, why := mayRenew(nodes, c, *n); !ok {
		return why
	}
	if c.Renewing != "" {
		return fmt.Sprintf("%s renews its own first, one at a time", c.Renewing)
	}
	return "they are renewed next"
}
