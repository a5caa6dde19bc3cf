package serverapi

import (
	"slices"

	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// loses refuses what would cost etcd its quorum; how is what is done to the
// machine, such as "wiping".
func (s *Server) loses(c *change, nodes []coordinator.Node, choices coordinator.Choices, name, how string) error {
	if !slices.Contains(choices.EtcdVoters, name) {
		return nil
	}
	now, err := s.asOfNow(c, nodes, choices, name)
	if err != nil {
		return err
	}
	if ok, why := coordinator.MayLose(now, choices, name, how); !ok {
		return &refusedError{codeWouldLoseEtcd, why}
	}
	return nil
}

// asOfNow is what the coordinator sees, as of this transaction: one request may name several machines,
// so what was armed a moment ago counts; and voters that are on their way down by order are not
// well, for they said so before they were told.
func (s *Server) asOfNow(c *change, nodes []coordinator.Node, choices coordinator.Choices, but string) ([]coordinator.Node, error) {
	out := slices.Clone(nodes)
	for i, n := range out {
		if !slices.Contains(choices.EtcdVoters, n.Name) {
			continue
		}
		m, ok, err := c.tx.Machine(n.Name)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		out[i].State = m.State
		if n.Name != but && away(m, c.now) {
			out[i] = ill(out[i])
		}
	}
	return out, nil
}

// ill is a machine whose etcd is not well, whatever it said last.
func ill(n coordinator.Node) coordinator.Node {
	if n.Seen != nil {
		seen := *n.Seen
		seen.EtcdHealthy = false
		n.Seen = &seen
	}
	return n
}

// mayReplaceKey refuses what would revoke all that a voter has, its certificates of etcd too, while
// etcd cannot do without it. Of one that is armed or installs that was asked when it was armed.
func (s *Server) mayReplaceKey(c *change, m store.Machine, nodes []coordinator.Node, choices coordinator.Choices) error {
	if m.Key == nil || m.State == machine.Armed || m.State == machine.Installing {
		return nil
	}
	now, err := s.asOfNow(c, nodes, choices, m.Name)
	if err != nil {
		return err
	}
	if ok, _ := coordinator.MayLose(now, choices, m.Name, "revoking"); !ok {
		return &refusedError{codeWouldLoseEtcd, "its certificates are revoked with its key, etcd's too: " + coordinator.Without(now, choices, m.Name) + "; --force does it all the same"}
	}
	return nil
}
