package files

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Domain keeps signatures of copies apart from all others of the same key.
const Domain = "imagectl backup copy v1"

// MaxCopy bounds a backup that nodes keep, in bytes, and MaxCopies how many: they lie on the
// disk that etcd needs. The state of five years with a thousand machines has a few megabytes.
const (
	MaxCopy   = 128 << 20
	MaxCopies = 8
)

// Copy is one backup that a node keeps. Anybody could make a backup, for the recipients'
// keys are public; the signature says that this is one of the server's.
type Copy struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// Signature is of Statement, by the key of the CA imagectl.
	Signature []byte `json:"signature"`
}

// Statement is what the signature is of.
func (c Copy) Statement(cluster string) []byte {
	return fmt.Appendf(nil, "%s\n%s\n%d\n%s\n", cluster, c.Name, c.Size, c.SHA256)
}

// Check returns the file that a copy is of, when the server of this cluster made it.
func (c Copy) Check(cas []*x509.Certificate, cluster string) (File, error) {
	f, ok := Named(c.Name, c.Size)
	switch {
	case !ok || f.Cluster != cluster:
		return File{}, fmt.Errorf("checking a copy of a backup: %q is no backup of cluster %s", c.Name, cluster)
	case c.Size <= 0 || c.Size > MaxCopy:
		return File{}, fmt.Errorf("checking a copy of a backup: %s has %d bytes; nodes keep up to %d", c.Name, c.Size, MaxCopy)
	}
	if err := pki.CheckAttestedByAny(cas, Domain, c.Statement(cluster), c.Signature); err != nil {
		return File{}, fmt.Errorf("checking a copy of a backup: %s: %w", c.Name, err)
	}
	return f, nil
}

// CheckContent reads all of r and compares it with what the copy says.
func (c Copy) CheckContent(r io.Reader) error {
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(r, c.Size+1))
	if err != nil {
		return fmt.Errorf("reading %s: %w", c.Name, err)
	}
	if sum := hex.EncodeToString(h.Sum(nil)); n != c.Size || sum != c.SHA256 {
		return fmt.Errorf("reading %s: it has %d bytes (%.12s…), the server made %d (%.12s…)", c.Name, n, sum, c.Size, c.SHA256)
	}
	return nil
}
