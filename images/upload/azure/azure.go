// Package azure makes versions of images in an Azure Compute Gallery.
//
// A fixed VHD goes page by page into an empty managed disk that waits for it
// (createOption Upload): no storage account is needed, and nothing is sent of what
// is zero. The gallery makes a version of the disk, which then goes. A family is an
// image definition; its stable name is the definition's ID, which Azure resolves to
// the highest version that is not excluded from "latest". So every version is made
// excluded, and Promote includes one and excludes the others.
//
// Of Azure's SDK nothing is used: its compute module is very large, and what is needed
// of it is twelve requests.
package azure

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// Config is where the images go and who we are. Either Tenant, ClientID and
// ClientSecret are needed, or Token; and all else but what says that it may be
// empty.
type Config struct {
	Subscription, ResourceGroup, Gallery, Location string
	// Tenant, ClientID and ClientSecret are a service principal's.
	Tenant, ClientID, ClientSecret string
	// Token is a ready bearer token for Endpoint, which lives about an hour.
	Token string
	// Endpoint and Login are those of Azure's public cloud when empty.
	Endpoint, Login string
	// Arch of the machines: x64 (so when empty) or Arm64.
	Arch      string
	Transport http.RoundTripper
	// Tries of each request before it has failed; 0 for 8, which take two minutes.
	Tries int
	// Wait returns after a while, or with the context's error.
	Wait func(ctx context.Context, d time.Duration) error
	Now  func() time.Time
}

const (
	defaultEndpoint = "https://management.azure.com"
	defaultLogin    = "https://login.microsoftonline.com"
	defaultTries    = 8
	// poll is between two looks at something that is under way.
	poll = 5 * time.Second
	// abandoned is how long a disk of ours lies still before it is broken.
	abandoned = 24 * time.Hour
)

// Target is a gallery. It may be used by several goroutines.
type Target struct {
	conf    Config
	manager rest.API
	pages   pages
}

// named is what a name in a path may be without being another path.
var named = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.()-]*$`)

// New connects to nothing yet.
func New(c Config) (*Target, error) {
	c.Endpoint, c.Login = strings.TrimRight(cmp.Or(c.Endpoint, defaultEndpoint), "/"), strings.TrimRight(cmp.Or(c.Login, defaultLogin), "/")
	c.Arch, c.Tries = cmp.Or(c.Arch, "x64"), cmp.Or(c.Tries, defaultTries)
	for _, f := range []struct{ what, value string }{
		{"subscription", c.Subscription}, {"resource group", c.ResourceGroup}, {"gallery", c.Gallery}, {"location", c.Location},
	} {
		if !named.MatchString(f.value) {
			return nil, fmt.Errorf("reading the %s %q: want a name", f.what, f.value)
		}
	}
	if c.Token == "" && (!named.MatchString(c.Tenant) || c.ClientID == "" || c.ClientSecret == "") {
		return nil, fmt.Errorf("reading who signs in to tenant %q: want a tenant, a client's ID and its secret, or a token", c.Tenant)
	}
	if c.Arch != "x64" && c.Arch != "Arm64" {
		return nil, fmt.Errorf("reading the architecture %q: want x64 or Arm64", c.Arch)
	}
	for _, s := range []string{c.Endpoint, c.Login} {
		if u, err := url.Parse(s); err != nil || u.Host == "" {
			return nil, fmt.Errorf("reading the endpoint %q: want http:// or https:// and a host", s)
		}
	}
	tokens := &rest.Tokens{Fetch: c.token}
	return &Target{
		conf:    c,
		manager: rest.API{Transport: c.Transport, Authorize: tokens.Authorize, Refusal: refusal, Again: again, Tries: c.Tries, Wait: c.Wait},
		pages:   pages{rest.API{Transport: c.Transport, Refusal: refusal, Again: again, Tries: c.Tries, Wait: c.Wait}},
	}, nil
}

// token signs in.
func (c Config) token(ctx context.Context) (*oauth2.Token, error) {
	if c.Token != "" {
		return &oauth2.Token{AccessToken: c.Token}, nil
	}
	principal := clientcredentials.Config{
		ClientID: c.ClientID, ClientSecret: c.ClientSecret, TokenURL: c.Login + "/" + c.Tenant + "/oauth2/v2.0/token",
		Scopes: []string{c.Endpoint + "/.default"}, AuthStyle: oauth2.AuthStyleInParams,
	}
	return principal.Token(context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: c.Transport}))
}

// Formats implements upload.Target.
func (t *Target) Formats() []store.Format { return []store.Format{store.VHD} }

// The API's versions, one for each of its parts.
const (
	apiDisks    = "2024-03-02"
	apiGallery  = "2023-07-03"
	apiMachines = "2024-07-01"
)

func (t *Target) group() string {
	return "/subscriptions/" + t.conf.Subscription + "/resourceGroups/" + t.conf.ResourceGroup
}

const compute = "/providers/Microsoft.Compute"

func (t *Target) diskPath(name string) string { return t.group() + compute + "/disks/" + name }

func (t *Target) galleryPath() string { return t.group() + compute + "/galleries/" + t.conf.Gallery }

func (t *Target) familyPath(name string) string { return t.galleryPath() + "/images/" + name }

func (t *Target) versionPath(name, number string) string {
	return t.familyPath(name) + "/versions/" + number
}
