package sbom

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Parse reads an SPDX document in JSON, ours or another tool's. Keys that it does
// not know are ignored, as other tools write more.
func Parse(b []byte) (Document, error) {
	var doc Document
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&doc); err != nil {
		return Document{}, fmt.Errorf("parsing SPDX: %w", err)
	}
	if d.More() {
		return Document{}, errors.New("parsing SPDX: there is more than one value")
	}
	if err := doc.check(); err != nil {
		return Document{}, fmt.Errorf("parsing SPDX: %w", err)
	}
	return doc, nil
}

// Artefacts are the files that a document of ours describes: digest by name.
func (d Document) Artefacts() map[string]string { return d.digests(artefactPrefix) }

// Inputs are the inputs that a document of ours lists: digest by ID.
func (d Document) Inputs() map[string]string { return d.digests(inputPrefix) }

func (d Document) digests(prefix string) map[string]string {
	out := map[string]string{}
	for _, p := range d.Packages {
		if strings.HasPrefix(p.SPDXID, prefix) {
			out[p.Name] = p.SHA256()
		}
	}
	return out
}

// Software are the packages that are neither an artefact, nor an input, nor the
// image itself: programs, modules and what the base image lists.
func (d Document) Software() []Package {
	var out []Package
	for _, p := range d.Packages {
		switch {
		case p.SPDXID == imageID, strings.HasPrefix(p.SPDXID, artefactPrefix), strings.HasPrefix(p.SPDXID, inputPrefix):
		default:
			out = append(out, p)
		}
	}
	return out
}
