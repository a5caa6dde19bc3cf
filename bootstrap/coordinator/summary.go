package coordinator

import (
	"fmt"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Summary is one sentence on the whole cluster: what stands between it and being
// complete, the earliest obstacle first.
func Summary(nodes []Node, c Choices) (ready bool, sentence string) {
	by := map[machine.State][]string{}
	var silent []string
	missing, addons := 0, false
	for _, n := range nodes {
		if n.State == machine.Retired {
			continue // nobody waits for it
		}
		by[n.State] = append(by[n.State], n.Name)
		// Its state is what it said last.
		if n.Gone && (n.State == machine.Enrolled || n.State == machine.Member || n.State == machine.Ready) {
			silent = append(silent, n.Name)
		}
		if n.State != machine.Ready {
			missing++
		}
		if n.Name == addonsOn(nodes, c) && n.Seen != nil {
			addons = n.Seen.AddonsApplied
		}
	}
	switch {
	case len(nodes) == 0:
		return false, "cluster.yaml lists no machines"
	case c.leaving():
		_, why := mayLeave(nodes, c)
		return false, why
	case len(silent) > 0:
		return false, fmt.Sprintf("no word from %s for some time; see imagectl machines ls", list(silent))
	case missing == 0 && !addons:
		return false, "every node is Ready; the add-ons are not applied yet"
	case missing == 0:
		return true, fmt.Sprintf("all %d nodes are Ready", len(nodes))
	}
	for _, s := range []struct {
		state machine.State
		text  string
	}{
		{machine.Failed, "failed: %s; see imagectl machines ls"},
		{machine.Quarantined, "two keys claim %s; compare the codes: imagectl machines approve"},
		{machine.Approved, "to be armed: %s; imagectl machines arm"},
		{machine.Armed, "armed, to be netbooted and approved: %s"},
		{machine.Installing, "installing: %s"},
		{machine.Installed, "installed, not yet back from the reboot: %s"},
	} {
		if names := by[s.state]; len(names) > 0 {
			return false, fmt.Sprintf(s.text, list(names))
		}
	}
	if !c.EtcdFormed {
		return false, "waiting for etcd to form" + on(c.EtcdFirst)
	}
	if !c.KubernetesFormed {
		return false, "waiting for kubeadm init" + on(c.KubernetesFirst)
	}
	if c.EtcdJoining != "" {
		return false, fmt.Sprintf("%s joins etcd, which has %d voters: %s", c.EtcdJoining, len(c.EtcdVoters), list(c.EtcdVoters))
	}
	return false, fmt.Sprintf("waiting for %s to become Ready", list(append(by[machine.Enrolled], by[machine.Member]...)))
}

func on(name string) string {
	if name == "" {
		return ""
	}
	return " on " + name
}

// list names a few machines and counts the rest.
func list(names []string) string {
	const few = 5
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}
