package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/evidence"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/provenance"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// buildLabels adds to an artefact's labels what its provenance says of the build. A
// directory without provenance, or with that of other files, adds nothing but the
// manifest's digest.
func buildLabels(labels map[string]string, out string, a store.Artefact) error {
	b, err := os.ReadFile(filepath.Join(out, store.ManifestName))
	if err != nil {
		return fmt.Errorf("reading manifest: %w", err)
	}
	sum := sha256.Sum256(b)
	manifest := hex.EncodeToString(sum[:])
	labels[upload.LabelManifest] = "sha256:" + manifest
	path := filepath.Join(out, evidence.ProvenanceName)
	if b, err = os.ReadFile(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading provenance: %w", err)
	}
	e, err := provenance.ParseEnvelope(b)
	if err != nil {
		return fmt.Errorf("reading %s: %w; run imagectl build", path, err)
	}
	s, err := provenance.Parse(e.Payload)
	if err != nil {
		return fmt.Errorf("reading %s: %w; run imagectl build", path, err)
	}
	if !has(s, store.ManifestName, manifest) || !has(s, a.Name, a.SHA256) {
		return nil
	}
	if git := commitOf(s.Version()); git != "" {
		labels[upload.LabelGit] = git
	}
	if at, ok := released(s); ok {
		labels[upload.LabelCreated] = at.UTC().Format(time.RFC3339)
	}
	return nil
}

// has tells whether a statement is about a file.
func has(s provenance.Statement, name, sha256 string) bool {
	for _, r := range s.Subject {
		if r.Name == name {
			return r.Digest.SHA256 == sha256
		}
	}
	return false
}

// commitOf is the version of the imagectl that built, in letters that every platform
// takes as a label; empty when the build did not know it.
func commitOf(version string) string {
	if strings.Contains(version, " ") {
		return ""
	}
	return strings.ReplaceAll(version, "+", "-")
}

// released is when the Flatcar release was signed. It is the time in everything that is
// built of it, for a build knows no other (images/build, releaseTime).
func released(s provenance.Statement) (time.Time, bool) {
	for _, r := range s.Predicate.BuildDefinition.ResolvedDependencies {
		if r.Name == string(lock.FlatcarImage) {
			at, err := time.Parse(time.RFC3339, r.Annotations["signedAt"])
			return at, err == nil
		}
	}
	return time.Time{}, false
}
