package s3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/opennebula"
	"github.com/imagectl/imagectl/images/upload/opennebula/onedtest"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// staged is a bucket as a source.
func staged(t testing.TB, c Config, s SourceConfig) *Source {
	t.Helper()
	c.Region, c.Tries, c.Looks, c.Now = "us-east-1", 1, max(c.Looks, 1), time.Now
	if s.Life == 0 {
		s.Life = time.Hour
	}
	src, err := NewSource(c, s)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// stagedFor is the suite's view of OpenNebula that fetches from a bucket.
func stagedFor(t *testing.T, c Config) uploadtest.Platform {
	t.Helper()
	one := onedtest.Start(t)
	operator := staged(t, c, SourceConfig{}).target.core.Client
	target := func(f *uploadtest.Faults, session string) upload.Target {
		mine := c
		mine.Transport = f.Transport(http.DefaultTransport)
		return opennebula.New(opennebula.Config{
			Endpoint: one.URL, Session: session, Datastore: onedtest.Datastore, Source: staged(t, mine, SourceConfig{}),
			Client: &http.Client{Transport: mine.Transport},
			Wait: func(ctx context.Context) error {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(time.Millisecond):
					return nil
				}
			},
		})
	}
	return uploadtest.Platform{
		Target:   func(f *uploadtest.Faults) upload.Target { return target(f, onedtest.Session) },
		Stranger: func() upload.Target { return target(&uploadtest.Faults{}, "ops:wrong") },
		Leftovers: func() ([]string, error) {
			left := one.Images(onedtest.Session)
			for o := range operator.ListObjects(context.Background(), c.Bucket, minio.ListObjectsOptions{Recursive: true}) {
				if o.Err != nil {
					return nil, o.Err
				}
				left = append(left, o.Key)
			}
			for u := range operator.ListIncompleteUploads(context.Background(), c.Bucket, "", true) {
				if u.Err != nil {
					return nil, u.Err
				}
				left = append(left, "half of "+u.Key)
			}
			return left, nil
		},
		Plant: one.Plant, Fill: func() { one.Fill(0) }, Quota: func() { one.Quota(0) },
		Use:    func(o upload.Object) error { return one.Use(o.ID) },
		Settle: one.Settle,
		Absent: map[uploadtest.Case]string{
			uploadtest.Forgotten: "what is staged is not looked for: a rule of the bucket removes it (docs/upload.md)",
			uploadtest.Options:   "OpenNebula's own suite has it",
			uploadtest.Storm:     "OpenNebula's own suite has it",
			uploadtest.CalledOff: "OpenNebula's own suite has it; here the file would be there still, and the import end well",
		},
		Unprovable: []string{"stored bytes"},
		Slow:       true, RawSize: 300<<10 + 512,
	}
}

func TestConformanceOfOpenNebulaByABucket(t *testing.T) {
	t.Parallel()
	var current atomic.Pointer[fake] // the suite has one platform at a time
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { current.Load().ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		f := newFake()
		f.now = time.Now().UTC()
		current.Store(f)
		return stagedFor(t, Config{Endpoint: server.URL, Bucket: bucket, AccessKey: accessKey, SecretKey: "secret", PartSize: 128 << 10})
	})
}

// vault is a fake with a source on it, and an image.
func vault(t *testing.T, s SourceConfig) (*fake, *Source, upload.Image) {
	t.Helper()
	f := newFake()
	f.now = time.Now().UTC()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return f, staged(t, Config{Endpoint: server.URL, Bucket: bucket, AccessKey: accessKey, SecretKey: "secret", PartSize: 1 << 20}, s), uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
}

// status asks as anybody would.
func status(t *testing.T, method, url string) (int, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b
}

func TestSignedURLEnds(t *testing.T) {
	t.Parallel()
	f, src, img := vault(t, SourceConfig{Life: time.Minute})
	j := &uploadtest.Journal{}
	at, release, err := src.Stage(t.Context(), upload.Wanted{Name: "a.qcow2", Image: img}, j, quiet)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(img.File.Name())
	if err != nil {
		t.Fatal(err)
	}
	if code, b := status(t, http.MethodGet, at); code != 200 || !bytes.Equal(b, want) {
		t.Errorf("GET: %d, %d bytes", code, len(b))
	}
	u, err := url.Parse(at)
	if err != nil || !strings.HasPrefix(u.Path, "/vault/images/staging/") || !strings.HasSuffix(u.Path, "-a.qcow2") {
		t.Errorf("it is at %s, %v", at, err)
	}
	u.RawQuery = ""
	if code, _ := status(t, http.MethodGet, u.String()); code != 403 {
		t.Errorf("without a signature: %d", code)
	}
	f.mu.Lock()
	f.now = f.now.Add(2 * time.Minute)
	f.mu.Unlock()
	if code, _ := status(t, http.MethodGet, at); code != 403 {
		t.Errorf("after its end: %d", code)
	}
	if len(f.objects) != 1 || len(j.Left()) != 1 {
		t.Errorf("there are %d objects, and the journal has %v", len(f.objects), j.Left())
	}
	release()
	if len(f.objects)+len(f.uploads)+len(j.Left()) > 0 {
		t.Errorf("left are %d objects, %d uploads and %v", len(f.objects), len(f.uploads), j.Left())
	}
}

func TestPlainURLHasToBeEverybodys(t *testing.T) {
	t.Parallel()
	f, src, img := vault(t, SourceConfig{})
	j := &uploadtest.Journal{}
	_, _, err := src.Stage(t.Context(), upload.Wanted{Name: "a.img", Image: img, Plain: true}, j, quiet)
	if !errors.Is(err, upload.ErrAuth) || !strings.Contains(err.Error(), "let everybody s3:GetObject vault/images/staging/* by a policy of the bucket") {
		t.Errorf("got %v", err)
	}
	if len(f.objects)+len(j.Left()) > 0 {
		t.Errorf("left are %d objects and %v", len(f.objects), j.Left())
	}

	f, src, img = vault(t, SourceConfig{ACL: "public-read"})
	at, release, err := src.Stage(t.Context(), upload.Wanted{Name: "a.img", Image: img, Plain: true}, j, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(at, "?") || !strings.HasSuffix(at, "-a.img") {
		t.Errorf("it is at %s", at)
	}
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		if code, _ := status(t, method, at); code != 200 {
			t.Errorf("%s: %d", method, code)
		}
	}
	release()
	if len(f.objects) > 0 {
		t.Errorf("left are %d objects", len(f.objects))
	}
}

// A run that was called off leaves the object, and the next one does not send it again.
func TestNextRunGoesOnWithTheObject(t *testing.T) {
	t.Parallel()
	f, src, img := vault(t, SourceConfig{})
	j := &uploadtest.Journal{}
	ctx, cancel := context.WithCancel(t.Context())
	first, release, err := src.Stage(ctx, upload.Wanted{Name: "a.qcow2", Image: img}, j, quiet)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	release()
	sent := len(f.puts)
	second, release, err := src.Stage(t.Context(), upload.Wanted{Name: "a.qcow2", Image: img}, j, quiet)
	before, _, _ := strings.Cut(first, "?")
	if after, _, _ := strings.Cut(second, "?"); err != nil || after != before || len(f.puts) != sent {
		t.Errorf("first %s, then %s; sent were %v; %v", first, second, f.puts, err)
	}
	release()
	if len(f.objects)+len(j.Left()) > 0 {
		t.Errorf("left are %d objects and %v", len(f.objects), j.Left())
	}
}

func TestSourceCleansOnlyWhatItStaged(t *testing.T) {
	t.Parallel()
	f, src, _ := vault(t, SourceConfig{})
	f.objects["images/prod-worker/latest.json"] = kept{}
	for _, key := range []string{"images/prod-worker/latest.json", "images/staging/../prod-worker/latest.json", "backup.tar", ""} {
		if mine, err := src.Clean(t.Context(), upload.Leftover{Kind: leftStaged, Name: key}); !mine || err == nil {
			t.Errorf("%q: %t, %v", key, mine, err)
		}
	}
	if mine, _ := src.Clean(t.Context(), upload.Leftover{Kind: "image"}); mine || len(f.objects) != 1 {
		t.Errorf("an image: %t; there are %d objects", mine, len(f.objects))
	}
	for _, life := range []time.Duration{0, 8 * 24 * time.Hour} {
		if _, err := NewSource(Config{Endpoint: "http://a", Bucket: "b", AccessKey: "c", SecretKey: "d"}, SourceConfig{Life: life}); err == nil {
			t.Errorf("a life of %s is not refused", life)
		}
	}
}
