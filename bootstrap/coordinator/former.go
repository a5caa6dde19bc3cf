package coordinator

import (
	"slices"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Former names a Node object that is to go. BootID is of the system that runs on a machine now,
// which was installed anew: a Node object that has another one is of the former system. Or Was
// is of the system that a machine ran when it was retired or replaced: only a Node object that
// has this one goes, however late somebody gets to it, for the name may be another machine's.
type Former struct{ Name, BootID, Was string }

// Removes are the machines whose former Node objects one removes; none for most. A machine that
// is armed may run still; one that calls from another system than it joined with does not.
func Removes(nodes []Node, c Choices, name string) []Former {
	if name == "" || remover(nodes, c) != name {
		return nil
	}
	var out []Former
	for _, n := range nodes {
		if n.Lost != "" {
			out = append(out, Former{Name: n.Name, Was: n.Lost})
		}
		if !n.Former || n.Seen == nil || n.Seen.Joined || n.Seen.BootID == "" {
			continue
		}
		if working(n.State) || n.Seen.Installer && n.State == machine.Installing {
			out = append(out, Former{Name: n.Name, BootID: n.Seen.BootID})
		}
	}
	return out
}

// formerGone: somebody has looked since this system was started.
func formerGone(nodes []Node, n Node) bool {
	return slices.ContainsFunc(nodes, func(o Node) bool {
		return o.Seen != nil && slices.Contains(o.Seen.FormerGone, Former{Name: n.Name, BootID: n.Seen.BootID})
	})
}

// remover is the control plane that removes Node objects: the first that can. Who removes
// what is no choice to be stored, for two that do it do no harm.
func remover(nodes []Node, c Choices) string {
	for _, n := range nodes {
		if n.ControlPlane && working(n.State) && slices.Contains(c.APIServers, n.Name) &&
			n.Seen != nil && !n.Seen.Installer && n.Seen.Joined && n.Seen.APIServerReady && n.Seen.RemovesFormer {
			return n.Name
		}
	}
	return ""
}

// Drainer is the control plane that drains a machine, another one if there is one; empty for
// none that can.
func Drainer(nodes []Node, c Choices, name string) string {
	by := ""
	for _, n := range nodes {
		if n.ControlPlane && working(n.State) && slices.Contains(c.APIServers, n.Name) &&
			n.Seen != nil && !n.Seen.Installer && n.Seen.Joined && n.Seen.APIServerReady && n.Seen.Drains {
			if by = n.Name; n.Name != name {
				break
			}
		}
	}
	return by
}
