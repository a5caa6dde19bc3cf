// Package s3 keeps images in a bucket of an S3-compatible store.
//
// Below a prefix (images/ unless the user names another) it makes
//
//	NAME/VERSION/FILE        the disk image, in one format or more; never changed
//	NAME/VERSION/manifest.json, SHA256SUMS, …  the build's documents
//	NAME/VERSION/image.json  what is there, with digests: written last, so that a
//	                         version without it is not finished
//	NAME/latest.json         which version is the current one: all that Promote moves
//
// A file goes up in parts, each with its SHA-256, which the store checks, keeps and
// gives back: an upload that broke off goes on with the parts that are not there
// yet, from any machine. Names are found by listing, never by guessing.
//
// It does not make buckets, sets no policy, and gives nobody access to the files.
package s3

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// Config is where the images go. Endpoint, Bucket, AccessKey, SecretKey and Now
// are needed.
type Config struct {
	// Endpoint is http:// or https://, a host, and no path.
	Endpoint string
	Bucket   string
	// Region; when empty the store is asked, which takes s3:GetBucketLocation.
	Region string
	// Prefix of every key, without slashes at its ends; empty for "images".
	Prefix               string
	AccessKey, SecretKey string
	// SessionToken of temporary keys; empty for lasting ones.
	SessionToken string
	// Transport carries the requests; nil for the library's own.
	Transport http.RoundTripper
	// Tries of each request before it has failed; 0 for 5. They take three seconds.
	Tries int
	// Looks is how often an object is looked for whose upload has ended, perhaps by
	// another one of the same image: not every store makes it in the same step. 0 for 5,
	// which take 1.5 seconds.
	Looks int
	// PartSize in bytes; 0 for 16 MiB. It grows for files of more than 10,000 parts.
	// Stores refuse less than 5 MiB for any part but the last.
	PartSize int64
	// Now is the clock, which tells a broken upload from one that is going on.
	Now func() time.Time
}

const (
	defaultPrefix = "images"
	defaultTries  = 5
	defaultLooks  = 5
	firstPause    = 100 * time.Millisecond // between two looks; the next ones double
	// defaultPart makes a retry cheap and 10,000 of them 156 GiB.
	defaultPart = 16 << 20
	// maxParts is Amazon's limit, which the others took over.
	maxParts = 10_000
	// partsAtOnce fill a line whose answer takes longer than its bytes.
	partsAtOnce = 4
	// abandoned is how long an unfinished version lies still before it is called
	// broken. No part takes a day.
	abandoned = 24 * time.Hour
)

// Target is a bucket. It may be used by several goroutines.
type Target struct {
	core     minio.Core
	bucket   string
	prefix   string
	partSize int64
	looks    int
	now      func() time.Time
}

// New connects to nothing yet.
func New(c Config) (*Target, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("reading the store's endpoint %q: want http:// or https://, a host and no path; the bucket has a field of its own", c.Endpoint)
	}
	switch {
	case c.Bucket == "":
		return nil, errors.New("reading the store's bucket: there is none")
	case c.AccessKey == "" || c.SecretKey == "":
		return nil, errors.New("reading the store's keys: access key or secret key is empty")
	}
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds:      credentials.NewStaticV4(c.AccessKey, c.SecretKey, c.SessionToken),
		Secure:     u.Scheme == "https",
		Region:     c.Region,
		Transport:  c.Transport,
		MaxRetries: cmp.Or(c.Tries, defaultTries),
	})
	if err != nil {
		return nil, fmt.Errorf("reading the store's endpoint %q: %w", c.Endpoint, err)
	}
	return &Target{
		core:     *core,
		bucket:   c.Bucket,
		prefix:   cmp.Or(strings.Trim(c.Prefix, "/"), defaultPrefix),
		partSize: cmp.Or(c.PartSize, defaultPart),
		looks:    cmp.Or(c.Looks, defaultLooks),
		now:      c.Now,
	}, nil
}

// Formats that are worth keeping: small ones first.
func (t *Target) Formats() []store.Format {
	return []store.Format{store.QCOW2, store.RawZstd, store.QCOW2Zstd, store.VMDK, store.OVA, store.VHD, store.Raw}
}

const (
	recordName  = "image.json"
	pointerName = "latest.json"
)

// version is the directory of a version: its objects' common prefix, and ID.
func (t *Target) version(name, version string) string { return path.Join(t.prefix, name, version) }

func (t *Target) pointer(name string) string { return path.Join(t.prefix, name, pointerName) }

// split reads a key that version made the directory of. Only keys at that depth
// are ours.
func (t *Target) split(key string) (name, version, file string, ok bool) {
	rest, ok := strings.CutPrefix(key, t.prefix+"/")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return "", "", "", false
	}
	return parts[0], parts[1], parts[2], true
}

// plainName is what can be a step of a key without being another one.
func plainName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\\?#%") && path.Clean(s) == s
}

func checkNames(img upload.Image) error {
	if !plainName(img.Name) || !plainName(img.Version) || !plainName(path.Base(img.File.Name())) {
		return fmt.Errorf("naming %q, version %q, in the store: want names without / \\ ? # %% ", img.Name, img.Version)
	}
	return nil
}
