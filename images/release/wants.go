// Package release finds the inputs of a build: it turns what a cluster wants
// into a lock file, and checks signatures on the way.
package release

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"

	"github.com/imagectl/imagectl/images/lock"
)

// Want is one input that somebody asks for.
type Want struct {
	ID lock.ID `json:"id"`
	// Source is an http(s) URL or a path; a relative path starts at the directory
	// of cluster.yaml.
	Source string `json:"source"`
	// Mirrors are other places of the same content, tried in their order.
	Mirrors []string `json:"mirrors,omitempty"`
	// Signed is set when Source has an OpenPGP signature beside it that must be
	// checked.
	Signed *SignedBy `json:"signed,omitempty"`
}

// Form is where the signature of an input is.
type Form string

// Forms of a signature, as cluster.yaml names them.
const (
	// Any is Detached, and Digests where there is no detached one.
	Any Form = ""
	// Detached is Source + ".sig", over the file's bytes.
	Detached Form = "sig"
	// Digests is Source + ".DIGESTS.asc", a clear-signed list of digests.
	Digests Form = "digests"
)

// SignedBy says whose signature is accepted.
type SignedBy struct {
	// Keyring is a path to OpenPGP public keys, armoured or not; a relative path
	// starts at the directory of cluster.yaml. It is never empty.
	Keyring string `json:"keyring,omitempty"`
	// Primary is the fingerprint of the pinned primary key, upper-case hexadecimal
	// without spaces.
	Primary string `json:"primary"`
	// Form is which signature is looked for.
	Form Form `json:"form,omitempty"`
}

// Digest identifies a set of wants, whatever their order; a lock file records it,
// so that a stale lock is noticed. It is lower-case hexadecimal SHA-256.
func Digest(wants []Want) string {
	sorted := slices.Clone(wants)
	slices.SortFunc(sorted, func(a, b Want) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Source, b.Source))
	})
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, w := range sorted {
		// A Want holds only strings and a hash takes every write: this cannot fail.
		_ = enc.Encode(w)
	}
	return hex.EncodeToString(h.Sum(nil))
}
