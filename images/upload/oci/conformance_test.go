package oci

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

const (
	operator = "operator"
	password = "secret"
)

// platform is the suite's view of a repository that is not there yet.
func platform(t *testing.T, c Config) uploadtest.Platform {
	t.Helper()
	c.Plain, c.Tries, c.Now = true, cmp.Or(c.Tries, 1), time.Now
	c.Username, c.Password = operator, password
	made := func(c Config) *Target {
		to, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		return to
	}
	plain, base := made(c), c.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	foreign := map[string]bool{}
	return uploadtest.Platform{
		RawSize: 300<<10 + 512,
		Target: func(f *uploadtest.Faults) upload.Target {
			c.Transport = f.Transport(base)
			return made(c)
		},
		Patient: func(f *uploadtest.Faults) upload.Target {
			mine := c
			mine.Transport, mine.Tries, mine.Pause = f.Transport(base), 3, time.Millisecond
			return made(mine)
		},
		Repeats: func(*http.Request) bool { return true },
		Stranger: func() upload.Target {
			wrong := c
			wrong.Password = "guessed"
			return made(wrong)
		},
		Leftovers: func() ([]string, error) {
			// What no tag names is the registry's own garbage.
			tags, err := remote.List(plain.repo, plain.with(t.Context())...)
			if err != nil && !missing(err) {
				return nil, err
			}
			var left []string
			for _, tag := range tags {
				if strings.HasPrefix(tag, "prod-worker_") && tag != "prod-worker_previous" && !foreign[tag] {
					left = append(left, tag)
				}
			}
			return left, nil
		},
		Plant: func() func() error { return plant(t, plain, foreign) },
		Absent: map[uploadtest.Case]string{
			uploadtest.Forgotten: "a blob without a manifest is the registry's own garbage, and nothing else is left",
			uploadtest.Options:   "a registry keeps files, and no machines",
			uploadtest.InUse:     "a registry starts no machines, and does not know who reads a manifest",
			uploadtest.CalledOff: "nothing is imported: a blob without a manifest is the registry's own garbage",
		},
	}
}

// plant puts manifests of others beside ours.
func plant(t *testing.T, to *Target, foreign map[string]bool) func() error {
	t.Helper()
	config, err := inMemory(emptyValue, emptyType)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteLayer(to.repo, config, to.with(t.Context())...); err != nil {
		t.Fatal(err)
	}
	m, err := encode(v1.Manifest{
		Config:      v1.Descriptor{MediaType: config.mediaType, Size: config.size, Digest: config.digest},
		Layers:      []v1.Descriptor{{MediaType: config.mediaType, Size: config.size, Digest: config.digest}},
		Annotations: map[string]string{"of": "somebody"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"v1", "prod-worker_0", "other"} {
		foreign[tag] = true
		if err := remote.Put(to.repo.Tag(tag), m, to.with(t.Context())...); err != nil {
			t.Fatal(err)
		}
	}
	return func() error {
		var all []error
		for tag := range foreign {
			if got, found, err := to.get(t.Context(), to.repo.Tag(tag)); err != nil || !found || got.digest != m.digest {
				all = append(all, fmt.Errorf("%s is %v, found %t, %v", tag, got.digest, found, err))
			}
		}
		return errors.Join(all...)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, form := range []Form{Artifact, ContainerDisk} {
		t.Run(string(form), func(t *testing.T) {
			t.Parallel()
			conformance(t, form)
		})
	}
}

func conformance(t *testing.T, form Form) {
	// The suite has one platform at a time.
	var inside atomic.Pointer[http.Handler]
	var refusal atomic.Value
	server := uploadtest.InProcess(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, secret, _ := r.BasicAuth()
		// The library's registry takes what it gets of a manifest for all of it.
		body, err := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		switch {
		case err != nil:
			w.WriteHeader(http.StatusBadRequest)
		case name != operator || secret != password:
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
		case refusal.Load() != "" && r.Method == http.MethodPost:
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":%q}]}`, refusal.Load())
		default:
			(*inside.Load()).ServeHTTP(w, r)
		}
	}))
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		fresh := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
		inside.Store(&fresh)
		refusal.Store("")
		p := platform(t, Config{Repository: "registry.test/team/images", Form: form, Transport: server})
		p.Fill = func() { refusal.Store("no space left on device") }
		p.Quota = func() { refusal.Store("quota exceeded") }
		return p
	})
}
