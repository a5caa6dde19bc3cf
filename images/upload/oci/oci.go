// Package oci keeps images in one repository of an OCI registry.
//
// A version is a manifest with the tag NAME_VERSION. As an artifact it is of the
// type application/vnd.imagectl.image.v1 with a layer per format, and the bill of
// materials and the provenance refer to it; as a containerDisk it is a container
// image that holds the disk, which is what KubeVirt starts and imports. The tag NAME
// is the current version, and NAME_previous the one before: Promote moves tags and
// no bytes. What is where is read from annotations, never from tags' names.
//
// Registries keep a file under its own digest and check it when it arrives, so a
// file that is there is not sent again, and there is nothing to clean up: what no
// manifest names is the registry's own garbage.
package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// Form is what a version is in the registry.
type Form string

// The forms.
const (
	Artifact      Form = "artifact"
	ContainerDisk Form = "containerdisk"
)

// Config is where the images go. Repository and Now are needed.
type Config struct {
	// Repository with its registry: registry.example.net/team/images.
	Repository string
	// Form; empty for Artifact.
	Form Form
	// Keychain finds credentials for the registry; nil for none. Username and
	// Password, where given, are used instead.
	Keychain           authn.Keychain
	Username, Password string
	// Plain allows HTTP. Without it a registry is never asked without TLS, whatever
	// its address.
	Plain bool
	// Transport carries the requests; nil for the library's own.
	Transport http.RoundTripper
	// Tries of each request before it has failed; 0 for 3, which take four seconds.
	Tries int
	// Pause is the time before the second try, and three times that before each that
	// follows; 0 for a second.
	Pause time.Duration
	// Now is the clock that says when a version came.
	Now func() time.Time
}

// Target is a repository. It may be used by several goroutines.
type Target struct {
	repo    name.Repository
	form    Form
	options []remote.Option
	now     func() time.Time
}

// New connects to nothing yet.
func New(c Config) (*Target, error) {
	options := []name.Option{name.StrictValidation}
	if c.Plain {
		options = append(options, name.Insecure)
	}
	repo, err := name.NewRepository(c.Repository, options...)
	if err != nil {
		return nil, fmt.Errorf("reading the repository %q: %w; want REGISTRY/PATH without a tag", c.Repository, err)
	}
	t := &Target{repo: repo, form: c.Form, now: c.Now}
	if t.form == "" {
		t.form = Artifact
	}
	if t.form != Artifact && t.form != ContainerDisk {
		return nil, fmt.Errorf("reading the form %q: want %s or %s", c.Form, Artifact, ContainerDisk)
	}
	if c.Transport == nil {
		c.Transport = remote.DefaultTransport
	}
	if !c.Plain {
		c.Transport = tlsOnly{c.Transport}
	}
	if c.Tries == 0 {
		c.Tries = 3
	}
	t.options = []remote.Option{
		remote.WithTransport(c.Transport),
		remote.WithUserAgent("imagectl"),
		remote.WithRetryBackoff(remote.Backoff{Duration: cmp.Or(c.Pause, time.Second), Factor: 3, Jitter: 0.1, Steps: c.Tries}),
	}
	switch {
	case c.Username != "" || c.Password != "":
		t.options = append(t.options, remote.WithAuth(&authn.Basic{Username: c.Username, Password: c.Password}))
	case c.Keychain != nil:
		t.options = append(t.options, remote.WithAuthFromKeychain(keychain{c.Keychain}))
	}
	return t, nil
}

var errPlain = errors.New("the registry is to be asked without TLS; say insecure: true if that is meant")

// tlsOnly refuses what the library tries for registries on private addresses.
type tlsOnly struct{ next http.RoundTripper }

func (o tlsOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("%w: %s", errPlain, r.URL.Host)
	}
	return o.next.RoundTrip(r)
}

// once is the target for one call of upload.Target: the registry is asked for its
// way of authentication once, and not for every request.
func (t *Target) once() (*Target, error) {
	pull, err := remote.NewPuller(t.options...)
	if err != nil {
		return nil, fmt.Errorf("preparing to read %s: %w", t.repo.Name(), err)
	}
	push, err := remote.NewPusher(t.options...)
	if err != nil {
		return nil, fmt.Errorf("preparing to write %s: %w", t.repo.Name(), err)
	}
	one := *t
	one.options = append(slices.Clone(t.options), remote.Reuse(pull), remote.Reuse(push))
	return &one, nil
}

// with are the options of one request.
func (t *Target) with(ctx context.Context, more ...remote.Option) []remote.Option {
	all := append([]remote.Option{remote.WithContext(ctx)}, t.options...)
	return append(all, more...)
}

// Formats that the form can hold: KubeVirt reads qcow2.
func (t *Target) Formats() []store.Format {
	if t.form == ContainerDisk {
		return []store.Format{store.QCOW2}
	}
	return []store.Format{store.QCOW2, store.RawZstd, store.QCOW2Zstd, store.VMDK, store.OVA, store.VHD, store.Raw}
}

// tagForm is OCI's.
var tagForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

func versionTag(name, version string) string { return name + "_" + version }

func currentTag(name string) string { return name }

func previousTag(name string) string { return name + "_previous" }

func (t *Target) id(name, version string) string {
	return t.repo.Tag(versionTag(name, version)).Name()
}

func checkNames(img upload.Image) error {
	for _, tag := range []string{versionTag(img.Name, img.Version), previousTag(img.Name)} {
		if !tagForm.MatchString(tag) || img.Version == "previous" {
			return fmt.Errorf("naming %q, version %q, in the registry: %q can be no tag; want letters, digits, dots and hyphens, 128 at most", img.Name, img.Version, tag)
		}
	}
	return nil
}
