package sbom

// Document is an SPDX 2.3 document, as far as we write and merge it. Names in
// JSON are the specification's (spdx-spec v2.3, schemas/spdx-schema.json).
type Document struct {
	SPDXVersion  string         `json:"spdxVersion"`
	DataLicense  string         `json:"dataLicense"`
	SPDXID       string         `json:"SPDXID"`
	Name         string         `json:"name"`
	Namespace    string         `json:"documentNamespace"`
	CreationInfo CreationInfo   `json:"creationInfo"`
	Packages     []Package      `json:"packages"`
	Relations    []Relationship `json:"relationships"`
	Licenses     []License      `json:"hasExtractedLicensingInfos,omitempty"`
}

// CreationInfo says when and by what a document was made.
type CreationInfo struct {
	// Created is RFC 3339 UTC to the second.
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

// Package is anything that has a version and may be inside something else.
type Package struct {
	SPDXID           string        `json:"SPDXID"`
	Name             string        `json:"name"`
	Version          string        `json:"versionInfo,omitempty"`
	FileName         string        `json:"packageFileName,omitempty"`
	Supplier         string        `json:"supplier,omitempty"`
	Originator       string        `json:"originator,omitempty"`
	DownloadLocation string        `json:"downloadLocation"`
	FilesAnalyzed    bool          `json:"filesAnalyzed"`
	Checksums        []Checksum    `json:"checksums,omitempty"`
	Homepage         string        `json:"homepage,omitempty"`
	SourceInfo       string        `json:"sourceInfo,omitempty"`
	LicenseConcluded string        `json:"licenseConcluded,omitempty"`
	LicenseDeclared  string        `json:"licenseDeclared,omitempty"`
	Copyright        string        `json:"copyrightText,omitempty"`
	Comment          string        `json:"comment,omitempty"`
	Purpose          string        `json:"primaryPackagePurpose,omitempty"`
	ExternalRefs     []ExternalRef `json:"externalRefs,omitempty"`
}

// Checksum is a digest of a package's file.
type Checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

// ExternalRef points to a package in a catalogue: a purl, a CPE.
type ExternalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
	Comment  string `json:"comment,omitempty"`
}

// Relationship reads: Element Type Related.
type Relationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
	Comment string `json:"comment,omitempty"`
}

// License is a licence that is not on SPDX's list.
type License struct {
	ID      string   `json:"licenseId"`
	Text    string   `json:"extractedText"`
	Name    string   `json:"name,omitempty"`
	Comment string   `json:"comment,omitempty"`
	SeeAlso []string `json:"seeAlsos,omitempty"`
}

// SHA256 returns the package's digest, empty when it has none.
func (p Package) SHA256() string {
	for _, c := range p.Checksums {
		if c.Algorithm == "SHA256" {
			return c.Value
		}
	}
	return ""
}
