// Package diff says what changed between two builds: versions, inputs, software,
// extensions, kernel arguments, and what Ignition writes. It compares documents
// that lie beside the artefacts, and reads no image.
package diff

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/provenance"
	"github.com/imagectl/imagectl/images/sbom"
	"github.com/imagectl/imagectl/images/store"
)

// Build is one side of a comparison.
type Build struct {
	Manifest store.Manifest
	// Provenance is nil when none lies beside the manifest.
	Provenance *provenance.Statement
	// Roles by name; the installer's is empty.
	Roles map[string]Role
}

// Role is what the documents of one role say.
type Role struct {
	Bill sbom.Document
	// ConfigIgn and GrubCfg are nil for the installer.
	ConfigIgn, GrubCfg []byte
}

// Kind is what sort of thing changed.
type Kind string

// The kinds, in the order in which they are told.
const (
	Version   Kind = "version"
	Program   Kind = "program"
	Source    Kind = "source"
	RoleKind  Kind = "role"
	Input     Kind = "input"
	Extension Kind = "extension"
	Package   Kind = "package"
	KernelArg Kind = "kernel argument"
	Boot      Kind = "boot script"
	Unit      Kind = "unit"
	File      Kind = "file"
	Link      Kind = "link"
	Directory Kind = "directory"
	User      Kind = "user"
	Artefact  Kind = "artefact"
)

func kinds() []Kind {
	return []Kind{Version, Program, Source, RoleKind, Input, Extension, Package, KernelArg, Boot, Unit, File, Link, Directory, User, Artefact}
}

// Change is one difference. From is empty for what was added, To for what was
// removed.
type Change struct {
	// Role is empty for what concerns all of the build, and for the installer.
	Role string `json:"role"`
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// Lines are those of a text that changed, each after its mark: a space, a minus
	// or a plus; @@ begins a place. There are at most MaxLines, the last of them says
	// how many were left out.
	Lines []string `json:"lines,omitempty"`
}

// String is the change in words.
func (c Change) String() string {
	what := string(c.Kind) + " " + c.Name
	switch {
	case c.From == "" && c.To == present:
		return what + " added"
	case c.From == "":
		return what + " added: " + c.To
	case c.To == "" && c.From == present:
		return what + " removed"
	case c.To == "":
		return what + " removed, it was " + c.From
	}
	return what + " changed from " + c.From + " to " + c.To
}

// present describes what has no properties.
const present = "present"

// Compare lists what is different in b, sorted by role, kind and name.
func Compare(a, b Build) ([]Change, error) {
	var d differ
	d.compare("", Version, words{"cluster": a.Manifest.Cluster, "flatcar": a.Manifest.Flatcar, "kubernetes": a.Manifest.Kubernetes},
		words{"cluster": b.Manifest.Cluster, "flatcar": b.Manifest.Flatcar, "kubernetes": b.Manifest.Kubernetes})
	if a.Provenance != nil && b.Provenance != nil {
		d.compare("", Program, program(a.Provenance), program(b.Provenance))
		d.compare("", Source, sources(a.Provenance), sources(b.Provenance))
	}
	was, is := words{}, words{}
	for name := range a.Roles {
		was[name] = present
	}
	for name := range b.Roles {
		is[name] = present
	}
	d.compare("", RoleKind, was, is)
	for name := range was {
		if _, both := is[name]; !both {
			continue
		}
		d.compare(name, Input, inputs(a.Manifest, name, Input), inputs(b.Manifest, name, Input))
		d.compare(name, Extension, inputs(a.Manifest, name, Extension), inputs(b.Manifest, name, Extension))
		d.compare(name, Artefact, artefacts(a.Manifest, name), artefacts(b.Manifest, name))
		x, y := a.Roles[name], b.Roles[name]
		d.compare(name, Package, packages(x.Bill), packages(y.Bill))
		d.compare(name, KernelArg, kernelArgs(x.GrubCfg), kernelArgs(y.GrubCfg))
		d.compareTexts(name, Boot, bootScript(x.GrubCfg), bootScript(y.GrubCfg))
		from, err := ignition(x.ConfigIgn)
		if err != nil {
			return nil, fmt.Errorf("reading config.ign of %s: %w", name, err)
		}
		to, err := ignition(y.ConfigIgn)
		if err != nil {
			return nil, fmt.Errorf("reading config.ign of %s: %w", name, err)
		}
		for _, k := range []Kind{Unit, File} {
			d.compareTexts(name, k, from.texts[k], to.texts[k])
		}
		for _, k := range []Kind{Link, Directory, User} {
			d.compare(name, k, from.words[k], to.words[k])
		}
	}
	order := kinds()
	slices.SortFunc(d.changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), slices.Index(order, a.Kind)-slices.Index(order, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return d.changes, nil
}

// OnlyProgram tells whether imagectl itself is another one, and all else that
// changed are artefacts, which follow from it.
func OnlyProgram(changes []Change) bool {
	other := slices.ContainsFunc(changes, func(c Change) bool { return c.Kind != Program && c.Kind != Artefact })
	return !other && slices.ContainsFunc(changes, func(c Change) bool { return c.Kind == Program })
}

// words describe things by name.
type words map[string]string

// text is a thing that lines may tell more of than words.
type text struct {
	words   string
	content []byte
}

// texts are things by name.
type texts map[string]text

func (t texts) words() words {
	out := words{}
	for name, x := range t {
		out[name] = x.words
	}
	return out
}

type differ struct{ changes []Change }

func (d *differ) compare(role string, kind Kind, a, b words) {
	for name := range maps.Keys(a) {
		if a[name] != b[name] {
			d.changes = append(d.changes, Change{Role: role, Kind: kind, Name: name, From: a[name], To: b[name]})
		}
	}
	for name := range maps.Keys(b) {
		if _, both := a[name]; !both {
			d.changes = append(d.changes, Change{Role: role, Kind: kind, Name: name, To: b[name]})
		}
	}
}

func (d *differ) compareTexts(role string, kind Kind, a, b texts) {
	first := len(d.changes)
	d.compare(role, kind, a.words(), b.words())
	for i, c := range d.changes[first:] {
		if c.From != "" && c.To != "" {
			d.changes[first+i].Lines = lines(a[c.Name].content, b[c.Name].content)
		}
	}
}

// program is what built.
func program(s *provenance.Statement) words {
	return words{"imagectl": s.Version() + ", sha256 " + short(s.Program())}
}

// sources are the files that decided what was built.
func sources(s *provenance.Statement) words {
	out := words{}
	for _, r := range s.Sources() {
		out[r.Name] = "sha256 " + short(r.Digest.SHA256)
	}
	return out
}

// inputs are the locked inputs of a role's artefacts. What was rendered is
// compared by its content instead.
func inputs(m store.Manifest, role string, kind Kind) words {
	out := words{}
	for _, a := range m.Artefacts {
		if a.Role != role || !a.Format.Carries() {
			continue
		}
		for _, i := range a.Inputs {
			name, extension := strings.CutPrefix(string(i.ID), lock.ExtensionPrefix)
			if strings.HasPrefix(name, "rendered/") || extension != (kind == Extension) {
				continue
			}
			out[name] = "sha256 " + short(i.SHA256)
		}
	}
	return out
}

// artefacts go by format, since their names hold versions.
func artefacts(m store.Manifest, role string) words {
	out := words{}
	for _, a := range m.Artefacts {
		if a.Role == role && a.Format.Carries() {
			kind := string(a.Format)
			if a.Extension != "" {
				kind += " " + a.Extension
			}
			out[kind] = fmt.Sprintf("%s, %d bytes, sha256 %s", a.Name, a.Size, short(a.SHA256))
		}
	}
	return out
}

// packages are versions by name; a name may be there in several.
func packages(d sbom.Document) words {
	versions := map[string][]string{}
	for _, p := range d.Software() {
		versions[p.Name] = append(versions[p.Name], cmp.Or(p.Version, "(no version)"))
	}
	out := words{}
	for name, v := range versions {
		slices.Sort(v)
		out[name] = strings.Join(slices.Compact(v), ", ")
	}
	return out
}

// kernelArgs reads the one form of grub.cfg that there is.
func kernelArgs(grubCfg []byte) words {
	out := words{}
	for line := range strings.Lines(string(grubCfg)) {
		args, ok := strings.CutPrefix(strings.TrimSpace(line), `set linux_append="`)
		if !ok {
			continue
		}
		for _, arg := range strings.Fields(strings.TrimSuffix(args, `"`)) {
			out[arg] = present
		}
	}
	return out
}

// bootScript is what else grub.cfg does.
func bootScript(grubCfg []byte) texts {
	var rest []byte
	for line := range bytes.Lines(grubCfg) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte(`set linux_append="`)) {
			rest = append(rest, line...)
		}
	}
	if len(rest) == 0 {
		return nil
	}
	return texts{"grub.cfg": {bytesIn(rest), rest}}
}

// short is enough of a digest to tell two apart.
func short(digest string) string { return digest[:min(16, len(digest))] }
