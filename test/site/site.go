// Package site completes a directory with a cluster.yaml so that imagectl serve can run
// on it, for tests of the server: nothing in it is of use to a machine.
package site

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
	"github.com/imagectl/imagectl/images/store"
)

// Complete writes imagectl.lock and out/ beside a directory's cluster.yaml. The lock says
// what the files are that are there, and invents the rest; the artefacts are their own
// names over and over, as long as size says.
func Complete(dir string, size func(store.Format) int64) error {
	spec, found := cluster.Parse(os.ReadFile, filepath.Join(dir, "cluster.yaml"))
	if err := found.Err(); err != nil {
		return err
	}
	if err := writeLock(dir, spec); err != nil {
		return err
	}
	m := store.Manifest{Version: 1, Cluster: spec.Name, Flatcar: spec.Flatcar.Version, Kubernetes: spec.Kubernetes.Version}
	artefacts := []store.Artefact{
		{Name: spec.Name + "-pxe.vmlinuz", Format: store.PXEKernel}, {Name: spec.Name + "-pxe.cpio.gz", Format: store.PXEInitrd},
		{Name: "imagectl.raw", Format: store.Sysext},
	}
	for _, r := range spec.Roles {
		artefacts = append(artefacts, store.Artefact{Name: spec.Name + "-" + r.Name + ".raw.zst", Role: r.Name, Format: store.RawZstd,
			RawSize: 1 << 20, RawSHA256: strings.Repeat("2", 64)})
		if slices.ContainsFunc(spec.Machines, func(m cluster.Machine) bool { return m.Role == r.Name && m.Diskless }) {
			for _, name := range []string{"imagectl", "kubernetes"} {
				artefacts = append(artefacts, store.Artefact{Name: spec.Name + "-" + r.Name + "." + name + ".raw", Role: r.Name, Format: store.Extension, Extension: name})
			}
		}
	}
	for _, a := range artefacts {
		a.Size = size(a.Format)
		content := bytes.Repeat([]byte(a.Name+"\n"), int(a.Size)/len(a.Name)+1)[:a.Size]
		if err := Write(filepath.Join(dir, "out", a.Name), content); err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		a.SHA256 = hex.EncodeToString(sum[:])
		m.Artefacts = append(m.Artefacts, a)
	}
	return store.WriteManifest(filepath.Join(dir, "out"), m)
}

func writeLock(dir string, spec cluster.Spec) error {
	wants := spec.Wants()
	l := lock.Lock{Version: 1, Wants: release.Digest(wants)}
	for _, w := range wants {
		b := lock.Blob{ID: w.ID, Source: w.Source, SHA256: strings.Repeat("0", 64), Size: 1}
		path := w.Source
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if content, err := os.ReadFile(path); err == nil {
			sum := sha256.Sum256(content)
			b.SHA256, b.Size = hex.EncodeToString(sum[:]), int64(len(content))
		}
		if w.Signed != nil {
			b.Signer = &lock.Signer{Primary: w.Signed.Primary, Subkey: w.Signed.Primary, SignedAt: "2026-01-01T00:00:00Z"}
		}
		l.Inputs = append(l.Inputs, b)
	}
	slices.SortFunc(l.Inputs, func(a, b lock.Blob) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return lock.Write(filepath.Join(dir, lock.FileName), l)
}

// Write writes a file and the directories that it is in.
func Write(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the directory of %s: %w", path, err)
	}
	return os.WriteFile(path, content, 0o644)
}
