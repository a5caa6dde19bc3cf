package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/evidence"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// images finds what a build made of some roles, or of all, in the first of a
// platform's formats that there is, and reads every file through: one whose bytes
// do not fit the manifest goes nowhere. The caller closes the files.
func (g *globals) images(ctx context.Context, takes []store.Format, out, wanted string, roles []string) (images []upload.Image, err error) {
	defer func() {
		if err != nil {
			for _, i := range images {
				i.File.Close()
			}
		}
	}()
	m, err := store.ReadManifest(out)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usageError{fmt.Errorf("%w; run imagectl build --format %s", err, takes[0])}
	}
	if err != nil {
		return nil, usageError{err}
	}
	if wanted != "" {
		if !slices.Contains(takes, store.Format(wanted)) {
			return nil, usageError{fmt.Errorf("format %s: the platform takes %s", wanted, joined(takes))}
		}
		takes = []store.Format{store.Format(wanted)}
	}
	if len(roles) == 0 {
		for _, a := range m.Artefacts {
			if a.RawSHA256 != "" && a.Role != "" && !slices.Contains(roles, a.Role) {
				roles = append(roles, a.Role)
			}
		}
	}
	p := newProgress(g.stdio.Err)
	defer p.close()
	for _, role := range roles {
		a, ok := find(m, role, takes)
		if !ok {
			return images, usageError{fmt.Errorf("role %s has no image of format %s in %s; run imagectl build %s --format %s", role, joined(takes), out, role, takes[0])}
		}
		img, err := openImage(ctx, out, m, a, func(done int64) { p.step("checking "+a.Name, done, a.Size) })
		if err != nil {
			return images, err
		}
		images = append(images, img)
	}
	if len(images) == 0 {
		return nil, usageError{fmt.Errorf("%s lists no disk image; run imagectl build --format %s", out, takes[0])}
	}
	return images, nil
}

func joined(all []store.Format) string {
	var names []string
	for _, f := range all {
		names = append(names, string(f))
	}
	return strings.Join(names, " or ")
}

func find(m store.Manifest, role string, takes []store.Format) (store.Artefact, bool) {
	for _, f := range takes {
		if a, ok := m.Find(role, f); ok && a.RawSHA256 != "" {
			return a, true
		}
	}
	return store.Artefact{}, false
}

// versionOf is the version of a disk: its release and the beginning of its digest.
func versionOf(m store.Manifest, a store.Artefact) string { return m.Flatcar + "-" + a.RawSHA256[:8] }

// openImage opens and checks one artefact.
func openImage(ctx context.Context, out string, m store.Manifest, a store.Artefact, step func(done int64)) (upload.Image, error) {
	f, err := os.Open(filepath.Join(out, a.Name))
	if err != nil {
		return upload.Image{}, usageError{fmt.Errorf("opening the image: %w; run imagectl build", err)}
	}
	digest, n, err := digestOf(ctx, f, step)
	if err == nil && (digest != a.SHA256 || n != a.Size) {
		err = usageError{fmt.Errorf("%s has %d bytes and sha256 %s, and the manifest says %d and %s: run imagectl build", f.Name(), n, digest, a.Size, a.SHA256)}
	}
	if err != nil {
		f.Close()
		return upload.Image{}, err
	}
	labels := map[string]string{"cluster": m.Cluster, "role": a.Role, "flatcar": m.Flatcar, "kubernetes": m.Kubernetes}
	if c, ok := m.Find(a.Role, store.Ignition); ok {
		labels["config-digest"] = "sha256:" + c.SHA256
	}
	if err := buildLabels(labels, out, a); err != nil {
		f.Close()
		return upload.Image{}, usageError{err}
	}
	img := upload.Image{
		Name: m.Cluster + "-" + a.Role, Version: versionOf(m, a), Digest: a.RawSHA256,
		Format: a.Format, File: f, Size: a.Size, SHA256: a.SHA256, RawSize: a.RawSize, Labels: labels,
	}
	docs := []upload.Document{
		{Kind: upload.Manifest, Path: filepath.Join(out, store.ManifestName)},
		{Kind: upload.Sums, Path: filepath.Join(out, evidence.SumsName)},
		{Kind: upload.Provenance, Path: filepath.Join(out, evidence.ProvenanceName)},
	}
	if s, ok := m.Find(a.Role, store.SPDX); ok {
		docs = append(docs, upload.Document{Kind: upload.SBOM, Path: filepath.Join(out, s.Name)})
	}
	for _, d := range docs {
		if _, err := os.Stat(d.Path); err == nil {
			img.Documents = append(img.Documents, d)
		}
	}
	return img, nil
}

// digestOf reads a file from its beginning to its end.
func digestOf(ctx context.Context, f *os.File, step func(done int64)) (string, int64, error) {
	h := sha256.New()
	for done := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return "", done, fmt.Errorf("reading %s: %w", f.Name(), upload.CallError(ctx, err))
		}
		n, err := io.CopyN(h, f, 16<<20)
		done += n
		step(done)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), done, nil
		}
		if err != nil {
			return "", done, fmt.Errorf("reading %s: %w", f.Name(), err)
		}
	}
}
