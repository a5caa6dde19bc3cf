package coordinator

import (
	"fmt"
	"slices"
)

// CAStage is how far the replacement of a CA is.
type CAStage string

// The stages, in the order of Kubernetes' documentation ("Manual Rotation of CA Certificates").
// Each begins when the one before is done everywhere.
const (
	// CASettled: one CA signs and is trusted.
	CASettled CAStage = ""
	// CATrusting: another CA is trusted too, and signs nothing yet.
	CATrusting CAStage = "trusting"
	// CASigning: that CA signs, and every certificate is made anew; the old one is trusted still.
	CASigning CAStage = "signing"
	// CADropping: the old one is trusted no more.
	CADropping CAStage = "dropping"
)

// CARotation is which CAs are trusted, and how far the replacement of one is. The zero value: it
// was never replaced.
type CARotation struct {
	Stage CAStage `json:"stage,omitempty"`
	// Turn counts the changes of what machines are told, three in a replacement. A machine never
	// takes an older one.
	Turn uint64 `json:"turn,omitempty"`
	// CAs are the pki.KeyIDs of those that are trusted; the first signs. Empty when it was never
	// replaced.
	CAs []string `json:"cas,omitempty"`
}

// Equal says whether nothing differs.
func (r CARotation) Equal(o CARotation) bool {
	return r.Stage == o.Stage && r.Turn == o.Turn && slices.Equal(r.CAs, o.CAs)
}

// Rotate begins to replace a CA by another one. It must be settled.
func (r CARotation) Rotate(old, next string) CARotation {
	return CARotation{Stage: CATrusting, Turn: r.Turn + 1, CAs: []string{old, next}}
}

// after is the stage after this one.
func (r CARotation) after() CARotation {
	switch r.Stage {
	case CATrusting:
		return CARotation{Stage: CASigning, Turn: r.Turn + 1, CAs: []string{r.CAs[1], r.CAs[0]}}
	case CASigning:
		return CARotation{Stage: CADropping, Turn: r.Turn + 1, CAs: r.CAs[:1]}
	default:
		return CARotation{Turn: r.Turn, CAs: r.CAs}
	}
}

// NextEtcdCA advances the replacement of etcd's CA by one stage at most. holds are sentences on
// what else is waited for.
//
// A member that misses a stage could not speak to the others: it would show, or be shown, what
// nobody there can check. So each one that is known counts, whether it calls or not, until it is
// retired or replaced. Only a machine that has heard of a later stage, from this server before it
// came out of a backup, says that they all were through.
func NextEtcdCA(nodes []Node, c Choices, holds []string) CARotation {
	r := c.EtcdCA
	if r.Stage == CASettled || len(EtcdCAWaits(nodes, c, holds)) > 0 && !(r.Stage != CADropping && len(EtcdCAAhead(nodes, c)) > 0) {
		return r
	}
	return r.after()
}

// EtcdCAAhead are the machines that have been told of a later turn than this one: the server came
// out of a backup.
func EtcdCAAhead(nodes []Node, c Choices) []string {
	var out []string
	for _, n := range nodes {
		if n.ControlPlane && n.Seen != nil && !n.Seen.Installer && n.Seen.CATurn > c.EtcdCA.Turn {
			out = append(out, n.Name)
		}
	}
	return out
}

// EtcdCAWaits says what the next stage waits for, a sentence each.
func EtcdCAWaits(nodes []Node, c Choices, holds []string) []string {
	if c.EtcdCA.Stage == CASettled {
		return nil
	}
	var out []string
	if c.EtcdCA.Stage == CATrusting {
		out = slices.Clone(holds)
	}
	for _, n := range nodes {
		if why := etcdCAWait(nodes, n, c); why != "" {
			out = append(out, why)
		}
	}
	return out
}

// etcdCAWait says why the next stage waits for a machine; empty when it does not.
func etcdCAWait(nodes []Node, n Node, c Choices) string {
	concerned := slices.Contains(c.EtcdVoters, n.Name) || slices.Contains(c.APIServers, n.Name) || n.Name == c.EtcdFirst || n.Name == c.EtcdJoining
	switch {
	case !n.ControlPlane:
		return ""
	case n.Seen == nil && concerned && hasDisk(n.State):
		return fmt.Sprintf("%s does not call, and what is on its disk has the CAs of before: switch it on, or imagectl machines retire %s", n.Name, n.Name)
	case n.Seen == nil || n.Seen.Installer:
		return "" // its disk has no member any more, or none yet
	case !concerned && !n.Seen.EtcdMember && !n.Seen.Joined:
		return "" // it is given what is right when its turn comes
	case n.Seen.CADone >= c.EtcdCA.Turn:
		return ""
	case n.Seen.CAStale && c.EtcdRestarting == n.Name:
		return n.Name + " starts its etcd anew"
	case n.Seen.CAStale && c.EtcdRestarting != "":
		return fmt.Sprintf("%s is to start its etcd anew, after %s", n.Name, c.EtcdRestarting)
	case n.Seen.CAStale:
		if ok, why := mayRestart(nodes, c, n); !ok {
			return fmt.Sprintf("%s is to start its etcd anew: %s", n.Name, why)
		}
		return n.Name + " is to start its etcd anew"
	case n.Seen.Outdated && c.Renewing == n.Name:
		return n.Name + " starts its API server anew"
	case n.Seen.Outdated:
		return n.Name + " is to start its API server anew"
	}
	return n.Name + " has not said that it is through"
}
