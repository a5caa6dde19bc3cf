// Package provenance says what artefacts were made from and by what: an in-toto
// Statement v1 with a SLSA Provenance v1 predicate, in a DSSE envelope that a key
// of the operator's signs.
//
// It holds no time, no host's name and no invocation: the same inputs, built by
// the same program and signed by the same key, give the same bytes.
package provenance

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/lock"
)

// The identifiers inside a statement.
const (
	StatementType = "https://in-toto.io/Statement/v1"
	PredicateType = "https://slsa.dev/provenance/v1"
	// BuildType names the meaning of externalParameters and resolvedDependencies;
	// docs/evidence.md describes it.
	BuildType = "https://github.com/imagectl/imagectl/docs/evidence.md#build-type-v1"
	// BuilderID is the party that the statement's signer speaks for: whoever ran
	// imagectl build and holds the key.
	BuilderID = "https://github.com/imagectl/imagectl"

	// program is this program's name among versions and dependencies.
	program = "imagectl"
)

// Statement is an in-toto Statement (in-toto/attestation, spec/v1/statement.md).
type Statement struct {
	Type          string     `json:"_type"`
	Subject       []Resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     Predicate  `json:"predicate"`
}

// Resource is a ResourceDescriptor (spec/v1/resource_descriptor.md).
type Resource struct {
	Name        string            `json:"name,omitempty"`
	URI         string            `json:"uri,omitempty"`
	Digest      Digest            `json:"digest"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Digest is the only digest that we write.
type Digest struct {
	SHA256 string `json:"sha256"`
}

// Predicate is SLSA Provenance v1 (slsa.dev/spec/v1.0/provenance).
type Predicate struct {
	BuildDefinition BuildDefinition `json:"buildDefinition"`
	RunDetails      RunDetails      `json:"runDetails"`
}

// BuildDefinition is what was asked for and what went in.
type BuildDefinition struct {
	BuildType            string     `json:"buildType"`
	ExternalParameters   Parameters `json:"externalParameters"`
	ResolvedDependencies []Resource `json:"resolvedDependencies"`
}

// Parameters are what cluster.yaml names, for people; the digests of cluster.yaml
// and the lock file among the dependencies decide.
type Parameters struct {
	Cluster    string `json:"cluster"`
	Flatcar    string `json:"flatcar"`
	Kubernetes string `json:"kubernetes"`
}

// RunDetails says what built it.
type RunDetails struct {
	Builder Builder `json:"builder"`
}

// Builder is the program.
type Builder struct {
	ID                  string            `json:"id"`
	Version             map[string]string `json:"version"`
	BuilderDependencies []Resource        `json:"builderDependencies,omitempty"`
}

// Build is what a statement is made from.
type Build struct {
	Parameters
	// Subjects are what was built.
	Subjects []Resource
	// Files decide what is built: cluster.yaml, what it includes, the lock file.
	Files []Resource
	// Inputs are the locked inputs that went into the subjects.
	Inputs []lock.Blob
	// Version of imagectl, and the SHA-256 digest of the running program; empty
	// when it is not known.
	Version, Program string
}

// Encode makes a statement; equal builds give equal bytes.
func Encode(b Build) ([]byte, error) {
	s := Statement{Type: StatementType, PredicateType: PredicateType, Subject: slices.Clone(b.Subjects)}
	byName := func(a, b Resource) int { return cmp.Compare(a.Name, b.Name) }
	slices.SortFunc(s.Subject, byName)
	deps := slices.Clone(b.Files)
	for _, in := range b.Inputs {
		deps = append(deps, resource(in))
	}
	slices.SortFunc(deps, byName)
	s.Predicate = Predicate{
		BuildDefinition: BuildDefinition{BuildType: BuildType, ExternalParameters: b.Parameters, ResolvedDependencies: deps},
		RunDetails: RunDetails{Builder: Builder{
			ID: BuilderID, Version: map[string]string{program: b.Version},
		}},
	}
	if b.Program != "" {
		s.Predicate.RunDetails.Builder.BuilderDependencies = []Resource{{Name: program, Digest: Digest{SHA256: b.Program}}}
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("encoding provenance: %w", err)
	}
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(s); err != nil {
		return nil, fmt.Errorf("encoding provenance: %w", err)
	}
	return buf.Bytes(), nil
}

// Version of the imagectl that built the subjects; empty when it is not known.
func (s Statement) Version() string { return s.Predicate.RunDetails.Builder.Version[program] }

// Program is the SHA-256 digest of the imagectl that built the subjects; empty
// when it is not known.
func (s Statement) Program() string {
	for _, r := range s.Predicate.RunDetails.Builder.BuilderDependencies {
		if r.Name == program {
			return r.Digest.SHA256
		}
	}
	return ""
}

// Sources are the dependencies that are Build's Files: a locked input says where
// it is from, a file does not.
func (s Statement) Sources() []Resource {
	var out []Resource
	for _, r := range s.Predicate.BuildDefinition.ResolvedDependencies {
		if r.URI == "" && len(r.Annotations) == 0 {
			out = append(out, r)
		}
	}
	return out
}

func resource(b lock.Blob) Resource {
	r := Resource{Name: string(b.ID), Digest: Digest{SHA256: b.SHA256}, Annotations: map[string]string{}}
	if strings.HasPrefix(b.Source, "https://") || strings.HasPrefix(b.Source, "http://") {
		r.URI = b.Source
	} else {
		r.Annotations["source"] = b.Source
	}
	if s := b.Signer; s != nil {
		r.Annotations["signedBy"], r.Annotations["subkey"], r.Annotations["signedAt"] = s.Primary, s.Subkey, s.SignedAt
	}
	return r
}

// Parse reads a statement. What it says counts only as far as its envelope's
// signature does.
func Parse(b []byte) (Statement, error) {
	var s Statement
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&s); err != nil {
		return Statement{}, fmt.Errorf("parsing provenance: %w", err)
	}
	if d.More() {
		return Statement{}, errors.New("parsing provenance: there is more than one value")
	}
	if err := s.check(); err != nil {
		return Statement{}, fmt.Errorf("parsing provenance: %w", err)
	}
	return s, nil
}

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (s Statement) check() error {
	if s.Type != StatementType {
		return fmt.Errorf("its type is %q, want %s", s.Type, StatementType)
	}
	if s.PredicateType != PredicateType {
		return fmt.Errorf("its predicate is %q, want %s", s.PredicateType, PredicateType)
	}
	if t := s.Predicate.BuildDefinition.BuildType; t != BuildType {
		return fmt.Errorf("its build type is %q, want %s", t, BuildType)
	}
	if len(s.Subject) == 0 {
		return errors.New("it has no subject")
	}
	for _, r := range slices.Concat(s.Subject, s.Predicate.BuildDefinition.ResolvedDependencies) {
		if r.Name == "" || !digestForm.MatchString(r.Digest.SHA256) {
			return fmt.Errorf("%q has sha256 %q: every resource needs a name and a digest", r.Name, r.Digest.SHA256)
		}
	}
	return nil
}
