package etcdsnap

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

const (
	// Domain keeps signatures of manifests apart from all others of the same key.
	Domain = "imagectl etcd snapshot v1"
	// ManifestEnd is at the end of a manifest's name, behind the name of its file.
	ManifestEnd = ".json"
	// manifestMax bounds a manifest that is read, in bytes.
	manifestMax = 16 << 10
	// format is of the manifest.
	format = 1
)

// Manifest says what a snapshot is of. The zero value is none.
type Manifest struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	// Name is the file's.
	Name string `json:"name"`
	// At is when it was begun: what was acknowledged before that is in it.
	At time.Time `json:"at"`
	// Machine is whose member it is of, Member that one's ID, hexadecimal.
	Machine string `json:"machine"`
	Member  string `json:"member"`
	// Revision is what it has at least: a quorum confirmed before that the member was there.
	Revision int64 `json:"revision"`
	// Size in bytes and SHA256 are of the snapshot itself.
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// FileSize and FileSHA256 are of the file, which is encrypted.
	FileSize   int64  `json:"fileSize"`
	FileSHA256 string `json:"fileSha256"`
	// Program is the version of imagectl that took it.
	Program string `json:"program"`
	// Signature is of Statement, by the key of the CA imagectl.
	Signature []byte `json:"signature"`
}

// Statement is what the signature is of.
func (m Manifest) Statement() []byte {
	return fmt.Appendf(nil, "%d\n%q\n%q\n%s\n%q\n%q\n%d\n%d\n%s\n%d\n%s\n%q\n", m.Format, m.Cluster, m.Name, m.At.UTC().Format(time.RFC3339Nano),
		m.Machine, m.Member, m.Revision, m.Size, m.SHA256, m.FileSize, m.FileSHA256, m.Program)
}

// ReadManifest reads one. What it says is to be believed only after Check.
func ReadManifest(r io.Reader) (Manifest, error) {
	b, err := io.ReadAll(io.LimitReader(r, manifestMax+1))
	if err != nil {
		return Manifest{}, fmt.Errorf("reading a manifest: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil || len(b) > manifestMax {
		return Manifest{}, fmt.Errorf("reading a manifest: its %d bytes are none", len(b))
	}
	if m.Format != format {
		return Manifest{}, fmt.Errorf("reading a manifest: its format is %d, this program reads %d; use imagectl %s", m.Format, format, m.Program)
	}
	return m, nil
}

// Check says whether the server of a cluster has made this manifest, for a file of that name.
func (m Manifest) Check(cas []*x509.Certificate, cluster, name string) error {
	_, ok := files.Etcd.Named(m.Name, m.FileSize)
	switch {
	case m.Cluster != cluster:
		return fmt.Errorf("checking the manifest of %s: it is of cluster %s, not %s", name, m.Cluster, cluster)
	case !ok || m.Name != name:
		return fmt.Errorf("checking the manifest of %s: it is of %s", name, m.Name)
	}
	if err := pki.CheckAttestedByAny(cas, Domain, m.Statement(), m.Signature); err != nil {
		return fmt.Errorf("checking the manifest of %s: %w", name, err)
	}
	return nil
}

// Decrypt is the snapshot in a file. What comes is to be believed only when all of it came.
func Decrypt(r io.Reader, with ...age.Identity) (io.Reader, error) {
	plain, err := age.Decrypt(r, with...)
	var other *age.NoIdentityMatchError
	if errors.As(err, &other) {
		return nil, errors.New("opening the snapshot: it is not encrypted to this key; take the recovery key whose public half was in backup.recipients")
	}
	if err != nil {
		return nil, fmt.Errorf("opening the snapshot: it is no file that the server has saved, or it is damaged: %w", err)
	}
	return plain, nil
}

// checkFile reads a file to its end, decrypts it, and says what is in it.
func checkFile(r io.Reader, with ...age.Identity) (plain *Trailer, sum string, size int64, err error) {
	h := &counted{Hash: sha256.New()}
	r = io.TeeReader(r, h)
	in, err := Decrypt(r, with...)
	if err != nil {
		return nil, "", 0, err
	}
	if plain, err = ReadWhole(in); err != nil {
		return nil, "", 0, err
	}
	// age has read to the end of what it wrote; nothing may follow.
	if n, err := io.Copy(io.Discard, r); err != nil || n > 0 {
		return nil, "", 0, errors.Join(fmt.Errorf("%d bytes follow the end of the snapshot", n), err)
	}
	return plain, hex.EncodeToString(h.Sum(nil)), h.n, nil
}
