// Package gcp makes images on Google Compute Engine.
//
// Compute Engine reads an image from a file in a bucket: disk.raw in a tar.gz. The
// file is made while it is sent, in chunks that a broken upload goes on from, and
// goes when the image is there. A version is an image NAME-VERSION with the audit
// record in its description; the family's stable name is the image family NAME,
// which Compute Engine resolves to the newest image in it that is not deprecated.
// So an image joins its family only when it is promoted, and what was current
// before is deprecated then.
//
// Of Google's libraries only the one that signs in is used: what is needed of the
// two APIs is fifteen requests.
package gcp

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/jwt"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// Config is where the images go and who we are. Project, Bucket, Credentials,
// Transport, Wait and Now are needed.
type Config struct {
	Project string
	// Bucket is where the file lies for the length of an upload.
	Bucket string
	// Location is where images are kept, europe-west3 or eu; empty for the multi-region
	// next to the bucket.
	Location string
	// Credentials are a service account's key file, or a ready bearer token, which
	// lives about an hour.
	Credentials string
	// Endpoint of both APIs; empty for Google's own.
	Endpoint string
	// Arch of the machines: X86_64 (so when empty) or ARM64.
	Arch      string
	Transport http.RoundTripper
	// Tries of each request before it has failed; 0 for 8, which take two minutes.
	Tries int
	// ChunkSize in bytes, a multiple of 256 KiB; 0 for 4 MiB.
	ChunkSize int
	// Wait returns after a while, or with the context's error.
	Wait func(ctx context.Context, d time.Duration) error
	Now  func() time.Time
}

const (
	defaultCompute = "https://compute.googleapis.com"
	defaultStorage = "https://storage.googleapis.com"
	// scope: Compute Engine reads the bucket in our name.
	scope        = "https://www.googleapis.com/auth/cloud-platform"
	defaultTries = 8
	defaultChunk = 4 << 20
	chunkUnit    = 256 << 10
	// poll is between two looks at something that is under way.
	poll = 3 * time.Second
	// abandoned is how long a file of ours lies still before it is broken.
	abandoned = 24 * time.Hour
)

// Target is a project. It may be used by several goroutines.
type Target struct {
	conf             Config
	api              rest.API
	compute, storage string
	// unit is diskUnit; less in tests, which pack many disks.
	unit int64
}

var (
	projectName = regexp.MustCompile(`^[a-z0-9.:-]+$`)
	bucketName  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)
)

// New connects to nothing yet.
func New(c Config) (*Target, error) {
	c.Arch, c.Tries, c.ChunkSize = cmp.Or(c.Arch, "X86_64"), cmp.Or(c.Tries, defaultTries), cmp.Or(c.ChunkSize, defaultChunk)
	switch {
	case !projectName.MatchString(c.Project):
		return nil, fmt.Errorf("reading the project %q: want a project's ID", c.Project)
	case !bucketName.MatchString(c.Bucket):
		return nil, fmt.Errorf("reading the bucket %q: want a bucket's name", c.Bucket)
	case c.Arch != "X86_64" && c.Arch != "ARM64":
		return nil, fmt.Errorf("reading the architecture %q: want X86_64 or ARM64", c.Arch)
	case c.ChunkSize%chunkUnit != 0:
		return nil, fmt.Errorf("reading the size %d of chunks: want a multiple of %d", c.ChunkSize, chunkUnit)
	}
	fetch, err := signIn(c)
	if err != nil {
		return nil, err
	}
	t := &Target{conf: c, compute: defaultCompute, storage: defaultStorage, unit: diskUnit}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			return nil, fmt.Errorf("reading the endpoint %q: want http:// or https://, a host and no path", c.Endpoint)
		}
		t.compute = strings.TrimRight(c.Endpoint, "/")
		t.storage = t.compute
	}
	tokens := &rest.Tokens{Fetch: fetch}
	t.api = rest.API{Transport: c.Transport, Authorize: tokens.Authorize, Refusal: refusal, Again: again, Tries: c.Tries, Wait: c.Wait}
	return t, nil
}

// signIn reads credentials.
func signIn(c Config) (func(context.Context) (*oauth2.Token, error), error) {
	text := strings.TrimSpace(c.Credentials)
	if text == "" {
		return nil, errors.New("reading the credentials: they are empty")
	}
	if text[0] != '{' {
		return func(context.Context) (*oauth2.Token, error) { return &oauth2.Token{AccessToken: text}, nil }, nil
	}
	var key struct {
		Type  string `json:"type"`
		Email string `json:"client_email"`
		ID    string `json:"private_key_id"`
		Key   string `json:"private_key"`
		URL   string `json:"token_uri"`
	}
	// No cause: it might show a part of the key.
	if json.Unmarshal([]byte(text), &key) != nil || key.Type != "service_account" || key.Email == "" || key.URL == "" {
		return nil, fmt.Errorf("reading the credentials: want a token or the key file of a service account; its type is %q", key.Type)
	}
	block, _ := pem.Decode([]byte(key.Key))
	if block == nil {
		return nil, fmt.Errorf("reading the key of %s: it is not in PEM form", key.Email)
	}
	if _, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
		return nil, fmt.Errorf("reading the key of %s: it cannot be read", key.Email)
	}
	account := jwt.Config{Email: key.Email, PrivateKey: []byte(key.Key), PrivateKeyID: key.ID, Scopes: []string{scope}, TokenURL: key.URL}
	client := &http.Client{Transport: c.Transport}
	return func(ctx context.Context) (*oauth2.Token, error) {
		return account.TokenSource(context.WithValue(ctx, oauth2.HTTPClient, client)).Token()
	}, nil
}

// Formats implements upload.Target.
func (t *Target) Formats() []store.Format { return []store.Format{store.Raw} }
