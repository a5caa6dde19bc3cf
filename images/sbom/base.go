package sbom

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/lock"
)

// base merges the packages of the base image's document. Its files are left out:
// the base image is there by digest, and dm-verity guards each block of it.
func (w *writer) base(img Image) error {
	i := slices.IndexFunc(img.Inputs, func(in Input) bool { return in.ID == lock.FlatcarImage || in.ID == lock.FlatcarPXEInitrd })
	if i < 0 {
		return errors.New("a base image's SBOM is given without the base image")
	}
	root := inputPrefix + identifier(string(img.Inputs[i].ID))
	d, err := Parse(img.Base)
	if err != nil {
		return fmt.Errorf("reading the base image's SBOM: %w", err)
	}
	rename := map[string]string{}
	for _, p := range d.Packages {
		rename[p.SPDXID] = basePrefix + strings.TrimPrefix(p.SPDXID, "SPDXRef-")
	}
	inside := map[string]bool{}
	for _, r := range d.Relations {
		a, b := rename[r.Element], rename[r.Related]
		if a == "" || b == "" {
			continue
		}
		w.doc.Relations = append(w.doc.Relations, Relationship{Element: a, Type: r.Type, Related: b, Comment: r.Comment})
		inside[b] = inside[b] || r.Type == "CONTAINS" && a != b
	}
	for _, p := range d.Packages {
		p.SPDXID = rename[p.SPDXID]
		p.FilesAnalyzed = false
		w.add(p)
		if !inside[p.SPDXID] {
			w.relate(root, "CONTAINS", p.SPDXID)
		}
	}
	w.doc.Licenses = append(w.doc.Licenses, d.Licenses...)
	return nil
}

var identifierForm = regexp.MustCompile(`^SPDXRef-[A-Za-z0-9.-]+$`)

// check finds what would make a document ambiguous.
func (d Document) check() error {
	if d.SPDXVersion != "SPDX-2.3" && d.SPDXVersion != "SPDX-2.2" {
		return fmt.Errorf("it is of version %q, want SPDX-2.3 or SPDX-2.2", d.SPDXVersion)
	}
	seen := map[string]bool{documentID: true}
	for _, p := range d.Packages {
		if !identifierForm.MatchString(p.SPDXID) {
			return fmt.Errorf("%q is no SPDX identifier", p.SPDXID)
		}
		if seen[p.SPDXID] {
			return fmt.Errorf("two packages are called %s", p.SPDXID)
		}
		seen[p.SPDXID] = true
	}
	return nil
}
