package s3

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/images/upload"
)

// leftStaged is a staged object; its name is the key.
const leftStaged = "staged object"

// stagingName is where staged objects are below the prefix. They lie less deep than
// images, and are none of Target's.
const stagingName = "staging"

// maxLife is the longest that a signature lasts (Signature Version 4).
const maxLife = 7 * 24 * time.Hour

// SourceConfig is what a Source needs besides the bucket.
type SourceConfig struct {
	// Life of a URL, at most seven days; what is begun at its end goes on.
	Life time.Duration
	// ACL that an object has which is read without a signature, such as public-read;
	// empty where a policy of the bucket lets everybody read.
	ACL string
	// Client asks whether everybody can read; nil for http.DefaultClient.
	Client *http.Client
}

// Source is an upload.Source: a file lies in a bucket while a platform fetches it,
// PREFIX/staging/RANDOM-NAME, and is removed afterwards. The platform gets a URL
// that is signed and ends, or one without a query that the bucket has to allow.
type Source struct {
	target *Target
	conf   SourceConfig
}

// NewSource connects to nothing yet.
func NewSource(c Config, s SourceConfig) (*Source, error) {
	t, err := New(c)
	if err != nil {
		return nil, err
	}
	if s.Life < time.Second || s.Life > maxLife {
		return nil, fmt.Errorf("reading how long a URL lasts, %s: want 1s to %s", s.Life, maxLife)
	}
	if s.Client == nil {
		s.Client = http.DefaultClient
	}
	return &Source{t, s}, nil
}

// Stage implements upload.Source.
func (s *Source) Stage(ctx context.Context, w upload.Wanted, j upload.Journal, ev upload.Events) (string, func(), error) {
	t := s.target
	if !plainName(w.Name) {
		return "", nil, fmt.Errorf("naming %q in the store: want a name without / \\ ? # %%", w.Name)
	}
	left, again := upload.LeftStaged(j, leftStaged)
	if again = again && strings.HasSuffix(left.Name, "-"+w.Name) && s.mine(left.Name); !again {
		left = upload.Leftover{Kind: leftStaged, Name: path.Join(t.prefix, stagingName, strings.ToLower(rand.Text())+"-"+w.Name)}
	}
	if err := j.Write(left); err != nil {
		return "", nil, err
	}
	there := false
	if again {
		var err error
		if there, err = t.isThere(ctx, w.Image, left.Name); err != nil {
			return "", nil, err
		}
	}
	if !there {
		o := t.imageOptions(w.Image)
		if w.Plain && s.conf.ACL != "" {
			o.UserMetadata["x-amz-acl"] = s.conf.ACL
		}
		if err := t.sendImage(ctx, w.Image, left.Name, o, j, ev); err != nil {
			return "", nil, err
		}
	}
	url, err := s.url(ctx, left.Name, w)
	release := func() { upload.ReleaseStaged(ctx, s, left, j, ev) }
	if err != nil {
		release()
		return "", nil, err
	}
	return url, release, nil
}

// url is where the platform finds an object.
func (s *Source) url(ctx context.Context, key string, w upload.Wanted) (string, error) {
	t := s.target
	u, err := t.core.PresignedGetObject(ctx, t.bucket, key, s.conf.Life, nil)
	if err != nil {
		return "", failed(ctx, "signing a URL of "+key, err)
	}
	if !w.Plain {
		return u.String(), nil
	}
	u.RawQuery = ""
	r, err := http.NewRequestWithContext(ctx, http.MethodHead, u.String(), nil)
	if err != nil {
		return "", fmt.Errorf("asking for %s: %w", u, err)
	}
	resp, err := s.conf.Client.Do(r)
	if err != nil {
		return "", fmt.Errorf("asking for %s: %w", u, upload.CallError(ctx, err))
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, smallLimit))
	if resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusUnauthorized {
		return "", fmt.Errorf("asking for %s as the platform will, without a signature: %w; set option acl: public-read where the store knows ACLs, or let everybody s3:GetObject %s/* by a policy of the bucket",
			u, upload.StatusError(resp.StatusCode, "the store refuses"), path.Join(t.bucket, t.prefix, stagingName))
	}
	if err := upload.StatusError(resp.StatusCode, "the store refuses"); err != nil {
		return "", fmt.Errorf("asking for %s as the platform will: %w", u, err)
	}
	if resp.ContentLength != w.Image.Size {
		return "", fmt.Errorf("asking for %s as the platform will: %w: it has %d bytes there, and %d here", u, upload.ErrServer, resp.ContentLength, w.Image.Size)
	}
	return u.String(), nil
}

// mine tells whether a key may be of a staged object.
func (s *Source) mine(key string) bool {
	dir, name := path.Split(key)
	return dir == path.Join(s.target.prefix, stagingName)+"/" && plainName(name)
}

// Clean implements upload.Source. It removes an object, finished or not.
func (s *Source) Clean(ctx context.Context, left upload.Leftover) (bool, error) {
	if left.Kind != leftStaged && left.Kind != leftParts {
		return false, nil
	}
	if !s.mine(left.Name) {
		return true, fmt.Errorf("cleaning %q: it is no key of a staged object", left.Name)
	}
	t := s.target
	all, err := t.unfinished(ctx, left.Name)
	for _, u := range all {
		if u.Key == left.Name {
			err = errors.Join(err, t.abort(ctx, u.Key, u.UploadID))
		}
	}
	if err != nil || left.Kind == leftParts {
		return true, err
	}
	if err := t.core.RemoveObject(ctx, t.bucket, left.Name, minio.RemoveObjectOptions{}); err != nil && !missing(err) {
		return true, failed(ctx, "removing "+left.Name, err)
	}
	return true, nil
}

var _ upload.Source = (*Source)(nil)
