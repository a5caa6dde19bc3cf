// Package aws makes machine images (AMIs) on Amazon EC2 out of raw disks.
//
// The bytes go straight into a snapshot by the EBS direct API: no bucket, no import
// role, no conversion, and nothing is sent of what is zero. A version is an AMI
// NAME-VERSION with its snapshot, both with the audit record as tags; the family's
// stable name is the parameter PREFIX/NAME of Systems Manager, whose value is the
// AMI's ID and whose history says what was before.
//
// The three APIs are called by hand over Amazon's own signer: service/ec2 of the
// SDK is very large, and eleven calls are needed of it. Block checksums and their aggregation are as awslabs/coldsnap
// makes them.
package aws

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// Config is where the images go and who we are. Region, AccessKey, SecretKey,
// Transport, Wait and Now are needed.
type Config struct {
	Region string
	// Endpoint of all services; empty for Amazon's own of the region.
	Endpoint             string
	AccessKey, SecretKey string
	// SessionToken of temporary keys; empty for lasting ones.
	SessionToken string
	// Arch of the machines: x86_64 (so when empty) or arm64.
	Arch string
	// Prefix of the parameters' names; empty for /imagectl.
	Prefix    string
	Transport http.RoundTripper
	// Tries of each request before it has failed; 0 for 8, which take two minutes.
	Tries int
	// Wait returns after a while, or with the context's error.
	Wait func(ctx context.Context, d time.Duration) error
	Now  func() time.Time
}

const (
	defaultPrefix = "/imagectl"
	defaultTries  = 8
	// poll is between two looks at something that is under way.
	poll = 3 * time.Second
	// unseen is how many looks a new thing may be missing from Amazon's lists: they
	// know of it some seconds after it was made.
	unseen = 20
	// abandoned is how long a snapshot without AMI lies still before it is broken.
	abandoned = 24 * time.Hour
)

// Target is one region of an account. It may be used by several goroutines.
type Target struct {
	conf   Config
	keys   aws.Credentials
	signer *v4.Signer
}

var (
	regionName    = regexp.MustCompile(`^[a-z]{2,4}(-[a-z0-9]+)+-[0-9]+$`)
	parameterName = regexp.MustCompile(`^(/[A-Za-z0-9_.-]+)+$`)
)

// New connects to nothing yet.
func New(c Config) (*Target, error) {
	c.Arch, c.Prefix, c.Tries = cmp.Or(c.Arch, "x86_64"), cmp.Or(c.Prefix, defaultPrefix), cmp.Or(c.Tries, defaultTries)
	switch {
	case !regionName.MatchString(c.Region):
		return nil, fmt.Errorf("reading the region %q: want a name like eu-central-1", c.Region)
	case c.AccessKey == "" || c.SecretKey == "":
		return nil, fmt.Errorf("reading the keys for %s: access key or secret key is empty", c.Region)
	case c.Arch != "x86_64" && c.Arch != "arm64":
		return nil, fmt.Errorf("reading the architecture %q: want x86_64 or arm64", c.Arch)
	case !parameterName.MatchString(c.Prefix) || strings.HasPrefix(c.Prefix, "/aws") || strings.HasPrefix(c.Prefix, "/ssm"):
		return nil, fmt.Errorf("reading the prefix %q of parameters: want a path like %s, not below /aws or /ssm", c.Prefix, defaultPrefix)
	}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			return nil, fmt.Errorf("reading the endpoint %q: want http:// or https://, a host and no path", c.Endpoint)
		}
		c.Endpoint = strings.TrimRight(c.Endpoint, "/")
	}
	return &Target{
		conf:   c,
		keys:   aws.Credentials{AccessKeyID: c.AccessKey, SecretAccessKey: c.SecretKey, SessionToken: c.SessionToken},
		signer: v4.NewSigner(),
	}, nil
}

// Formats implements upload.Target: the blocks of a snapshot are the disk's.
func (t *Target) Formats() []store.Format { return []store.Format{store.Raw} }

// service is one of Amazon's, as its URL and signature name it.
type service string

const (
	ec2 service = "ec2"
	ebs service = "ebs"
	ssm service = "ssm"
)

func (t *Target) base(s service) string {
	if t.conf.Endpoint != "" {
		return t.conf.Endpoint
	}
	domain := "amazonaws.com"
	if strings.HasPrefix(t.conf.Region, "cn-") {
		domain += ".cn"
	}
	return fmt.Sprintf("https://%s.%s.%s", s, t.conf.Region, domain)
}

// call makes a call of a service.
func (t *Target) call(ctx context.Context, s service, path string, r rest.Request) (rest.Answer, error) {
	api := rest.API{
		Transport: t.conf.Transport, Tries: t.conf.Tries, Wait: t.conf.Wait, Refusal: refusal,
		Again: func(a rest.Answer) bool {
			// For some time after its beginning, a snapshot is not known where its blocks go.
			return again(a) || r.Method == http.MethodPut && codeOf(a) == "ResourceNotFoundException"
		},
		Authorize: func(ctx context.Context, r *http.Request, body []byte) error { return t.sign(ctx, s, r, body) },
	}
	r.URL = t.base(s) + path
	return api.Do(ctx, r)
}
