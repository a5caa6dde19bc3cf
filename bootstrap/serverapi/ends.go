package serverapi

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// endNotes tell of machines' certificates that should have been renewed: nodes do that by
// themselves when they reach a server. What a control plane runs with is kubeadmNotes' matter.
// They begin a quarter of the way from the day when renewing is due to the end, as the node's own
// warnings do.
func (s *Server) endNotes(ctx context.Context, nodes []coordinator.Node) ([]string, error) {
	held, err := s.held(ctx)
	if err != nil {
		return nil, err
	}
	now, revoked := s.cfg.Now(), s.revoked.Load()
	var ends []machineEnd
	for _, m := range s.cfg.Machines {
		if s.cfg.Store.State(m.Name) == machine.Retired {
			continue
		}
		all := slices.DeleteFunc(slices.Clone(held[holderOf(pki.KindNode, m.Name)]), func(c certificate) bool {
			_, is := revoked.entries[c.CA+"/"+c.Serial]
			return is || c.CA == caEtcd && !m.ControlPlane || !renewedByNodes(c.Profile)
		})
		e, ok := firstToEnd(all, s.lifetimes.Backdate, now)
		if !ok {
			continue
		}
		e.name = m.Name
		i := slices.IndexFunc(nodes, func(n coordinator.Node) bool { return n.Name == m.Name })
		e.calls = i >= 0 && nodes[i].Seen != nil
		ends = append(ends, e)
	}
	return endSentences(ends, now), nil
}

// machineEnd is the first certificate of a machine to end.
type machineEnd struct {
	name, profile string
	due, end      time.Time
	// others of the same machine are late too; calls: it does call.
	others int
	calls  bool
}

// renewedByNodes says whether a node renews such a certificate before its end, on its own.
func renewedByNodes(profile string) bool {
	switch profile {
	case profileNode, "etcd-server", "etcd-peer", "etcd-apiserver-client", "etcd-agent-client", "kubelet-serving", "kubelet-client":
		return true
	}
	return false
}

// firstToEnd finds it among those of a machine that nobody has renewed in time.
func firstToEnd(all []certificate, backdate time.Duration, now time.Time) (e machineEnd, late bool) {
	for _, c := range all {
		issued := c.NotBefore.Add(backdate)
		due := issued.Add(pki.RenewAfter(c.NotAfter.Sub(issued)))
		if superseded(c, all) || now.Before(due.Add(c.NotAfter.Sub(due)/4)) {
			continue
		}
		if late {
			e.others++
		}
		if !late || c.NotAfter.Before(e.end) {
			e.profile, e.due, e.end = c.Profile, due, c.NotAfter
		}
		late = true
	}
	return e, late
}

// endSentences are a note for each of a few machines, the first to end first, and one for the rest.
func endSentences(ends []machineEnd, now time.Time) []string {
	const few = 5
	slices.SortStableFunc(ends, func(a, b machineEnd) int { return a.end.Compare(b.end) })
	var out []string
	for i, e := range ends {
		if i == few {
			out = append(out, fmt.Sprintf("warning: certificates of %d more machines should have been renewed; imagectl certs ls shows them", len(ends)-few))
			break
		}
		var b strings.Builder
		level, at := "warning", e.end.UTC().Format(time.DateOnly)
		if !now.Before(e.due.Add(e.end.Sub(e.due) / 4 * 3)) {
			level = "alarm"
		}
		fmt.Fprintf(&b, "%s: the certificate %s of %s ", level, e.profile, e.name)
		switch left := e.end.Sub(now); {
		case left <= 0:
			fmt.Fprintf(&b, "has ended on %s", at)
		case left >= 48*time.Hour:
			fmt.Fprintf(&b, "ends in %d days, on %s", left/(24*time.Hour), at)
		default:
			fmt.Fprintf(&b, "ends in %d hours, on %s", left/time.Hour, at)
		}
		if e.others > 0 {
			fmt.Fprintf(&b, " (and %d others of it later)", e.others)
		}
		fmt.Fprintf(&b, "; it was to be renewed from %s on, ", e.due.UTC().Format(time.DateOnly))
		if e.calls {
			fmt.Fprintf(&b, "and the machine calls without doing that: imagectl node health %s", e.name)
		} else {
			b.WriteString("and the machine does not call")
		}
		out = append(out, b.String())
	}
	return out
}
