package serverapi

import (
	"fmt"
	"time"
)

// kubeadmNotice is how long before their end status warns of certificates that
// kubeadm made for a year.
const kubeadmNotice = 90 * 24 * time.Hour

// kubeadmNotes warn of control planes whose certificates end: nothing renews them but
// another installation.
func (s *Server) kubeadmNotes() []string {
	var out []string
	now := s.cfg.Now()
	for _, m := range s.cfg.Machines {
		r, ok := s.board.get(m.Name)
		if end := r.last.GetKubernetes().GetCertificatesEnd(); ok && end != nil && end.AsTime().Sub(now) < kubeadmNotice {
			out = append(out, fmt.Sprintf("warning: a certificate that kubeadm made on %s ends at %s, and nothing renews it: imagectl machines arm %s --reinstall makes others", m.Name, end.AsTime().UTC().Format(time.DateOnly), m.Name))
		}
	}
	return out
}
