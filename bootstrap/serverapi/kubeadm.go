package serverapi

import (
	"fmt"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
)

// What kubeadm makes, where it has the CA's key, lives for a year.
const (
	kubeadmRenew  = 240 * 24 * time.Hour
	kubeadmNotice = 90 * 24 * time.Hour
)

// kubeadmCertificates is how it stands with them at a time.
func kubeadmCertificates(k *api.KubernetesObserved, r renewal, now time.Time) coordinator.Certificates {
	end := k.GetCertificatesEnd()
	switch {
	case end == nil:
		return coordinator.CertificatesGood
	case end.AsTime().Sub(now) < r.notice:
		return coordinator.CertificatesUrgent
	case end.AsTime().Sub(now) < r.due, k.GetCertificatesStale():
		return coordinator.CertificatesDue
	}
	return coordinator.CertificatesGood
}

// kubeadmNotes tell of control planes whose certificates are renewed, or should have
// been.
func (s *Server) kubeadmNotes(nodes []coordinator.Node, choices coordinator.Choices) []string {
	var out []string
	now, renewal := s.cfg.Now(), s.renewal(choices)
	what := "a certificate that kubeadm made on %s"
	if s.serverSigns(choices) {
		what = "a certificate of %s's control plane"
	}
	for _, m := range s.cfg.Machines {
		r, ok := s.board.get(m.Name)
		what := fmt.Sprintf(what, m.Name)
		end := r.last.GetKubernetes().GetCertificatesEnd()
		if !ok || end == nil {
			continue
		}
		why := coordinator.RenewalSummary(nodes, choices, m.Name)
		date := end.AsTime().UTC().Format(time.DateOnly)
		switch {
		case end.AsTime().Sub(now) < renewal.notice && why == "":
			out = append(out, fmt.Sprintf("warning: %s ends at %s; it is renewed when the machine calls", what, date))
		case end.AsTime().Sub(now) < renewal.notice:
			out = append(out, fmt.Sprintf("warning: %s ends at %s and should have been renewed: %s", what, date, why))
		case choices.Renewing == m.Name:
			out = append(out, fmt.Sprintf("%s renews the certificates of its control plane, and starts it anew", m.Name))
		}
	}
	return out
}
