package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// rack is the library's registry, and somebody who may answer in its place.
type rack struct {
	*httptest.Server
	refuse atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]
	mu     sync.Mutex
	puts   []string // methods and paths of what changed something
}

// newRack makes one with the referrers call, or an older one without.
func newRack(t *testing.T, referrers bool) *rack {
	t.Helper()
	inside := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(referrers))
	r := &rack{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if refuse := r.refuse.Load(); refuse != nil && (*refuse)(w, req) {
			return
		}
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			r.mu.Lock()
			r.puts = append(r.puts, req.Method+" "+req.URL.Path)
			r.mu.Unlock()
		}
		inside.ServeHTTP(w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *rack) changes() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.puts
	r.puts = nil
	return got
}

func target(t *testing.T, r *rack, form Form) *Target {
	t.Helper()
	to, err := New(Config{Repository: strings.TrimPrefix(r.URL, "http://") + "/team/images", Form: form, Plain: true, Tries: 1, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func image(t *testing.T, version string, seed byte, f store.Format) upload.Image {
	t.Helper()
	dir := t.TempDir()
	content := bytes.Repeat([]byte{seed, byte(len(f)), 2, 3, 5, 8, 13}, 100_001)
	at := filepath.Join(dir, "demo-worker."+string(f))
	write(t, at, content)
	write(t, filepath.Join(dir, "demo-worker.spdx.json"), []byte(fmt.Sprintf(`{"seed": %d}`, seed)))
	write(t, filepath.Join(dir, "provenance.intoto.jsonl"), []byte(`{"payload": ""}`))
	write(t, filepath.Join(dir, "SHA256SUMS"), []byte("sums\n"))
	file, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return upload.Image{
		Name: "demo-worker", Version: version, Digest: hexSum([]byte{seed}), Format: f, File: file,
		Size: int64(len(content)), SHA256: hexSum(content), RawSize: 1 << 30,
		Labels: map[string]string{"flatcar": "4593.2.1", "git": "abc", "created": "2026-11-01T00:00:00Z"},
		Documents: []upload.Document{
			{Kind: upload.SBOM, Path: filepath.Join(dir, "demo-worker.spdx.json")},
			{Kind: upload.Provenance, Path: filepath.Join(dir, "provenance.intoto.jsonl")},
			{Kind: upload.Sums, Path: filepath.Join(dir, "SHA256SUMS")},
		},
	}
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func quiet(upload.Event) {}

// send passes no journal: nothing may be written into it.
func send(t *testing.T, to *Target, img upload.Image) upload.Object {
	t.Helper()
	o, err := to.Upload(t.Context(), img, nil, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestASecondUploadSendsNothing(t *testing.T) {
	for name, referrers := range map[string]bool{"registry of today": true, "older registry": false} {
		for _, form := range []Form{Artifact, ContainerDisk} {
			t.Run(fmt.Sprintf("%s, %s", name, form), func(t *testing.T) {
				r := newRack(t, referrers)
				to, img := target(t, r, form), image(t, "1-aa", 1, store.QCOW2)
				if plan, err := to.Preflight(t.Context(), img); err != nil || plan.Found != nil || len(plan.Steps) != 4 || plan.Bytes != img.Size {
					t.Errorf("Preflight = %+v, %v, want four steps", plan, err)
				}
				if changed := r.changes(); len(changed) != 0 {
					t.Errorf("Preflight changed %v", changed)
				}
				o := send(t, to, img)
				r.changes()
				plan, err := to.Preflight(t.Context(), img)
				if err != nil || plan.Found == nil || plan.Found.ID != o.ID || len(plan.Steps) != 0 {
					t.Errorf("Preflight = %+v, %v, want what is there and no steps", plan, err)
				}
				if again := send(t, to, img); again != o {
					t.Errorf("the second upload gives %+v, want %+v", again, o)
				}
				if changed := r.changes(); len(changed) != 0 {
					t.Errorf("the second upload sent %v", changed)
				}
				checks, err := to.Verify(t.Context(), o, img)
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range checks {
					if c.Result != upload.Good {
						t.Errorf("%s: %s: %s", c.Name, c.Result, c.Detail)
					}
				}
			})
		}
	}
}

func TestABlobThatTheRegistryLostIsSentAgain(t *testing.T) {
	r := newRack(t, true)
	to, img := target(t, r, Artifact), image(t, "1-aa", 1, store.QCOW2)
	refused := 0
	refuse := func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodPut || !strings.Contains(req.URL.Path, "/manifests/") || refused == puts-1 {
			return false
		}
		refused++
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}`)
		return true
	}
	r.refuse.Store(&refuse)
	send(t, to, img)
	if refused != puts-1 {
		t.Errorf("refused %d times", refused)
	}
	refused = -1000 // for good
	if _, err := to.Upload(t.Context(), image(t, "2-bb", 2, store.QCOW2), nil, quiet); err == nil || !strings.Contains(err.Error(), "blob unknown to registry") || refused != puts-1000 {
		t.Errorf("got %v after %d", err, refused+1000)
	}
}

func TestTheManifestSaysWhatOthersExpect(t *testing.T) {
	to := target(t, newRack(t, true), Artifact)
	img := image(t, "1-aa", 1, store.QCOW2)
	send(t, to, img)
	m, _, err := to.get(t.Context(), to.repo.Tag("demo-worker_1-aa"))
	if err != nil {
		t.Fatal(err)
	}
	delete(m.Annotations, keyUploaded)
	got, err := json.MarshalIndent(m.Manifest, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("DISK", img.Digest, "FILE", img.SHA256, "SIZE", fmt.Sprint(img.Size)).Replace(`{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "config": {
    "mediaType": "application/vnd.oci.empty.v1+json",
    "size": 2,
    "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
  },
  "layers": [
    {
      "mediaType": "application/vnd.imagectl.disk.v1.qcow2",
      "size": SIZE,
      "digest": "sha256:FILE",
      "annotations": {
        "org.imagectl.file-digest": "sha256:FILE",
        "org.imagectl.format": "qcow2",
        "org.opencontainers.image.title": "demo-worker.qcow2"
      }
    }
  ],
  "annotations": {
    "org.imagectl.created": "2026-11-01T00:00:00Z",
    "org.imagectl.digest": "sha256:DISK",
    "org.imagectl.flatcar": "4593.2.1",
    "org.imagectl.git": "abc",
    "org.imagectl.imagectl": "1",
    "org.imagectl.name": "demo-worker",
    "org.imagectl.raw-size": "1073741824",
    "org.imagectl.version": "1-aa",
    "org.opencontainers.image.created": "2026-11-01T00:00:00Z",
    "org.opencontainers.image.revision": "abc",
    "org.opencontainers.image.title": "demo-worker",
    "org.opencontainers.image.version": "1-aa"
  },
  "artifactType": "application/vnd.imagectl.image.v1"
}`)
	if diff := cmp.Diff(strings.Split(string(got), "\n"), strings.Split(want, "\n")); diff != "" {
		t.Error(diff)
	}
}

func TestFormatsOfOneVersionShareAManifestAndDocuments(t *testing.T) {
	to := target(t, newRack(t, true), Artifact)
	one := send(t, to, image(t, "1-aa", 1, store.QCOW2))
	if err := to.Promote(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	img := image(t, "1-aa", 1, store.VMDK)
	two := send(t, to, img)
	if two.ID != one.ID || two.State != "qcow2,vmdk" || !two.Created.Equal(one.Created) || !two.Current {
		t.Errorf("after the second format: %+v, before: %+v", two, one)
	}
	m, _, err := to.get(t.Context(), to.repo.Tag("demo-worker_1-aa"))
	if err != nil {
		t.Fatal(err)
	}
	if documents, err := to.referrers(t.Context(), m.digest); err != nil || len(documents) != 2 {
		t.Errorf("%d documents refer to the manifest, %v, want 2", len(documents), err)
	}
}

func TestAContainerDiskHasTheDiskWhereKubeVirtLooks(t *testing.T) {
	r := newRack(t, true)
	to, img := target(t, r, ContainerDisk), image(t, "1-aa", 1, store.QCOW2)
	send(t, to, img)
	pulled, err := remote.Image(to.repo.Tag("demo-worker_1-aa"), to.with(t.Context())...)
	if err != nil {
		t.Fatal(err)
	}
	config, err := pulled.ConfigFile()
	if err != nil || config.OS != "linux" || config.Architecture != "amd64" {
		t.Errorf("the configuration is %+v, %v", config, err)
	}
	layers, err := pulled.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	var names []string
	for archive := tar.NewReader(content); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("%s %d:%d %o", h.Name, h.Uid, h.Gid, h.Mode))
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(archive)
		if err != nil || hexSum(b) != img.SHA256 {
			t.Errorf("%s has %d other bytes, %v", h.Name, len(b), err)
		}
	}
	if want := []string{"disk/ 107:107 555", "disk/demo-worker.qcow2 107:107 440"}; !slices.Equal(names, want) {
		t.Errorf("the layer has %q, want %q", names, want)
	}
}

func TestRefusalsOfTheRegistry(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		kind   error
		want   string
	}{
		{401, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, upload.ErrAuth, "UNAUTHORIZED: authentication required"},
		{403, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`, upload.ErrAuth, "DENIED: requested access to the resource is denied"},
		{403, `{"errors":[{"code":"DENIED","message":"adding 700 bytes will exceed the configured upper limit of 1 GiB"}]}`, upload.ErrSpace, "DENIED: adding 700 bytes will exceed the configured upper limit of 1 GiB"},
		{413, `too large`, upload.ErrSpace, "unexpected status code 413 Request Entity Too Large: too large"},
		{500, `{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":"no space left on device"}]}`, upload.ErrSpace, "UNKNOWN: unknown error; no space left on device"},
		{503, `busy`, upload.ErrServer, "unexpected status code 503 Service Unavailable: busy"},
	} {
		r := newRack(t, true)
		refuse := func(w http.ResponseWriter, req *http.Request) bool {
			bad := req.Method == http.MethodPost
			if bad {
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			}
			return bad
		}
		r.refuse.Store(&refuse)
		_, err := target(t, r, Artifact).Upload(t.Context(), image(t, "1-aa", 1, store.QCOW2), nil, quiet)
		if !errors.Is(err, c.kind) || err == nil || !strings.HasSuffix(err.Error(), "/blobs/uploads/: "+c.want) {
			t.Errorf("%d %s: got %v, want …%s", c.status, c.body, err, c.want)
		}
	}
}

func TestARegistryThatIsTooSlowIsATimeout(t *testing.T) {
	r := newRack(t, true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow := func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodPost {
			<-ctx.Done()
		}
		return false
	}
	r.refuse.Store(&slow)
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	_, err := target(t, r, Artifact).Upload(short, image(t, "1-aa", 1, store.QCOW2), nil, quiet)
	cancel()
	if !errors.Is(err, upload.ErrTimeout) {
		t.Errorf("Upload = %v, want that it was not done in time", err)
	}
}

func TestWithoutTLSOnlyWhenTold(t *testing.T) {
	r := newRack(t, true)
	to, err := New(Config{Repository: strings.TrimPrefix(r.URL, "http://") + "/team/images", Tries: 1, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := to.Preflight(t.Context(), image(t, "1-aa", 1, store.QCOW2)); !errors.Is(err, upload.ErrServer) {
		t.Errorf("Preflight = %v, want a refusal", err)
	}
	if _, err := (tlsOnly{}).RoundTrip(httptest.NewRequest(http.MethodGet, "http://10.0.0.1/v2/", nil)); !errors.Is(err, errPlain) {
		t.Errorf("RoundTrip = %v, want a refusal", err)
	}
}

func TestAVersionNeverChanges(t *testing.T) {
	r := newRack(t, true)
	to := target(t, r, Artifact)
	send(t, to, image(t, "1-aa", 1, store.QCOW2))
	r.changes()
	other := image(t, "1-aa", 1, store.QCOW2)
	other.SHA256 = hexSum(nil)
	for name, c := range map[string]struct {
		to  *Target
		img upload.Image
	}{
		"another disk": {to, image(t, "1-aa", 2, store.QCOW2)},
		"other bytes":  {to, other},
		"another form": {target(t, r, ContainerDisk), image(t, "1-aa", 1, store.QCOW2)},
	} {
		if _, err := c.to.Upload(t.Context(), c.img, nil, quiet); !errors.Is(err, upload.ErrTaken) {
			t.Errorf("Upload of %s = %v, want that the name is taken", name, err)
		}
	}
	if changed := r.changes(); len(changed) != 0 {
		t.Errorf("%v changed something", changed)
	}
}

func TestPromoteBackAndForthAndDelete(t *testing.T) {
	for name, referrers := range map[string]bool{"registry of today": true, "older registry": false} {
		t.Run(name, func(t *testing.T) {
			to := target(t, newRack(t, referrers), Artifact)
			one := send(t, to, image(t, "1-aa", 1, store.QCOW2))
			two := send(t, to, image(t, "2-bb", 2, store.QCOW2))
			for _, step := range []struct {
				to   upload.Object
				want string
			}{{one, "1-aa current,2-bb"}, {two, "1-aa previous,2-bb current"}, {two, "1-aa previous,2-bb current"}, {one, "1-aa current,2-bb previous"}} {
				if err := to.Promote(t.Context(), step.to); err != nil {
					t.Fatal(err)
				}
				all, err := to.List(t.Context(), "demo-worker")
				if err != nil {
					t.Fatal(err)
				}
				if got := told(all); got != step.want {
					t.Errorf("after promoting %s: %s, want %s", step.to.Version, got, step.want)
				}
			}
			if err := to.Delete(t.Context(), one); !errors.Is(err, upload.ErrInUse) {
				t.Errorf("Delete of what is current = %v, want that it is in use", err)
			}
			m, _, err := to.get(t.Context(), to.repo.Tag("demo-worker_2-bb"))
			if err != nil {
				t.Fatal(err)
			}
			mine := to.repo.Tag("prod")
			if err := remote.Put(mine, m, to.with(t.Context())...); err != nil {
				t.Fatal(err)
			}
			if err := to.Delete(t.Context(), two); !errors.Is(err, upload.ErrInUse) {
				t.Errorf("Delete of what has another's tag = %v, want that it is in use", err)
			}
			if err := remote.Delete(mine, to.with(t.Context())...); err != nil {
				t.Fatal(err)
			}
			if err := to.Delete(t.Context(), two); err != nil {
				t.Error(err)
			}
			if documents, err := to.referrers(t.Context(), m.digest); err != nil || len(documents) != 0 {
				t.Errorf("%v still refer to what was deleted, %v", documents, err)
			}
			if err := to.Delete(t.Context(), two); !errors.Is(err, upload.ErrNotFound) {
				t.Errorf("Delete of what is gone = %v, want that it is not found", err)
			}
			if err := to.Promote(t.Context(), two); !errors.Is(err, upload.ErrNotFound) {
				t.Errorf("Promote of what is gone = %v, want that it is not found", err)
			}
			all, err := to.List(t.Context(), "")
			if err != nil || told(all) != "1-aa current" {
				t.Errorf("List = %s, %v", told(all), err)
			}
		})
	}
}

func told(all []upload.Object) string {
	var out []string
	for _, o := range all {
		s := o.Version
		for word, set := range map[string]bool{" current": o.Current, " previous": o.Previous} {
			if set {
				s += word
			}
		}
		out = append(out, s)
	}
	return strings.Join(out, ",")
}

func TestWhatOthersPutThereStays(t *testing.T) {
	to := target(t, newRack(t, true), Artifact)
	o := send(t, to, image(t, "1-aa", 1, store.QCOW2))
	// Not even a manifest that we can read.
	foreign := manifest{raw: []byte(`{"schemaVersion": 2, "config": {"digest": "sha512:0"}}`)}
	foreign.Manifest.MediaType = types.OCIManifestSchema1
	for _, tag := range []string{"demo-worker", "demo-worker_0", "v1"} {
		if err := remote.Put(to.repo.Tag(tag), foreign, to.with(t.Context())...); err != nil {
			t.Fatal(err)
		}
	}
	if err := to.Promote(t.Context(), o); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("Promote = %v, want that the name is taken", err)
	}
	if all, err := to.List(t.Context(), ""); err != nil || told(all) != "1-aa" {
		t.Errorf("List = %v, %v, want ours alone", all, err)
	}
	if err := to.Delete(t.Context(), o); err != nil {
		t.Error(err)
	}
	for _, tag := range []string{"demo-worker", "demo-worker_0", "v1"} {
		if m, found, err := to.get(t.Context(), to.repo.Tag(tag)); err != nil || !found || !bytes.Equal(m.raw, foreign.raw) {
			t.Errorf("%s is %s, %v, %v", tag, m.raw, found, err)
		}
	}
	previousIsNotOurs(t, to, foreign)
}

// previousIsNotOurs has a family whose tag for what was before is somebody else's.
func previousIsNotOurs(t *testing.T, to *Target, foreign manifest) {
	t.Helper()
	of := func(version string, seed byte) upload.Object {
		img := image(t, version, seed, store.QCOW2)
		img.Name = "lab-worker"
		return send(t, to, img)
	}
	one, two := of("1-aa", 3), of("2-bb", 4)
	if err := to.Promote(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	tag := to.repo.Tag("lab-worker_previous")
	if err := remote.Put(tag, foreign, to.with(t.Context())...); err != nil {
		t.Fatal(err)
	}
	if err := to.Promote(t.Context(), two); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("Promote = %v, want that the name of the previous one is taken", err)
	}
	if m, found, err := to.get(t.Context(), tag); err != nil || !found || !bytes.Equal(m.raw, foreign.raw) {
		t.Errorf("%s is %s, %v, %v", tag, m.raw, found, err)
	}
}

func TestVerifyFindsWhatIsMissing(t *testing.T) {
	to := target(t, newRack(t, true), Artifact)
	img := image(t, "1-aa", 1, store.QCOW2)
	o := send(t, to, img)
	m, _, err := to.get(t.Context(), to.repo.Tag("demo-worker_1-aa"))
	if err != nil {
		t.Fatal(err)
	}
	documents, err := to.referrers(t.Context(), m.digest)
	if err != nil || len(documents) != 2 {
		t.Fatal(documents, err)
	}
	if err := remote.Delete(to.repo.Digest(documents[0].Digest.String()), to.with(t.Context())...); err != nil {
		t.Fatal(err)
	}
	// The same disk, another file.
	img.SHA256 = hexSum(nil)
	checks, err := to.Verify(t.Context(), o, img)
	if err != nil {
		t.Fatal(err)
	}
	var bad []string
	for _, c := range checks {
		if c.Result == upload.Bad {
			bad = append(bad, c.Name)
		}
	}
	want := []string{"digest that the registry keeps the file under", "file in the registry", documents[0].Annotations[ociTitle]}
	if diff := cmp.Diff(bad, want); diff != "" {
		t.Error(diff)
	}
}

func TestNewRefuses(t *testing.T) {
	for want, c := range map[string]Config{
		`reading the repository "images:v1"`:                         {Repository: "images:v1"},
		`reading the repository "images"`:                            {Repository: "images"},
		`reading the form "tarball": want artifact or containerdisk`: {Repository: "registry.example.net/images", Form: "tarball"},
	} {
		if _, err := New(c); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("New = %v, want %s…", err, want)
		}
	}
}

// A version that is promoted while it is deleted stays, whichever comes first.
func TestDeleteAndPromoteAtOnce(t *testing.T) {
	r := newRack(t, true)
	to := target(t, r, Artifact)
	one, two := send(t, to, image(t, "1-aa", 1, store.QCOW2)), send(t, to, image(t, "2-bb", 2, store.QCOW2))
	wants := func(now string) {
		t.Helper()
		all, err := to.List(t.Context(), "demo-worker")
		if err != nil {
			t.Fatal(err)
		}
		n := slices.IndexFunc(all, func(o upload.Object) bool { return o.Current })
		if len(all) != 2 || n < 0 || all[n].Version != now {
			t.Errorf("listed is %+v, want both versions and %s as current", all, now)
		}
	}
	// once runs f when the first request comes that fits.
	once := func(fits func(*http.Request) bool, f func()) {
		var done atomic.Bool
		at := func(_ http.ResponseWriter, req *http.Request) bool {
			if fits(req) && done.CompareAndSwap(false, true) {
				f()
			}
			return false
		}
		r.refuse.Store(&at)
	}
	if err := to.Promote(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	once(func(req *http.Request) bool { return req.Method == http.MethodDelete }, func() {
		if err := to.Promote(t.Context(), two); err != nil {
			t.Error(err)
		}
	})
	if err := to.Delete(t.Context(), two); !errors.Is(err, upload.ErrInUse) {
		t.Errorf("deleting what is promoted meanwhile: %v", err)
	}
	wants(two.Version)

	once(func(req *http.Request) bool {
		return req.Method == http.MethodPut && strings.HasSuffix(req.URL.Path, "/manifests/"+currentTag("demo-worker"))
	}, func() {
		if err := to.Delete(t.Context(), one); err != nil {
			t.Error(err)
		}
	})
	if err := to.Promote(t.Context(), one); err != nil {
		t.Errorf("promoting what is deleted meanwhile: %v", err)
	}
	wants(one.Version)
}
