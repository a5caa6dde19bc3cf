package s3

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// platform is the suite's view of a bucket that is there and empty.
func platform(t *testing.T, c Config) uploadtest.Platform {
	t.Helper()
	c.Region, c.Tries, c.Now = "us-east-1", 1, time.Now
	c.Looks = cmp.Or(c.Looks, 1)
	made := func(c Config) *Target {
		to, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		return to
	}
	operator, base := made(c).core.Client, c.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	return uploadtest.Platform{
		Target: func(f *uploadtest.Faults) upload.Target {
			c.Transport = f.Transport(base)
			return made(c)
		},
		Patient: func(f *uploadtest.Faults) upload.Target {
			mine := c
			mine.Transport, mine.Tries = f.Transport(base), 5
			return made(mine)
		},
		Repeats: func(*http.Request) bool { return true },
		Stranger: func() upload.Target {
			wrong := c
			wrong.AccessKey = "stranger"
			return made(wrong)
		},
		Leftovers: func() ([]string, error) {
			// Versions count, however many objects and parts they have.
			dirs := map[string]bool{}
			for o := range operator.ListObjects(context.Background(), c.Bucket, minio.ListObjectsOptions{Prefix: "images/prod-worker/", Recursive: true}) {
				if o.Err != nil {
					return nil, o.Err
				}
				if !strings.HasSuffix(o.Key, "/latest.json") {
					dirs[o.Key[:strings.LastIndex(o.Key, "/")]] = true
				}
			}
			for u := range operator.ListIncompleteUploads(context.Background(), c.Bucket, "", true) {
				if u.Err != nil {
					return nil, u.Err
				}
				dirs["half of "+u.Key] = true
			}
			return slices.Sorted(maps.Keys(dirs)), nil
		},
		Plant: func() func() error { return plant(t, operator, c.Bucket) },
		Absent: map[uploadtest.Case]string{
			uploadtest.Forgotten: "TestWhatNobodyFinishesIsBrokenAfterADay has it",
			uploadtest.Options:   "a store keeps files, and no machines",
			uploadtest.InUse:     "a store starts no machines, and does not know who reads an object",
			uploadtest.CalledOff: "nothing is imported: the parts are sent, and a half upload is aborted",
		},
	}
}

// plant puts objects of others beside ours.
func plant(t *testing.T, operator *minio.Client, bucket string) func() error {
	t.Helper()
	foreign := map[string]string{"backup.tar": "mine", "images/other/1/image.json": "{}", "images/prod-worker/notes/todo.txt": "read"}
	for key, content := range foreign {
		if _, err := operator.PutObject(t.Context(), bucket, key, strings.NewReader(content), int64(len(content)), minio.PutObjectOptions{DisableContentSha256: true}); err != nil {
			t.Fatal(err)
		}
	}
	return func() error {
		var all []error
		for key, want := range foreign {
			o, err := operator.GetObject(context.Background(), bucket, key, minio.GetObjectOptions{})
			if err != nil {
				return err
			}
			got, err := io.ReadAll(o)
			if err != nil || !bytes.Equal(got, []byte(want)) {
				all = append(all, fmt.Errorf("%s is %q, %v", key, got, err))
			}
		}
		return errors.Join(all...)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	var current atomic.Pointer[fake] // the suite has one platform at a time
	server := uploadtest.InProcess(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { current.Load().ServeHTTP(w, r) }))
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		f := newFake()
		f.now = time.Now().UTC()
		current.Store(f)
		p := platform(t, Config{Endpoint: "http://s3.test", Transport: server, Bucket: bucket, AccessKey: accessKey, SecretKey: "secret", PartSize: 64 << 10})
		p.RawSize = 300<<10 + 512
		refuse := func(status int, code string) func() {
			return func() {
				f.refuse = func(w http.ResponseWriter, r *http.Request) bool {
					put := r.Method == http.MethodPut
					if put {
						complain(w, status, code)
					}
					return put
				}
			}
		}
		p.Fill, p.Quota = refuse(http.StatusInsufficientStorage, "XMinioStorageFull"), refuse(http.StatusForbidden, "QuotaExceeded")
		return p
	})
}
