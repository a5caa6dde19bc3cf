package s3

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// The library waits a moment before it gives up, too, hundreds of times here.
func TestMain(m *testing.M) {
	minio.DefaultRetryUnit, minio.DefaultRetryCap = time.Millisecond, time.Millisecond
	os.Exit(m.Run())
}

// partSize is small enough for several parts; only real stores insist on 5 MiB.
const partSize = 64 << 10

func serve(t *testing.T, f *fake) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return server
}

func target(t *testing.T, f *fake, url string) *Target {
	t.Helper()
	got, err := New(Config{Endpoint: url, Bucket: bucket, AccessKey: accessKey, SecretKey: "secret", Tries: 1, Looks: 1, PartSize: partSize,
		Now: func() time.Time { f.mu.Lock(); defer f.mu.Unlock(); return f.now }})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// image has five parts; different seeds are different disks.
func image(t *testing.T, version string, seed byte) upload.Image {
	t.Helper()
	dir := t.TempDir()
	content := bytes.Repeat([]byte{seed, 1, 2, 3, 5, 8, 13}, 4*partSize/7+1000)
	for i := range content {
		content[i] += byte(i >> 16)
	}
	at := filepath.Join(dir, "demo-worker.qcow2")
	write(t, at, content)
	write(t, filepath.Join(dir, "SHA256SUMS"), []byte("sums\n"))
	f, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return upload.Image{
		Name: "demo-worker", Version: version, Digest: hexSum([]byte{seed}), Format: store.QCOW2, File: f,
		Size: int64(len(content)), SHA256: hexSum(content), RawSize: 1 << 30, Labels: map[string]string{"flatcar": "4593.2.1"},
		Documents: []upload.Document{{Kind: upload.Sums, Path: filepath.Join(dir, "SHA256SUMS")}},
	}
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// notes is a journal that is forgotten with the test.
type notes struct {
	mu   sync.Mutex
	left []upload.Leftover
}

func (n *notes) Left() []upload.Leftover {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.left)
}

func (n *notes) Write(l upload.Leftover) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left = append(slices.DeleteFunc(n.left, func(o upload.Leftover) bool { return o.Kind == l.Kind && o.Name == l.Name }), l)
	return nil
}

func (n *notes) Forget(l upload.Leftover) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left = slices.DeleteFunc(n.left, func(o upload.Leftover) bool { return o.Kind == l.Kind && o.Name == l.Name })
	return nil
}

func quiet(upload.Event) {}

func send(t *testing.T, to *Target, img upload.Image) upload.Object {
	t.Helper()
	j := &notes{}
	o, err := to.Upload(t.Context(), img, j, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if left := j.Left(); len(left) > 0 {
		t.Errorf("the journal of a finished upload has %v", left)
	}
	return o
}

func (f *fake) keys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.objects))
}

func (f *fake) sent() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	got := f.puts
	f.puts = nil
	return got
}

func TestASecondUploadSendsNothing(t *testing.T) {
	f := newFake()
	to := target(t, f, serve(t, f).URL)
	img := image(t, "1-aa", 1)
	o := send(t, to, img)
	want := []string{
		"images/demo-worker/1-aa/SHA256SUMS",
		"images/demo-worker/1-aa/demo-worker.qcow2",
		"images/demo-worker/1-aa/image.json",
	}
	if diff := cmp.Diff(f.keys(), want); diff != "" {
		t.Error(diff)
	}
	if got := f.objects[want[1]].body; hexSum(got) != img.SHA256 {
		t.Errorf("the store has %d other bytes, want the file's %d", len(got), img.Size)
	}
	if sent := f.sent(); !strings.HasSuffix(sent[len(sent)-1], recordName) {
		t.Errorf("the record is not the last that was sent: %v", sent)
	}
	plan, err := to.Preflight(t.Context(), img)
	if err != nil || plan.Found == nil || plan.Found.ID != o.ID || len(plan.Steps) != 0 {
		t.Errorf("Preflight = %+v, %v, want what is there and no steps", plan, err)
	}
	if again := send(t, to, img); again != o {
		t.Errorf("the second upload gives %+v, want %+v", again, o)
	}
	if sent := f.sent(); len(sent) != 0 {
		t.Errorf("the second upload sent %v", sent)
	}
}

func TestAnUploadGoesOnWithThePartsThatAreMissing(t *testing.T) {
	for name, plain := range map[string]bool{"store with checksums": false, "store without": true} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.plain = plain
			to := target(t, f, serve(t, f).URL)
			img := image(t, "1-aa", 1)
			f.refuse = func(w http.ResponseWriter, r *http.Request) bool {
				bad := r.URL.Query().Get("partNumber") == "3"
				if bad {
					complain(w, http.StatusInternalServerError, "InternalError")
				}
				return bad
			}
			j := &notes{}
			if _, err := to.Upload(t.Context(), img, j, quiet); !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "the store says InternalError") {
				t.Fatalf("Upload = %v, want the store's failure", err)
			}
			before := f.sent()
			f.refuse = nil
			plan, err := to.Preflight(t.Context(), img)
			if err != nil || len(plan.Steps) == 0 || !strings.HasPrefix(plan.Steps[0], "go on sending") {
				t.Errorf("Preflight = %+v, %v, want it to go on", plan, err)
			}
			// Another machine, whose journal is empty.
			send(t, to, img)
			for _, part := range f.sent() {
				if strings.Contains(part, "#") && slices.Contains(before, part) {
					t.Errorf("%s was sent twice", part)
				}
			}
			if len(f.uploads) != 0 {
				t.Errorf("%d multipart uploads are left", len(f.uploads))
			}
			if got := f.objects["images/demo-worker/1-aa/demo-worker.qcow2"].body; hexSum(got) != img.SHA256 {
				t.Error("the store has other bytes")
			}
		})
	}
}

func TestRefusalsOfTheStore(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		kind   error
		want   string
	}{
		{403, "InvalidAccessKeyId", upload.ErrAuth, "not allowed: InvalidAccessKeyId: the store says InvalidAccessKeyId"},
		{403, "SignatureDoesNotMatch", upload.ErrAuth, "not allowed: SignatureDoesNotMatch: the store says SignatureDoesNotMatch"},
		{403, "RequestTimeTooSkewed", upload.ErrAuth, "not allowed: RequestTimeTooSkewed: the store says RequestTimeTooSkewed (the clock of this machine or the store's is wrong)"},
		{400, "QuotaExceeded", upload.ErrSpace, "no space: QuotaExceeded: the store says QuotaExceeded"},
		{400, "XMinioAdminBucketQuotaExceeded", upload.ErrSpace, "no space: XMinioAdminBucketQuotaExceeded: the store says XMinioAdminBucketQuotaExceeded"},
		{507, "XMinioStorageFull", upload.ErrSpace, "no space: XMinioStorageFull: the store says XMinioStorageFull"},
		{503, "SlowDown", upload.ErrServer, "server failed: 503 Service Unavailable: SlowDown: the store says SlowDown"},
		{404, "NoSuchBucket", upload.ErrNotFound, "not found: NoSuchBucket: the store says NoSuchBucket (make the bucket first)"},
	} {
		f := newFake()
		f.refuse = func(w http.ResponseWriter, r *http.Request) bool {
			bad := r.URL.Query().Has("partNumber")
			if bad {
				complain(w, c.status, c.code)
			}
			return bad
		}
		_, err := target(t, f, serve(t, f).URL).Upload(t.Context(), image(t, "1-aa", 1), &notes{}, quiet)
		if !errors.Is(err, c.kind) || err == nil || !strings.HasSuffix(err.Error(), "of images/demo-worker/1-aa/demo-worker.qcow2: "+c.want) {
			t.Errorf("%s: got %v, want …%s", c.code, err, c.want)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	f := newFake()
	server := serve(t, f)
	to := target(t, f, server.URL)
	server.Close()
	if _, err := to.Preflight(t.Context(), image(t, "1-aa", 1)); !errors.Is(err, upload.ErrServer) {
		t.Errorf("Preflight = %v, want a failure of the server", err)
	}
}

func TestAStoreThatIsTooSlowIsATimeout(t *testing.T) {
	f := newFake()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.refuse = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Has("partNumber") {
			<-ctx.Done()
		}
		return false
	}
	to, j := target(t, f, serve(t, f).URL), &notes{}
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	_, err := to.Upload(short, image(t, "1-aa", 1), j, quiet)
	cancel()
	if !errors.Is(err, upload.ErrTimeout) {
		t.Errorf("Upload = %v, want that it was not done in time", err)
	}
}

func TestTwoUploadsOfTheSameImageAtOnce(t *testing.T) {
	f := newFake()
	url := serve(t, f).URL
	img := image(t, "1-aa", 1)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			// What one ended under the hands of another is run again, as it says.
			for range 4 {
				_, err := target(t, f, url).Upload(t.Context(), img, &notes{}, quiet)
				if err == nil {
					return
				}
				if !strings.Contains(err.Error(), "run it again") {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	all, err := target(t, f, url).List(t.Context(), "")
	if err != nil || len(all) != 1 {
		t.Errorf("List = %v, %v, want one", all, err)
	}
}

func TestAVersionNeverChanges(t *testing.T) {
	f := newFake()
	to := target(t, f, serve(t, f).URL)
	send(t, to, image(t, "1-aa", 1))
	if _, err := to.Upload(t.Context(), image(t, "1-aa", 2), &notes{}, quiet); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("Upload of another disk = %v, want that the name is taken", err)
	}
	f.sent()
	other := image(t, "1-aa", 1)
	other.SHA256 = hexSum(nil)
	if _, err := to.Upload(t.Context(), other, &notes{}, quiet); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("Upload of other bytes = %v, want that the name is taken", err)
	}
	if sent := f.sent(); len(sent) != 0 {
		t.Errorf("%v were sent", sent)
	}
}

// Somebody ends our upload and puts something of his own under its name: that is his.
func TestWhatOthersPutUnderTheNameStays(t *testing.T) {
	f := newFake()
	to := target(t, f, serve(t, f).URL)
	const key = "images/demo-worker/1-aa/demo-worker.qcow2"
	f.refuse = func(w http.ResponseWriter, r *http.Request) bool {
		last := r.Method == http.MethodPost && r.URL.Query().Has("uploadId")
		if last {
			f.mu.Lock()
			defer f.mu.Unlock()
			clear(f.uploads)
			f.objects[key] = f.keep([]byte("theirs"), http.Header{})
			complain(w, http.StatusNotFound, "NoSuchUpload")
		}
		return last
	}
	if _, err := to.Upload(t.Context(), image(t, "1-aa", 1), &notes{}, quiet); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("Upload = %v, want that the name is taken", err)
	}
	if got := string(f.objects[key].body); got != "theirs" {
		t.Errorf("there is %q now", got)
	}
}

func TestPromoteBackAndForth(t *testing.T) {
	for name, plain := range map[string]bool{"store with conditions": false, "store without": true} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.plain = plain
			to := target(t, f, serve(t, f).URL)
			one := send(t, to, image(t, "1-aa", 1))
			f.now = f.now.Add(time.Hour)
			two := send(t, to, image(t, "2-bb", 2))
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
			if err := to.Delete(t.Context(), two); err != nil {
				t.Error(err)
			}
			if err := to.Delete(t.Context(), two); !errors.Is(err, upload.ErrNotFound) {
				t.Errorf("Delete of what is gone = %v, want that it is not found", err)
			}
			if err := to.Promote(t.Context(), two); !errors.Is(err, upload.ErrNotFound) {
				t.Errorf("Promote of what is gone = %v, want that it is not found", err)
			}
		})
	}
}

func told(all []upload.Object) string {
	var out []string
	for _, o := range all {
		s := o.Version
		for word, set := range map[string]bool{" current": o.Current, " previous": o.Previous, " broken": o.Broken} {
			if set {
				s += word
			}
		}
		out = append(out, s)
	}
	return strings.Join(out, ",")
}

func TestAPointerOfSomebodyElseStays(t *testing.T) {
	f := newFake()
	to := target(t, f, serve(t, f).URL)
	o := send(t, to, image(t, "1-aa", 1))
	f.objects["images/demo-worker/latest.json"] = kept{body: []byte(`{"release": 7}`), etag: "x"}
	if err := to.Promote(t.Context(), o); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("Promote = %v, want that the name is taken", err)
	}
	if got := string(f.objects["images/demo-worker/latest.json"].body); got != `{"release": 7}` {
		t.Errorf("latest.json is %s", got)
	}
}

func TestPromotersMeet(t *testing.T) {
	f := newFake()
	to := target(t, f, serve(t, f).URL)
	one, two := send(t, to, image(t, "1-aa", 1)), send(t, to, image(t, "2-bb", 2))
	// Between reading and writing, another promoter writes.
	var once sync.Once
	f.refuse = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, pointerName) {
			once.Do(func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				f.objects["images/demo-worker/latest.json"] = f.keep([]byte(`{"imagectl":1,"name":"demo-worker","version":"1-aa"}`), nil)
			})
		}
		return false
	}
	if err := to.Promote(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	all, err := to.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if got := told(all); got != "1-aa previous,2-bb current" {
		t.Errorf("got %s; the other promoter's %s is not what was before", got, one.Version)
	}
}

func TestWhatNobodyFinishesIsBrokenAfterADay(t *testing.T) {
	f := newFake()
	to := target(t, f, serve(t, f).URL)
	f.refuse = func(w http.ResponseWriter, r *http.Request) bool {
		bad := strings.HasSuffix(r.URL.Path, recordName) && r.Method == http.MethodPut
		if bad {
			complain(w, http.StatusServiceUnavailable, "SlowDown")
		}
		return bad
	}
	if _, err := to.Upload(t.Context(), image(t, "1-aa", 1), &notes{}, quiet); !errors.Is(err, upload.ErrServer) {
		t.Fatal(err)
	}
	f.refuse = nil
	f.uploads["others"] = &growing{key: "images/photos/2026/cat.png", parts: map[int]kept{}, at: f.now}
	f.uploads["stale"] = &growing{key: "images/demo-worker/2-bbbbbbbb/demo-worker.qcow2", parts: map[int]kept{}, at: f.now}
	if all, err := to.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("List = %v, %v, want nothing while it may be going on", all, err)
	}
	f.now = f.now.Add(25 * time.Hour)
	all, err := to.List(t.Context(), "")
	if err != nil || told(all) != "1-aa broken,2-bbbbbbbb broken" {
		t.Fatalf("List = %s, %v, want two broken ones", told(all), err)
	}
	for _, o := range all {
		if err := to.Delete(t.Context(), o); err != nil {
			t.Error(err)
		}
	}
	if len(f.keys()) != 0 || len(f.uploads) != 1 || f.uploads["others"] == nil {
		t.Errorf("%v and %d multipart uploads are left", f.keys(), len(f.uploads))
	}
}

func TestVerify(t *testing.T) {
	const key = "images/demo-worker/1-aa/demo-worker.qcow2"
	for name, c := range map[string]struct {
		plain bool
		spoil func(*kept)
		want  map[string]upload.Result
	}{
		"all is well":          {},
		"another size":         {spoil: func(k *kept) { k.body = k.body[1:] }, want: map[string]upload.Result{"size of the file": upload.Bad}},
		"another sum":          {spoil: func(k *kept) { k.sum = "other-5" }, want: map[string]upload.Result{"SHA-256 of the parts, computed by the store": upload.Bad}},
		"another label":        {spoil: func(k *kept) { k.header.Set("X-Amz-Meta-File-Digest", "sha256:0") }, want: map[string]upload.Result{"label of the file": upload.Bad}},
		"a store without sums": {plain: true, want: map[string]upload.Result{"SHA-256 of the parts, computed by the store": upload.Unprovable}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.plain = c.plain
			to := target(t, f, serve(t, f).URL)
			img := image(t, "1-aa", 1)
			o := send(t, to, img)
			if k := f.objects[key]; c.spoil != nil {
				c.spoil(&k)
				f.objects[key] = k
			}
			checks, err := to.Verify(t.Context(), o, img)
			if err != nil || len(checks) != 6 {
				t.Fatalf("Verify = %v, %v, want six checks", checks, err)
			}
			for _, check := range checks {
				want, special := c.want[check.Name]
				if !special {
					want = upload.Good
				}
				if check.Result != want {
					t.Errorf("%s: %s (%s), want %s", check.Name, check.Result, check.Detail, want)
				}
			}
		})
	}
}

func TestPartsFitTheLimit(t *testing.T) {
	for _, c := range []struct{ size, want int64 }{
		{1, 16 << 20}, {10_000 * 16 << 20, 16 << 20}, {10_000*16<<20 + 1, 17 << 20}, {5 << 40, 525 << 20},
	} {
		if got := partSizeFor(c.size, 16<<20); got != c.want || partCount(c.size, got) > maxParts {
			t.Errorf("partSizeFor(%d) = %d with %d parts, want %d", c.size, got, partCount(c.size, got), c.want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{Endpoint: "https://s3.example.net", Bucket: bucket, AccessKey: "a", SecretKey: "b"}
	for want, spoil := range map[string]func(*Config){
		`reading the store's endpoint "s3.example.net": want http:// or https://, a host and no path; the bucket has a field of its own`:           func(c *Config) { c.Endpoint = "s3.example.net" },
		`reading the store's endpoint "https://s3.example.net/b": want http:// or https://, a host and no path; the bucket has a field of its own`: func(c *Config) { c.Endpoint += "/b" },
		`reading the store's bucket: there is none`:                   func(c *Config) { c.Bucket = "" },
		`reading the store's keys: access key or secret key is empty`: func(c *Config) { c.SecretKey = "" },
	} {
		c := good
		spoil(&c)
		if _, err := New(c); err == nil || err.Error() != want {
			t.Errorf("New = %v, want %s", err, want)
		}
	}
}
