// Package evidence is what lies beside artefacts so that somebody else can judge
// them without us: checksums, and a provenance statement that binds them all. It
// writes both, and checks an output directory offline.
//
//	SHA256SUMS                   every file below
//	provenance.intoto.jsonl      signed; its subjects are all files below
//	manifest.json                lists all files below
//	artefacts, their .spdx.json, config.ign and grub.cfg
package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/imagectl/imagectl/images/provenance"
	"github.com/imagectl/imagectl/images/store"
)

// ProvenanceName is the envelope's file name in the output directory.
const ProvenanceName = "provenance.intoto.jsonl"

// Write puts provenance and checksums beside the artefacts of a manifest, which
// the caller writes after them. build needs no subjects. key nil writes an
// envelope without signature, unless the one that lies there says the same and
// has one: a signature is not thrown away.
func Write(dir string, m store.Manifest, build provenance.Build, key *provenance.PrivateKey) error {
	manifest, err := m.Encode()
	if err != nil {
		return err
	}
	build.Subjects = subjects(m, digest(manifest))
	statement, err := provenance.Encode(build)
	if err != nil {
		return err
	}
	envelope, err := envelope(dir, statement, key)
	if err != nil {
		return err
	}
	if err := replace(dir, ProvenanceName, envelope); err != nil {
		return err
	}
	return replace(dir, SumsName, Sums(append(build.Subjects, file(ProvenanceName, digest(envelope)))))
}

func envelope(dir string, statement []byte, key *provenance.PrivateKey) ([]byte, error) {
	if key == nil {
		old, err := os.ReadFile(filepath.Join(dir, ProvenanceName))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("reading the provenance of the last build: %w", err)
		}
		if e, err := provenance.ParseEnvelope(old); err == nil && bytes.Equal(e.Payload, statement) {
			return old, nil
		}
	}
	e, err := provenance.Wrap(statement, key)
	if err != nil {
		return nil, err
	}
	return e.Encode()
}

// subjects are all files of a manifest, and the manifest.
func subjects(m store.Manifest, manifest string) []provenance.Resource {
	out := []provenance.Resource{file(store.ManifestName, manifest)}
	for _, a := range m.Artefacts {
		out = append(out, file(a.Name, a.SHA256))
	}
	return out
}

func file(name, sha256 string) provenance.Resource {
	return provenance.Resource{Name: name, Digest: provenance.Digest{SHA256: sha256}}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// replace writes a file in one step, unless it has this content.
func replace(dir, name string, content []byte) error {
	path := filepath.Join(dir, name)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	tmp := filepath.Join(dir, "."+name+".tmp")
	if err := writeSynced(tmp, content); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	// Readable by everybody whatever the umask, as artefacts are.
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.Sync()
}
