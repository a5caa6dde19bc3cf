// Package glance keeps images in OpenStack's image service by its API v2, as an
// ordinary member of a project.
//
// A version is an image. The current one of a family is called NAME, is visible
// and protected; the others are called NAME_VERSION and are hidden: they start by
// their ID. Which one is current is said by a number that each image bears
// (upload.Turned), since OpenStack has no name that points to an image.
//
// An image's ID is made from its digest, so that one of two uploads at once makes
// it and the other finds it, and only one can send: Glance lets data into an image
// while it is queued. A transfer that breaks off puts it back to queued; it begins
// again, with the same image. Glance computes SHA-512 over what arrives, and that is
// compared.
//
// Calls and answers are those of the image API v2 as its documentation and sources
// have them; package tests have a stand-in.
package glance

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// Method is how the bytes get to Glance.
type Method string

// The methods.
const (
	// Put sends them into the image.
	Put Method = "put"
	// Direct sends them to Glance's staging, from where its import plug-ins (a change
	// of format, for instance) take them.
	Direct Method = "glance-direct"
	// Download lets Glance fetch them from here. By default it fetches from port 80
	// and 443 only.
	Download Method = "web-download"
)

// Config is where the images go and what they say of machines. Auth, Client, Wait, Mark
// and Now are needed.
type Config struct {
	Auth gophercloud.AuthOptions
	// Endpoint chooses among the endpoints of the image service in the catalogue.
	Endpoint gophercloud.EndpointOpts
	// Insecure accepts http:// to another machine, for Keystone or for the address of
	// the image service in its catalogue.
	Insecure bool
	// Method; empty for Put.
	Method Method
	// Source is for Download only.
	Source upload.Source
	// Visibility is private, shared, community or public; empty for private. Public
	// is for administrators, mostly.
	Visibility string
	// Properties are those by which Nova makes machines, such as hw_firmware_type.
	Properties map[string]string
	// Client carries the requests. It has no time limit.
	Client *http.Client
	// Wait passes the time between two questions about the same thing.
	Wait func(ctx context.Context) error
	// Mark makes a text that nobody else has, which tells whose broken upload an
	// image is.
	Mark func() string
	// Now is the clock, which tells a broken upload from one that is going on.
	Now func() time.Time
}

// abandoned is how long an image may be without data before it is called broken.
const abandoned = 24 * time.Hour

// Target is an image service. It may be used by several goroutines.
type Target struct {
	conf Config

	mu sync.Mutex
	// service is nil until Keystone has let us in.
	service *gophercloud.ServiceClient
	project string
}

// New connects to nothing yet.
func New(c Config) (*Target, error) {
	switch c.Method {
	case "":
		c.Method = Put
	case Put, Direct, Download:
	default:
		return nil, fmt.Errorf("reading the method %q: want %s, %s or %s", c.Method, Put, Direct, Download)
	}
	switch c.Visibility {
	case "":
		c.Visibility = "private"
	case "private", "shared", "community", "public":
	default:
		return nil, fmt.Errorf("reading the visibility %q: want private, shared, community or public", c.Visibility)
	}
	// A token lives for an hour or less, an upload may be longer.
	// One that was given cannot be had again.
	c.Auth.AllowReauth = c.Auth.TokenID == ""
	return &Target{conf: c}, nil
}

// Formats that Nova starts machines from. On Ceph a raw image is cloned and a qcow2
// is converted for each machine.
func (t *Target) Formats() []store.Format { return []store.Format{store.QCOW2, store.Raw} }

// connect asks Keystone for a token and the image service's address, once.
func (t *Target) connect(ctx context.Context) (*gophercloud.ServiceClient, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.service != nil {
		return t.service, t.project, nil
	}
	if err := t.safe(t.conf.Auth.IdentityEndpoint); err != nil {
		return nil, "", err
	}
	provider, err := openstack.NewClient(t.conf.Auth.IdentityEndpoint)
	if err != nil {
		return nil, "", fmt.Errorf("reading the address of Keystone: %w", err)
	}
	provider.HTTPClient = *t.conf.Client
	provider.UserAgent.Prepend("imagectl")
	if err := openstack.Authenticate(ctx, provider, t.conf.Auth); err != nil {
		return nil, "", failed(ctx, "asking Keystone for a token", err)
	}
	// Not by the library: it asks the service for its versions, and so would send the
	// token before the address is looked at.
	project, address, err := t.choose(provider.GetAuthResult())
	if err != nil {
		return nil, "", err
	}
	if err := t.safe(address); err != nil {
		return nil, "", err
	}
	t.project = project
	t.service = &gophercloud.ServiceClient{ProviderClient: provider, Type: "image", Endpoint: address, ResourceBase: address + "v2/"}
	return t.service, project, nil
}

// choose reads what Keystone answered: which project the token is for, and where the
// image service is, with a slash and without a version at its end.
func (t *Target) choose(answer gophercloud.AuthResult) (project, address string, err error) {
	r, ok := answer.(tokens.CreateResult)
	if !ok {
		return "", "", fmt.Errorf("asking Keystone for a token: %w: it gave none of its version 3, but a %T", upload.ErrServer, answer)
	}
	p, err := r.ExtractProject()
	if err != nil {
		return "", "", fmt.Errorf("reading Keystone's token: %w: %w", upload.ErrServer, err)
	}
	if p == nil {
		return "", "", fmt.Errorf("asking Keystone for a token: %w: it is for no project; name one, or use an application credential", upload.ErrAuth)
	}
	catalog, err := r.ExtractServiceCatalog()
	if err != nil {
		return "", "", fmt.Errorf("reading Keystone's catalogue: %w: %w", upload.ErrServer, err)
	}
	access, region := string(cmp.Or(t.conf.Endpoint.Availability, gophercloud.AvailabilityPublic)), t.conf.Endpoint.Region
	for _, s := range catalog.Entries {
		for _, e := range s.Endpoints {
			if s.Type == "image" && e.Interface == access && (region == "" || e.Region == region || e.RegionID == region) {
				return p.ID, strings.TrimSuffix(strings.TrimRight(e.URL, "/"), "/v2") + "/", nil
			}
		}
	}
	return "", "", fmt.Errorf("looking for the image service in Keystone's catalogue: %w: it has none for the region %q and the interface %s", upload.ErrNotFound, region, access)
}

// safe refuses an address to which a secret would go readable by anybody on the way.
func (t *Target) safe(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("reading the address %q: %w", address, err)
	}
	a, err := netip.ParseAddr(u.Hostname())
	if u.Scheme == "https" || t.conf.Insecure || u.Hostname() == "localhost" || err == nil && a.IsLoopback() {
		return nil
	}
	return fmt.Errorf("connecting to %s: %w: the credentials would go there readable by anybody on the way; use https, or say insecure: true", address, upload.ErrAuth)
}
