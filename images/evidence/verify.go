package evidence

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/provenance"
	"github.com/imagectl/imagectl/images/sbom"
	"github.com/imagectl/imagectl/images/store"
)

// Check is the finding on one file; Problem is empty when it is good.
type Check struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	// Note says what the check of a good file is worth, when that is not plain.
	Note    string `json:"note,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// Options of Verify; the zero value is good.
type Options struct {
	// Key must have signed the provenance; nil checks no signature.
	Key *provenance.PublicKey
	// Step, when set, is told before a file is read.
	Step func(name string, size int64)
}

// Verify reads every file of an output directory and compares it with the
// manifest, the checksums, the provenance and the SBOMs. Every file has one
// check, sorted by name. An error means that there was nothing to compare with.
// Without a key, whoever can write to the directory can also make its evidence.
func Verify(ctx context.Context, dir string, o Options) ([]Check, error) {
	m, err := store.ReadManifest(dir)
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(dir, store.ManifestName))
	if err != nil {
		return nil, fmt.Errorf("reading manifest: %w", err)
	}
	v := verifier{dir: dir, manifest: m, options: o, checks: map[string]*Check{}}
	v.check(store.ManifestName, digest(raw))
	if canonical, err := m.Encode(); err != nil || !bytes.Equal(canonical, raw) {
		v.problem(store.ManifestName, "it is not written the way imagectl build writes it")
	}
	for _, a := range m.Artefacts {
		if o.Step != nil {
			o.Step(a.Name, a.Size)
		}
		v.check(a.Name, a.SHA256)
		if p := artefact(ctx, filepath.Join(dir, a.Name), a); p != "" {
			v.problem(a.Name, "%s", p)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	v.provenance(digest(raw))
	v.sums()
	for _, a := range m.Artefacts {
		if a.Format == store.SPDX {
			v.sbom(a)
		}
	}
	out := make([]Check, 0, len(v.checks))
	for _, name := range slices.Sorted(maps.Keys(v.checks)) {
		out = append(out, *v.checks[name])
	}
	return out, nil
}

type verifier struct {
	dir      string
	manifest store.Manifest
	options  Options
	checks   map[string]*Check
}

func (v *verifier) check(name, sha256 string) *Check {
	if v.checks[name] == nil {
		v.checks[name] = &Check{Name: name, SHA256: sha256}
	}
	return v.checks[name]
}

// problem keeps the first problem of a file: later ones follow from it.
func (v *verifier) problem(name, format string, args ...any) {
	c := v.check(name, "")
	c.Problem = cmp.Or(c.Problem, fmt.Sprintf(format, args...))
}

// artefact compares a file with its entry in the manifest.
func artefact(ctx context.Context, path string, a store.Artefact) string {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "it is missing"
	}
	if err != nil {
		return err.Error()
	}
	if st.Size() != a.Size {
		return fmt.Sprintf("it has %d bytes, want %d", st.Size(), a.Size)
	}
	got, _, err := store.HashFile(ctx, path)
	if err != nil {
		return err.Error()
	}
	if got != a.SHA256 {
		return fmt.Sprintf("its sha256 is %s, want %s", got, a.SHA256)
	}
	return ""
}

// read returns a small file; a missing one is a problem.
func (v *verifier) read(name string) ([]byte, bool) {
	b, err := os.ReadFile(filepath.Join(v.dir, name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		v.problem(name, "it is missing; imagectl build writes it anew")
		return nil, false
	case err != nil:
		v.problem(name, "%v", err)
		return nil, false
	}
	return b, true
}

func (v *verifier) provenance(manifest string) {
	b, ok := v.read(ProvenanceName)
	if !ok {
		return
	}
	c := v.check(ProvenanceName, digest(b))
	e, err := provenance.ParseEnvelope(b)
	if err != nil {
		v.problem(ProvenanceName, "%v", err)
		return
	}
	switch {
	case v.options.Key != nil:
		if err := e.Verify(*v.options.Key); err != nil {
			v.problem(ProvenanceName, "%v", err)
			return
		}
		c.Note = "signed by key " + v.options.Key.ID()
	case len(e.Signatures) == 0:
		c.Note = "not signed; imagectl build --sign-key signs it"
	default:
		c.Note = "its signature was not checked; give --key"
	}
	s, err := provenance.Parse(e.Payload)
	if err != nil {
		v.problem(ProvenanceName, "%v", err)
		return
	}
	want := subjects(v.manifest, manifest)
	v.compare(ProvenanceName, "its subjects", byName(s.Subject), byName(want))
	// The manifest is told by what was signed, not only by what lies beside it.
	for _, r := range s.Subject {
		if r.Name == store.ManifestName && r.Digest.SHA256 != manifest {
			v.problem(store.ManifestName, "its sha256 is %s, and the provenance says %s", manifest, r.Digest.SHA256)
		}
	}
}

func (v *verifier) sums() {
	b, ok := v.read(SumsName)
	if !ok {
		return
	}
	v.check(SumsName, digest(b))
	got, err := ParseSums(b)
	if err != nil {
		v.problem(SumsName, "%v", err)
		return
	}
	want := map[string]string{}
	for name, c := range v.checks {
		if name != SumsName && c.SHA256 != "" {
			want[name] = c.SHA256
		}
	}
	if p, listed := got[ProvenanceName], want[ProvenanceName]; p != "" && listed != "" && p != listed {
		v.problem(ProvenanceName, "its sha256 is %s, and %s says %s", listed, SumsName, p)
	}
	v.compare(SumsName, "its lines", got, want)
}

func (v *verifier) sbom(a store.Artefact) {
	b, ok := v.read(a.Name)
	if !ok {
		return
	}
	d, err := sbom.Parse(b)
	if err != nil {
		v.problem(a.Name, "%v", err)
		return
	}
	files, inputs := map[string]string{}, map[string]string{}
	for _, other := range v.manifest.Artefacts {
		if other.Role != a.Role || !other.Format.Carries() {
			continue
		}
		files[other.Name] = other.SHA256
		for _, in := range other.Inputs {
			inputs[string(in.ID)] = in.SHA256
		}
	}
	v.compare(a.Name, "the files it describes", d.Artefacts(), files)
	v.compare(a.Name, "the inputs it lists", d.Inputs(), inputs)
}

// compare finds names that one side lacks and digests that differ.
func (v *verifier) compare(file, what string, got, want map[string]string) {
	var wrong []string
	for name := range want {
		if got[name] != want[name] {
			wrong = append(wrong, name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			wrong = append(wrong, name)
		}
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		v.problem(file, "%s and the files here differ in %s", what, strings.Join(wrong, ", "))
	}
}

func byName(all []provenance.Resource) map[string]string {
	out := map[string]string{}
	for _, r := range all {
		out[r.Name] = r.Digest.SHA256
	}
	return out
}
