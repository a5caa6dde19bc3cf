// Package sbom writes the software bill of materials of an image as SPDX 2.3 in
// JSON: the files it is shipped in, every locked input by digest, the Go programs
// in them with all modules linked in, and, where the base image's own SBOM is
// given, what that lists. The same image gives the same bytes.
//
//	DOCUMENT describes each artefact file; each contains the image;
//	the image contains its inputs; an input contains programs, and the base
//	contains its packages; a program statically links modules.
package sbom

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/inventory"
	"github.com/imagectl/imagectl/images/lock"
)

// Suffix ends an SBOM's file name.
const Suffix = ".spdx.json"

// Prefixes of SPDX identifiers that say what a package is.
const (
	documentID     = "SPDXRef-DOCUMENT"
	imageID        = "SPDXRef-Image"
	artefactPrefix = "SPDXRef-Artefact-"
	inputPrefix    = "SPDXRef-Input-"
	programPrefix  = "SPDXRef-Program-"
	modulePrefix   = "SPDXRef-Go-"
	basePrefix     = "SPDXRef-Base-"
)

const noAssertion = "NOASSERTION"

// Image is what a document describes.
type Image struct {
	// Name and Version of the image, such as demo-worker and 4593.2.5-v1.36.3.
	Name, Version string
	// Created stands in the document as its time. It is an argument so that equal
	// images have equal documents: take the release's signing time.
	Created time.Time
	// Artefacts are the files that carry the image.
	Artefacts []Artefact
	Inputs    []Input
	// Base is the SPDX JSON document of the base image, nil when there is none.
	Base []byte
}

// Artefact is a file by digest.
type Artefact struct{ Name, SHA256 string }

// Input is something that went into the image. Of what was rendered rather than
// locked, only ID and SHA256 are set.
type Input struct {
	lock.Blob
	// Version is empty when it is not known.
	Version string
	// List is what lies inside it.
	inventory.List
}

// Encode writes the document.
func Encode(img Image) ([]byte, error) {
	d, err := document(img)
	if err != nil {
		return nil, fmt.Errorf("writing the SBOM of %s: %w", img.Name, err)
	}
	content, err := encode(d)
	if err != nil {
		return nil, fmt.Errorf("writing the SBOM of %s: %w", img.Name, err)
	}
	// A namespace is unique to one document; so is its content.
	d.Namespace = "https://github.com/imagectl/imagectl/spdx/" + url.PathEscape(img.Name) + "-" + hexSum(content)
	return encode(d)
}

func encode(d Document) ([]byte, error) {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(d)
	return buf.Bytes(), err
}

func document(img Image) (Document, error) {
	d := Document{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: documentID, Name: img.Name + "-" + img.Version,
		CreationInfo: CreationInfo{Created: img.Created.UTC().Format("2006-01-02T15:04:05Z"), Creators: []string{"Tool: imagectl"}},
	}
	w := writer{doc: &d, modules: map[string]bool{}}
	for _, a := range img.Artefacts {
		id := artefactPrefix + identifier(a.Name)
		w.add(Package{SPDXID: id, Name: a.Name, FileName: a.Name, Checksums: sha256Sum(a.SHA256), Purpose: "FILE"})
		w.relate(documentID, "DESCRIBES", id)
		w.relate(id, "CONTAINS", imageID)
	}
	w.add(Package{SPDXID: imageID, Name: img.Name, Version: img.Version, Purpose: "OPERATING-SYSTEM"})
	for _, in := range img.Inputs {
		w.input(in)
	}
	if img.Base != nil {
		if err := w.base(img); err != nil {
			return Document{}, err
		}
	}
	w.sort()
	return d, nil
}

type writer struct {
	doc     *Document
	modules map[string]bool
}

func (w *writer) add(p Package) {
	p.DownloadLocation = cmp.Or(p.DownloadLocation, noAssertion)
	p.LicenseConcluded = cmp.Or(p.LicenseConcluded, noAssertion)
	p.LicenseDeclared = cmp.Or(p.LicenseDeclared, noAssertion)
	p.Copyright = cmp.Or(p.Copyright, noAssertion)
	w.doc.Packages = append(w.doc.Packages, p)
}

func (w *writer) relate(a, how, b string) {
	w.doc.Relations = append(w.doc.Relations, Relationship{Element: a, Type: how, Related: b})
}

func (w *writer) input(in Input) {
	id := inputPrefix + identifier(string(in.ID))
	p := Package{SPDXID: id, Name: string(in.ID), Version: in.Version, Checksums: sha256Sum(in.SHA256), Purpose: "FILE"}
	if p.Version != "" {
		p.ExternalRefs = purl("generic", string(in.ID), in.Version, "?checksum=sha256:"+in.SHA256)
	}
	switch {
	case strings.HasPrefix(in.Source, "https://") || strings.HasPrefix(in.Source, "http://"):
		p.DownloadLocation = in.Source
	case in.Source != "":
		p.SourceInfo = "found at " + in.Source + ", seen from cluster.yaml"
	case in.Blob.Size == 0:
		p.SourceInfo = "rendered from cluster.yaml"
	}
	if s := in.Signer; s != nil {
		p.Comment = fmt.Sprintf("OpenPGP signature by subkey %s of %s, made at %s, checked when it was locked", s.Subkey, s.Primary, s.SignedAt)
	}
	if in.Unread != "" {
		p.Comment = strings.TrimPrefix(p.Comment+"; ", "; ") + "what lies inside is not listed: " + in.Unread
	}
	w.add(p)
	w.relate(imageID, "CONTAINS", id)
	for _, prog := range in.Programs {
		w.program(id, in, prog)
	}
}

func (w *writer) program(input string, in Input, prog inventory.Program) {
	id := programPrefix + identifier(string(in.ID)+" "+prog.Path+" "+prog.Package)
	version := prog.Main.Version
	if version == "" || version == "(devel)" {
		version = in.Version
	}
	p := Package{SPDXID: id, Name: cmp.Or(prog.Package, prog.Main.Path), Version: version, FileName: prog.Path, Purpose: "APPLICATION"}
	if version != "" && (version == prog.Main.Version || released(prog.Main.Path)) {
		p.ExternalRefs = purl("golang", prog.Main.Path, version, "")
	}
	w.add(p)
	w.relate(input, "CONTAINS", id)
	// What follows a space are experiments: "go1.26.0 X:…".
	toolchain, _, _ := strings.Cut(strings.TrimPrefix(prog.Go, "go"), " ")
	for _, m := range append([]inventory.Module{{Path: "stdlib", Version: toolchain}}, prog.Modules...) {
		w.relate(id, "STATIC_LINK", w.module(m))
	}
}

// released tells whether a module that was built from a working tree has the
// version of the input that it is in. Kubernetes and etcd build their releases so.
func released(module string) bool {
	return module == "k8s.io/kubernetes" || strings.HasPrefix(module, "go.etcd.io/etcd/")
}

// module adds a Go module once.
func (w *writer) module(m inventory.Module) string {
	id := modulePrefix + identifier(m.Path+" "+m.Version)
	if !w.modules[id] {
		w.modules[id] = true
		p := Package{SPDXID: id, Name: m.Path, Version: m.Version, Purpose: "LIBRARY"}
		if m.Version != "" {
			p.ExternalRefs = purl("golang", m.Path, m.Version, "")
		}
		w.add(p)
	}
	return id
}

// sort makes the order independent of the order of arguments.
func (w *writer) sort() {
	slices.SortFunc(w.doc.Packages, func(a, b Package) int { return cmp.Compare(a.SPDXID, b.SPDXID) })
	slices.SortFunc(w.doc.Relations, func(a, b Relationship) int {
		return cmp.Or(cmp.Compare(a.Element, b.Element), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Related, b.Related))
	})
	w.doc.Relations = slices.Compact(w.doc.Relations)
}

// purl is a package URL (purl-spec). The golang type wants lower case.
func purl(kind, name, version, qualifiers string) []ExternalRef {
	if kind == "golang" {
		name = strings.ToLower(name)
	}
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = escape(p)
	}
	return []ExternalRef{{Category: "PACKAGE-MANAGER", Type: "purl", Locator: "pkg:" + kind + "/" + strings.Join(parts, "/") + "@" + escape(version) + qualifiers}}
}

// escape is percent-encoding as purl-spec wants it; a space does not become +.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// identifier turns any text into what an SPDX identifier may hold: letters,
// digits, dots and dashes. A digest keeps apart what then looks the same.
func identifier(s string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		}
		return '-'
	}, s)
	return clean + "-" + hexSum([]byte(s))[:8]
}

func sha256Sum(digest string) []Checksum {
	return []Checksum{{Algorithm: "SHA256", Value: digest}}
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
