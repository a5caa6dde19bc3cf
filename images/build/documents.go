package build

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/evidence"
	"github.com/imagectl/imagectl/images/inventory"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/provenance"
	"github.com/imagectl/imagectl/images/sbom"
	"github.com/imagectl/imagectl/images/store"
)

// Evidence is what the documents beside the artefacts say of a build; the zero
// value says nothing and signs nothing.
type Evidence struct {
	// Files are cluster.yaml, what it includes, and the lock file.
	Files []provenance.Resource
	// Version of imagectl, and the SHA-256 digest of the running program.
	Version, Program string
	// Key signs the provenance; nil leaves it unsigned.
	Key *provenance.PrivateKey
	// Versions of locked inputs, where they are known.
	Versions map[lock.ID]string
	// BaseSBOM is the base image's own SBOM; the zero value when none is locked.
	BaseSBOM lock.Blob
}

// documents adds to a manifest, for each role and for the installer, what
// describes its artefacts, and names the documents that the last build left
// otherwise.
func (r *run) documents(ctx context.Context, m, old store.Manifest) (docs []store.Artefact, changed []string, err error) {
	byRole := map[string][]store.Artefact{}
	for _, a := range m.Artefacts {
		byRole[a.Role] = append(byRole[a.Role], a)
	}
	add := func(name, role string, format store.Format, content []byte, inputs []store.Input) error {
		a := bytesInput("", content)
		doc := artefact{recipe: a.SHA256, Artefact: store.Artefact{
			Name: name, Role: role, Format: format, Size: int64(len(content)), SHA256: a.SHA256, Inputs: inputs,
		}}
		r.made[name] = doc
		docs = append(docs, doc.Artefact)
		if left(r.in.Out, old, doc.Artefact, content) {
			return nil
		}
		changed = append(changed, name)
		return r.document(name, content)
	}
	for role, carriers := range byRole {
		r.obs.step("listing the software of %s", cmp.Or(role, "the installer"))
		name := fmt.Sprintf("%s-%s-%s-%s", r.in.Cluster, role, r.in.Flatcar, r.in.Kubernetes)
		if role == "" {
			name = r.in.Cluster + "-pxe"
		}
		bill, err := r.bill(ctx, role, carriers)
		if err != nil {
			return nil, nil, err
		}
		if err := add(name+sbom.Suffix, role, store.SPDX, bill, []store.Input{}); err != nil {
			return nil, nil, err
		}
		i := slices.IndexFunc(r.in.Roles, func(x Role) bool { return x.Name == role })
		if i < 0 {
			continue
		}
		for _, f := range []struct {
			format  store.Format
			suffix  string
			id      lock.ID
			content []byte
			from    []store.Input
		}{
			{store.Ignition, ".config.ign", "rendered/config.ign", r.in.Roles[i].ConfigIgn, r.in.Roles[i].Butane},
			{store.GrubCfg, ".grub.cfg", "rendered/grub.cfg", r.in.Roles[i].GrubCfg, nil},
		} {
			inputs := append([]store.Input{bytesInput(f.id, f.content)}, f.from...)
			slices.SortFunc(inputs, func(a, b store.Input) int { return cmp.Compare(a.ID, b.ID) })
			if err := add(name+f.suffix, role, f.format, f.content, slices.Compact(inputs)); err != nil {
				return nil, nil, err
			}
		}
	}
	return docs, changed, nil
}

// left tells whether the last build left this document.
func left(out string, old store.Manifest, doc store.Artefact, content []byte) bool {
	if !slices.ContainsFunc(old.Artefacts, func(a store.Artefact) bool {
		return a.Name == doc.Name && a.SHA256 == doc.SHA256 && slices.Equal(a.Inputs, doc.Inputs)
	}) {
		return false
	}
	there, err := os.ReadFile(filepath.Join(out, doc.Name))
	return err == nil && bytes.Equal(there, content)
}

// document puts a document among the unfinished files.
func (r *run) document(name string, content []byte) error {
	f, err := r.create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return f.Sync()
}

// bill is the SBOM of what a role's artefacts carry.
func (r *run) bill(ctx context.Context, role string, carriers []store.Artefact) ([]byte, error) {
	img := sbom.Image{
		Name: r.in.Cluster + "-" + cmp.Or(role, "installer"), Version: r.in.Flatcar + "-" + r.in.Kubernetes, Created: r.time,
	}
	known := r.in.locked()
	seen := map[lock.ID]bool{}
	for _, a := range carriers {
		img.Artefacts = append(img.Artefacts, sbom.Artefact{Name: a.Name, SHA256: a.SHA256})
		for _, i := range a.Inputs {
			if seen[i.ID] {
				continue
			}
			seen[i.ID] = true
			in := sbom.Input{Blob: lock.Blob{ID: i.ID, SHA256: i.SHA256}, Version: r.in.Evidence.Versions[i.ID]}
			if b, ok := known[i.ID]; ok {
				in.Blob = b
				var err error
				if in.List, err = r.programs(ctx, b); err != nil {
					return nil, err
				}
			}
			img.Inputs = append(img.Inputs, in)
		}
	}
	if b := r.in.Evidence.BaseSBOM; b.SHA256 != "" && (seen[lock.FlatcarImage] || seen[lock.FlatcarPXEInitrd]) {
		base, err := os.ReadFile(r.in.Store.Path(b.SHA256))
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", b.ID, err)
		}
		img.Base = base
	}
	return sbom.Encode(img)
}

// programs lists the programs of an input, once for each input. Flatcar's own
// files are described by Flatcar.
func (r *run) programs(ctx context.Context, b lock.Blob) (inventory.List, error) {
	if strings.HasPrefix(string(b.ID), "flatcar/") {
		return inventory.List{}, nil
	}
	path, err := r.in.Store.Derived(ctx, recipe([]string{"programs 2"}, []store.Input{{SHA256: b.SHA256}}), func(f *os.File) error {
		found, err := inventory.Read(ctx, r.in.Store.Path(b.SHA256), r.tmp)
		if err != nil {
			return err
		}
		return json.NewEncoder(f).Encode(found)
	})
	if err != nil {
		return inventory.List{}, fmt.Errorf("listing the software of %s: %w", b.ID, err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return inventory.List{}, err
	}
	var found inventory.List
	if err := json.Unmarshal(content, &found); err != nil {
		return inventory.List{}, fmt.Errorf("reading %s: %w; delete it", path, err)
	}
	return found, nil
}

// locked are the locked inputs by ID, also those that this build does not read.
func (in Inputs) locked() map[lock.ID]lock.Blob {
	out := map[lock.ID]lock.Blob{}
	all := append(in.Blobs(), in.PXEKernel, in.PXEInitrd)
	if in.Medium != nil {
		all = append(all, in.Medium.blobs()...)
	}
	for _, b := range all {
		out[b.ID] = b
	}
	return out
}

// testify writes provenance and checksums of a manifest.
func (r *run) testify(m store.Manifest) error {
	b := provenance.Build{
		Parameters: provenance.Parameters{Cluster: m.Cluster, Flatcar: m.Flatcar, Kubernetes: m.Kubernetes},
		Files:      r.in.Evidence.Files, Version: r.in.Evidence.Version, Program: r.in.Evidence.Program,
	}
	known, seen := r.in.locked(), map[lock.ID]bool{}
	for _, a := range m.Artefacts {
		for _, i := range a.Inputs {
			if blob, ok := known[i.ID]; ok && !seen[i.ID] {
				seen[i.ID] = true
				b.Inputs = append(b.Inputs, blob)
			}
		}
	}
	if blob := r.in.Evidence.BaseSBOM; blob.SHA256 != "" {
		b.Inputs = append(b.Inputs, blob)
	}
	return evidence.Write(r.in.Out, m, b, r.in.Evidence.Key)
}
