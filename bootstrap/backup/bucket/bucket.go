// Package bucket keeps backups of the server in a bucket of an S3-compatible store, one
// object each below a prefix. What comes here is encrypted already; an object has its name
// when the store has all of it. It makes no buckets and sets no policy: versions and locks
// against deletion are the store's business, and a good idea.
package bucket

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
)

// Config is where the backups go. All fields but Region and Transport are needed.
type Config struct {
	// Endpoint is http:// or https://, a host, and no path.
	Endpoint string
	Bucket   string
	// Region; when empty the store is asked, which takes s3:GetBucketLocation.
	Region string
	// Prefix of every key, without slashes at its ends.
	Prefix               string
	AccessKey, SecretKey string
	// Transport carries the requests; nil for the library's own.
	Transport http.RoundTripper
	// Kind of the files that are listed; empty for backups of the server's state.
	Kind files.Kind
}

// tries of each request before it has failed; the keeper comes again later.
const tries = 3

// Bucket is a place for backups. It may be used by several goroutines.
type Bucket struct {
	client *minio.Client
	bucket string
	prefix string
	kind   files.Kind
}

// New connects to nothing yet.
func New(c Config) (*Bucket, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("reading the store's endpoint %q: want http:// or https://, a host and no path", c.Endpoint)
	}
	switch {
	case c.Bucket == "" || c.Prefix == "":
		return nil, errors.New("reading the store's bucket and prefix: one is empty")
	case c.AccessKey == "" || c.SecretKey == "":
		return nil, errors.New("reading the store's keys: access key or secret key is empty")
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(c.AccessKey, c.SecretKey, ""), Secure: u.Scheme == "https",
		Region: c.Region, Transport: c.Transport, MaxRetries: tries,
	})
	if err != nil {
		return nil, fmt.Errorf("reading the store's endpoint %q: %w", c.Endpoint, err)
	}
	return &Bucket{client: client, bucket: c.Bucket, prefix: strings.Trim(c.Prefix, "/") + "/", kind: cmp.Or(c.Kind, files.State)}, nil
}

// String names the place for people.
func (b *Bucket) String() string { return "s3://" + b.bucket + "/" + b.prefix }

// List returns the backups, newest first. Other objects are left alone.
func (b *Bucket) List(ctx context.Context) ([]files.File, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // or who is not listened to any more waits for ever
	var out []files.File
	for o := range b.client.ListObjects(ctx, b.bucket, minio.ListObjectsOptions{Prefix: b.prefix}) {
		if o.Err != nil {
			return nil, fmt.Errorf("looking for backups in %s: %w", b, o.Err)
		}
		if f, ok := b.kind.Named(strings.TrimPrefix(o.Key, b.prefix), o.Size); ok {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b files.File) int { return b.At.Compare(a.At) })
	return out, nil
}

// Put keeps a backup of that size.
func (b *Bucket) Put(ctx context.Context, f files.File, r io.Reader) error {
	_, err := b.client.PutObject(ctx, b.bucket, b.prefix+f.Name, r, f.Size, minio.PutObjectOptions{ContentType: "application/octet-stream", DisableContentSha256: true})
	if err != nil {
		return fmt.Errorf("saving a backup in %s: %w", b, err)
	}
	return nil
}

// Open reads a backup; the caller closes it.
func (b *Bucket) Open(ctx context.Context, f files.File) (io.ReadCloser, error) {
	o, err := b.client.GetObject(ctx, b.bucket, b.prefix+f.Name, minio.GetObjectOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading %s of %s: %w", f.Name, b, err)
	}
	return o, nil
}

// Remove takes a backup away.
func (b *Bucket) Remove(ctx context.Context, f files.File) error {
	if err := b.client.RemoveObject(ctx, b.bucket, b.prefix+f.Name, minio.RemoveObjectOptions{}); err != nil {
		return fmt.Errorf("removing %s of %s: %w", f.Name, b, err)
	}
	return nil
}
