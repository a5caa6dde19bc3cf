package serverapi

import (
	"fmt"
	"slices"
	"time"

	"github.com/imagectl/imagectl/bootstrap/coordinator"
)

// vipBelief is for how long a machine's word that it has the API's address counts. Agents
// call every 30 seconds and with every change.
const vipBelief = 2 * time.Minute

// vips are the addresses of cluster.yaml that one control plane has at a time.
func (s *Server) vips() []string {
	var out []string
	for _, a := range s.cfg.Kubernetes.APIVIP {
		out = append(out, a.String())
	}
	return out
}

// vipHolder is the control plane that has such an address by its own word, and since when
// that is known; empty when none says so. One that is cut off may believe so for some
// seconds and cannot say otherwise: the newest word counts.
func (s *Server) vipHolder(address string) (name string, said time.Time) {
	for _, m := range s.cfg.Machines {
		r, ok := s.board.get(m.Name)
		if ok && m.ControlPlane && slices.Contains(r.last.GetHoldsVip(), address) && r.at.After(said) && s.cfg.Now().Sub(r.at) < vipBelief {
			name, said = m.Name, r.at
		}
	}
	return name, said
}

// vipNotes are for status.
func (s *Server) vipNotes(c coordinator.Choices) []string {
	var out []string
	for _, v := range s.vips() {
		name, _ := s.vipHolder(v)
		switch {
		case name != "":
			out = append(out, fmt.Sprintf("the API's address %s is on %s", v, name))
		case c.KubernetesFormed:
			out = append(out, fmt.Sprintf("warning: no control plane says that it has the API's address %s: it takes one whose API server is ready with a certificate that names it, and an etcd that answers", v))
		}
	}
	return out
}
