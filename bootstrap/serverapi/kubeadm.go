package serverapi

import (
	"fmt"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
)

// What kubeadm makes lives for a year.
const (
	// kubeadmRenew is how long before their end such certificates are renewed: after a
	// third of their life, as all others.
	kubeadmRenew = 240 * 24 * time.Hour
	// kubeadmNotice is how long before it status warns of them, and they are renewed
	// even if the API server then stops for a moment.
	kubeadmNotice = 90 * 24 * time.Hour
)

// kubeadmCertificates is how it stands with them at a time.
func kubeadmCertificates(k *api.KubernetesObserved, now time.Time) coordinator.Certificates {
	end := k.GetCertificatesEnd()
	switch {
	case end == nil:
		return coordinator.CertificatesGood
	case end.AsTime().Sub(now) < kubeadmNotice:
		return coordinator.CertificatesUrgent
	case end.AsTime().Sub(now) < kubeadmRenew, k.GetCertificatesStale():
		return coordinator.CertificatesDue
	}
	return coordinator.CertificatesGood
}

// renewBefore is the end before which certificates are renewed whose turn it is. It
// moves once a day, because each new one is news for the node.
func renewBefore(now time.Time) time.Time {
	const day = 24 * time.Hour
	return now.Add(kubeadmRenew).Truncate(day).Add(day)
}

// kubeadmNotes tell of control planes whose certificates are renewed, or should have
// been.
func (s *Server) kubeadmNotes(nodes []coordinator.Node, choices coordinator.Choices) []string {
	var out []string
	now := s.cfg.Now()
	for _, m := range s.cfg.Machines {
		r, ok := s.board.get(m.Name)
		end := r.last.GetKubernetes().GetCertificatesEnd()
		if !ok || end == nil {
			continue
		}
		why := coordinator.RenewalSummary(nodes, choices, m.Name)
		date := end.AsTime().UTC().Format(time.DateOnly)
		switch {
		case end.AsTime().Sub(now) < kubeadmNotice && why == "":
			out = append(out, fmt.Sprintf("warning: a certificate that kubeadm made on %s ends at %s; it is renewed when the machine calls", m.Name, date))
		case end.AsTime().Sub(now) < kubeadmNotice:
			out = append(out, fmt.Sprintf("warning: a certificate that kubeadm made on %s ends at %s and should have been renewed: %s", m.Name, date, why))
		case choices.Renewing == m.Name:
			out = append(out, fmt.Sprintf("%s renews the certificates that kubeadm made on it, and starts its control plane anew", m.Name))
		}
	}
	return out
}
