package diff

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/imagectl/imagectl/images/evidence"
	"github.com/imagectl/imagectl/images/provenance"
	"github.com/imagectl/imagectl/images/sbom"
	"github.com/imagectl/imagectl/images/store"
)

// ErrNoBuild is wrapped by errors about a path that imagectl build did not write.
var ErrNoBuild = errors.New("this is no build")

// Read reads an output directory, given as the directory, its manifest, or an
// artefact in it, which selects the artefact's role.
func Read(path string) (Build, error) {
	dir, name, what := path, "", "a directory without "+store.ManifestName
	if st, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return Build{}, fmt.Errorf("reading %s: %w: there is nothing", path, ErrNoBuild)
	} else if err != nil {
		return Build{}, fmt.Errorf("reading a build: %w", err)
	} else if !st.IsDir() {
		dir, name, what = filepath.Dir(path), filepath.Base(path), "a file without "+store.ManifestName+" beside it"
	}
	m, err := store.ReadManifest(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Build{}, fmt.Errorf("reading %s: %w: it is %s", path, ErrNoBuild, what)
	}
	if err != nil {
		return Build{}, err
	}
	if name != "" && name != store.ManifestName {
		i := slices.IndexFunc(m.Artefacts, func(a store.Artefact) bool { return a.Name == name })
		if i < 0 {
			return Build{}, fmt.Errorf("reading a build: %s is not listed in %s", path, filepath.Join(dir, store.ManifestName))
		}
		role := m.Artefacts[i].Role
		m.Artefacts = slices.DeleteFunc(m.Artefacts, func(a store.Artefact) bool { return a.Role != role })
	}
	b := Build{Manifest: m, Roles: map[string]Role{}}
	if b.Provenance, err = readProvenance(filepath.Join(dir, evidence.ProvenanceName)); err != nil {
		return Build{}, err
	}
	for _, a := range m.Artefacts {
		r := b.Roles[a.Role]
		if !a.Format.Carries() {
			content, err := os.ReadFile(filepath.Join(dir, a.Name))
			if err != nil {
				return Build{}, fmt.Errorf("reading a build: %w; imagectl build writes it anew", err)
			}
			switch a.Format {
			case store.SPDX:
				if r.Bill, err = sbom.Parse(content); err != nil {
					return Build{}, fmt.Errorf("reading %s: %w", filepath.Join(dir, a.Name), err)
				}
			case store.Ignition:
				r.ConfigIgn = content
			case store.GrubCfg:
				r.GrubCfg = content
			}
		}
		b.Roles[a.Role] = r
	}
	return b, nil
}

// readProvenance reads what a build says of its origin; nil when it says nothing.
func readProvenance(path string) (*provenance.Statement, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading a build: %w", err)
	}
	e, err := provenance.ParseEnvelope(content)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	s, err := provenance.Parse(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return &s, nil
}
