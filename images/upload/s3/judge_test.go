//go:build upload

package s3

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
	"github.com/imagectl/imagectl/test/daemon"
)

var versitygw = flag.String("versitygw", "", "the program versitygw, a store of another hand")

// gateway runs versitygw on a directory until the test ends.
func gateway(t *testing.T) Config {
	t.Helper()
	if *versitygw == "" {
		t.Fatal("-versitygw is not set; run this through make upload-test")
	}
	address := daemon.Address(t)
	cmd := exec.Command(*versitygw, "--quiet", "--port", address, "--access", accessKey, "--secret", "secret-of-the-operator", "posix", t.TempDir())
	daemon.Start(t, cmd, "make upload-test installs it", func() error {
		resp, err := http.Get("http://" + address + "/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return Config{Endpoint: "http://" + address, AccessKey: accessKey, SecretKey: "secret-of-the-operator", Region: "us-east-1", Looks: 5, Now: time.Now}
}

// withBucket makes a bucket.
func withBucket(t *testing.T, c Config, name string) Config {
	t.Helper()
	c.Bucket = name
	to, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := to.core.MakeBucket(t.Context(), name, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConformanceOfARealStore(t *testing.T) {
	c := gateway(t)
	n := 0
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		n++
		p := platform(t, withBucket(t, c, fmt.Sprintf("bucket-%d", n)))
		p.Absent[uploadtest.Full] = "versitygw writes into a file system that is not ours to fill; the stand-in of make unit refuses"
		p.Absent[uploadtest.Quota] = "versitygw has no quotas for buckets; the stand-in of make unit refuses"
		return p
	})
}

// Half a file is there when the connection breaks; what the store then has is the
// file, and it says so itself.
func TestARealStoreGoesOnAndProvesTheBytes(t *testing.T) {
	c := withBucket(t, gateway(t), "big")
	const size = 20<<20 + 77 // four parts of 5 MiB and a rest
	content := bytes.Repeat([]byte("Flatcar\x00\x01\x02"), size/10+1)[:size]
	at := filepath.Join(t.TempDir(), "demo-worker.qcow2")
	write(t, at, content)
	f, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.Sum256(content)
	img := upload.Image{Name: "demo-worker", Version: "1-aa", Digest: hexSum([]byte("disk")), Format: store.QCOW2, File: f, Size: size, SHA256: hex.EncodeToString(sum[:]), RawSize: 8 << 30}

	c.PartSize, c.Tries = 5<<20, 1
	broken := c
	broken.Transport = cutAt("3")
	to, err := New(broken)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := to.Upload(t.Context(), img, &notes{}, quiet); err == nil {
		t.Fatal("the cut was not noticed")
	}
	var resent []string
	c.Transport = watch(&resent)
	if to, err = New(c); err != nil {
		t.Fatal(err)
	}
	o, err := to.Upload(t.Context(), img, &notes{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if len(resent) == 0 || len(resent) > 4 {
		t.Errorf("%v were sent again; some parts were there, and the third was not", resent)
	}
	checks, err := to.Verify(t.Context(), o, img)
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range checks {
		if check.Result != upload.Good {
			t.Errorf("%s: %s: %s", check.Name, check.Result, check.Detail)
		}
		t.Logf("%s: %s: %s", check.Name, check.Result, check.Detail)
	}
	got, err := to.core.Client.GetObject(t.Context(), c.Bucket, "images/demo-worker/1-aa/demo-worker.qcow2", minio.GetObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, got); err != nil || hex.EncodeToString(h.Sum(nil)) != img.SHA256 {
		t.Errorf("the store has other bytes: %v", err)
	}
}

func TestARealStoreKeepsWhatServersServe(t *testing.T) {
	c := withBucket(t, gateway(t), "shelf")
	c.PartSize, c.Prefix = 5<<20, "servers/lab"
	to, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	keeps(t, to, 12<<20)
	var resent []string
	c.Transport = watch(&resent)
	if to, err = New(c); err != nil {
		t.Fatal(err)
	}
	if keeps(t, to, 12<<20); len(resent) > 0 {
		t.Errorf("what was there was sent again: %v", resent)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// cutAt loses the connection with a part of a file, once another part has arrived.
func cutAt(part string) http.RoundTripper {
	arrived := make(chan struct{})
	var once sync.Once
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		number := r.URL.Query().Get("partNumber")
		if number == part {
			<-arrived
			r.Body.Close()
			return nil, io.ErrUnexpectedEOF
		}
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err == nil && number != "" && r.Method == http.MethodPut {
			once.Do(func() { close(arrived) })
		}
		return resp, err
	})
}

// watch notes the parts that are sent, one at a time.
func watch(sent *[]string) http.RoundTripper {
	lock := make(chan struct{}, 1)
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		if part := r.URL.Query().Get("partNumber"); part != "" && r.Method == http.MethodPut {
			lock <- struct{}{}
			*sent = append(*sent, strings.TrimSpace(part))
			<-lock
		}
		return http.DefaultTransport.RoundTrip(r)
	})
}

func TestConformanceOfOpenNebulaByARealStore(t *testing.T) {
	c := gateway(t)
	n := 0
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		n++
		return stagedFor(t, withBucket(t, c, fmt.Sprintf("stage-%d", n)))
	})
}

// The store judges the signature, its end, and who may read without one.
func TestARealStoreGivesWhatIsStaged(t *testing.T) {
	c := withBucket(t, gateway(t), "stage")
	src := staged(t, c, SourceConfig{Life: time.Minute})
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	want, err := os.ReadFile(img.File.Name())
	if err != nil {
		t.Fatal(err)
	}
	j := &uploadtest.Journal{}
	at, release, err := src.Stage(t.Context(), upload.Wanted{Name: "a.qcow2", Image: img}, j, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if code, b := status(t, http.MethodGet, at); code != 200 || !bytes.Equal(b, want) {
		t.Errorf("GET: %d, %d bytes", code, len(b))
	}
	if code, _ := status(t, http.MethodGet, strings.Replace(at, "a.qcow2", "b.qcow2", 1)); code != 403 {
		t.Errorf("another object by this signature: %d", code)
	}
	release()
	if code, _ := status(t, http.MethodGet, at); code != 404 {
		t.Errorf("after the end: %d", code)
	}

	plain := upload.Wanted{Name: "a.img", Image: img, Plain: true}
	if _, _, err := src.Stage(t.Context(), plain, j, quiet); !errors.Is(err, upload.ErrAuth) || !strings.Contains(err.Error(), "by a policy of the bucket") {
		t.Errorf("without a policy: %v", err)
	}
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::stage/images/staging/*"}]}`
	if err := src.target.core.Client.SetBucketPolicy(t.Context(), c.Bucket, policy); err != nil {
		t.Fatal(err)
	}
	at, release, err = src.Stage(t.Context(), plain, j, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if code, b := status(t, http.MethodGet, at); code != 200 || !bytes.Equal(b, want) || strings.Contains(at, "?") {
		t.Errorf("GET %s: %d, %d bytes", at, code, len(b))
	}
	release()
	if left := j.Left(); len(left) > 0 {
		t.Errorf("the journal has %v", left)
	}
}
