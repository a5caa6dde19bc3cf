package serverapi

import (
	"context"
	"fmt"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/machine"
)

// lostBoot is the boot of the system whose node Kubernetes may still know, of a machine that
// was retired or replaced; empty for none.
func (s *Server) lostBoot(name string) string {
	m, _ := s.cfg.Store.Machine(name)
	return m.LostBoot
}

// unlisted are machines that cluster.yaml does not list any more and whose nodes have to go.
func (s *Server) unlisted() []coordinator.Node {
	var out []coordinator.Node
	for _, m := range s.cfg.Store.Machines() {
		if _, listed := s.byName[m.Name]; !listed && m.LostBoot != "" && m.State == machine.Retired {
			out = append(out, coordinator.Node{Name: m.Name, State: m.State, Gone: true, Lost: m.LostBoot})
		}
	}
	return out
}

// nodesGone takes in what a control plane has made of the Node objects of machines that were
// retired or replaced. Each is an entry of the log, once.
func (s agents) nodesGone(ctx context.Context, from caller, gone []*api.FormerNode) error {
	if !s.isControlPlane(from.identity.Name) {
		return nil
	}
	for _, f := range gone {
		if f.GetWasBootId() == "" || s.lostBoot(f.GetName()) != f.GetWasBootId() {
			continue
		}
		action, detail := "node-removed", "Kubernetes has no node of it any more"
		switch f.GetOutcome() {
		case api.FormerNode_OUTCOME_REMOVED:
			detail = fmt.Sprintf("%s removed its node from Kubernetes", from.identity.Name)
		case api.FormerNode_OUTCOME_KEPT:
			action, detail = "node-kept", fmt.Sprintf("the node in Kubernetes is of another start of a machine than the one that this server knew, and stays; if it is lost too: kubectl delete node %s", f.GetName())
		}
		err := s.coordinate(ctx, from.actor(), func(c *change) error {
			m, err := c.machine(f.GetName())
			if err != nil || m.LostBoot != f.GetWasBootId() {
				return err
			}
			m.LostBoot = ""
			c.log(audit.Entry{Action: action, Machine: m.Name, Detail: detail})
			return c.tx.PutMachine(m)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
