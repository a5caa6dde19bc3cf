package coordinator

import (
	"fmt"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// EncryptionStage is how far another key for Secrets at rest is.
type EncryptionStage string

// The stages, in the order of Kubernetes' documentation ("Rotate a decryption key"). Each begins
// when the one before is done everywhere.
const (
	// EncryptionSettled: there is one key, or nothing is encrypted.
	EncryptionSettled EncryptionStage = ""
	// EncryptionAdding: the new key is the second, so that all API servers can read with it
	// before one writes with it.
	EncryptionAdding EncryptionStage = "adding"
	// EncryptionWriting: the new key is the first.
	EncryptionWriting EncryptionStage = "writing"
	// EncryptionRewriting: all API servers write with it, and one machine writes anew what is
	// there.
	EncryptionRewriting EncryptionStage = "rewriting"
)

// Encryption is how Secrets are encrypted in etcd. The zero value is that they are not.
type Encryption struct {
	Stage EncryptionStage `json:"stage,omitempty"`
	// Keys are the names of the keys that API servers have, in their order: the first is
	// written with, all are read with.
	Keys []string `json:"keys,omitempty"`
	// Rewriter is the machine that writes all Secrets anew.
	Rewriter string `json:"rewriter,omitempty"`
}

// Equal says whether nothing differs.
func (e Encryption) Equal(o Encryption) bool {
	return e.Stage == o.Stage && slices.Equal(e.Keys, o.Keys) && e.Rewriter == o.Rewriter
}

// PlainKey stands for no encryption among the names of keys: it is Kubernetes' name for that.
const PlainKey = "identity"

// Rotate begins to replace the key, or PlainKey, by another one. It must be settled. API servers
// read with the former keys too until all is written anew; none of them is the one in use.
func (e Encryption) Rotate(next string, former ...string) Encryption {
	now := PlainKey
	if len(e.Keys) > 0 {
		now = e.Keys[0]
	}
	return Encryption{Stage: EncryptionAdding, Keys: append([]string{now, next}, former...)}
}

// Next is the key that is being put in the place of another one; empty when none is.
func (e Encryption) Next() string {
	switch e.Stage {
	case EncryptionSettled:
		return ""
	case EncryptionAdding:
		return e.Keys[1]
	default:
		return e.Keys[0]
	}
}

// NextEncryption advances it by one stage at most. holds are sentences on what else is waited
// for.
//
// An API server that misses a stage could not read what others write, and what it wrote would be
// lost with the old key. So each one that is known counts, whether it calls or not, until it is
// retired or replaced.
func NextEncryption(nodes []Node, c Choices, holds []string) Encryption {
	e := c.Encryption
	switch e.Stage {
	case EncryptionAdding, EncryptionWriting:
		if len(EncryptionWaits(nodes, c, holds)) > 0 {
			return e
		}
		if e.Stage == EncryptionAdding {
			return Encryption{Stage: EncryptionWriting, Keys: append([]string{e.Keys[1], e.Keys[0]}, e.Keys[2:]...)}
		}
		return Encryption{Stage: EncryptionRewriting, Keys: e.Keys, Rewriter: rewriter(nodes, c)}
	case EncryptionRewriting:
		if rewritten(nodes, e.Keys[0]) {
			return Encryption{Keys: e.Keys[:1]}
		}
		if n := find(nodes, e.Rewriter); n == nil || !serves(*n) {
			if other := rewriter(nodes, c); other != "" {
				e.Rewriter = other
			}
		}
	}
	return e
}

// serves says whether a machine has an API server that is ready.
func serves(n Node) bool {
	return n.ControlPlane && working(n.State) && n.Seen != nil && !n.Seen.Installer && n.Seen.Joined && n.Seen.APIServerReady
}

// rewriter is the first machine that can do it; empty while none can.
func rewriter(nodes []Node, c Choices) string {
	for _, n := range nodes {
		if serves(n) && slices.Contains(c.APIServers, n.Name) {
			return n.Name
		}
	}
	return ""
}

// EncryptionWaits says what the next stage waits for, a sentence each.
func EncryptionWaits(nodes []Node, c Choices, holds []string) []string {
	e := c.Encryption
	if e.Stage == EncryptionSettled {
		return nil
	}
	if e.Stage == EncryptionRewriting {
		// All have both keys: whoever does not call now can read and writes with the new one.
		switch {
		case rewritten(nodes, e.Keys[0]):
			return nil
		case e.Rewriter == "":
			return []string{"no API server is ready to write all Secrets anew"}
		}
		return []string{fmt.Sprintf("%s writes all Secrets anew", e.Rewriter)}
	}
	out := slices.Clone(holds)
	for _, n := range nodes {
		if why := encryptionWait(n, c); why != "" {
			out = append(out, why)
		}
	}
	return out
}

// rewritten: a machine has said that all Secrets are written anew with a key.
func rewritten(nodes []Node, key string) bool {
	return slices.ContainsFunc(nodes, func(n Node) bool { return n.ControlPlane && n.Seen != nil && n.Seen.EncryptionRewritten == key })
}

// encryptionWait says why the next stage waits for a machine; empty when it does not.
func encryptionWait(n Node, c Choices) string {
	server := slices.Contains(c.APIServers, n.Name)
	switch {
	case !n.ControlPlane:
		return ""
	case n.Seen != nil && n.Seen.Installer:
		return "" // its disk has no API server any more, or none yet
	case n.Seen != nil && !n.Seen.Joined:
		if action, _ := joins(n, c); working(n.State) && (action == KubernetesJoinControlPlane || action == KubernetesInit) {
			return fmt.Sprintf("%s joins Kubernetes, and may have the keys of a moment ago", n.Name)
		}
		return ""
	case n.Seen != nil:
		if slices.Equal(n.Seen.EncryptionLoaded, c.Encryption.Keys) {
			return ""
		}
		return fmt.Sprintf("%s has not said that its API server has loaded the keys %s", n.Name, list(c.Encryption.Keys))
	case server && hasDisk(n.State), !server && (n.State == machine.Member || n.State == machine.Ready):
		return fmt.Sprintf("%s does not call, and its API server has the keys of before: switch it on, or imagectl machines retire %s", n.Name, n.Name)
	}
	return ""
}

// hasDisk says whether what a machine ran last may still be on its disk and started.
func hasDisk(s machine.State) bool {
	switch s {
	case machine.Retired, machine.Installing, machine.Installed, machine.Discovered:
		return false
	}
	return true
}
