package gcp

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// wait is no wait: what is waited for happens when it is asked for.
func wait(ctx context.Context, _ time.Duration) error { return ctx.Err() }

// lab has the account's key, which is slow to make.
type lab struct {
	key *rsa.PrivateKey
	pem string
}

func newLab(t *testing.T) lab {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return lab{key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
}

// credentials are a key file.
func (l lab) credentials(t *testing.T, email, url string) string {
	t.Helper()
	b, err := json.Marshal(map[string]string{"type": "service_account", "client_email": email, "private_key_id": "1", "private_key": l.pem, "token_uri": url + "/token"})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (l lab) config(t *testing.T, f *fake) Config {
	t.Helper()
	return Config{
		Project: project, Bucket: bucket, Credentials: l.credentials(t, account, f.url), Endpoint: f.url,
		Transport: http.DefaultTransport, Tries: 1, ChunkSize: 1 << 20, Wait: wait, Now: f.clock,
	}
}

func made(t *testing.T, c Config) *Target {
	t.Helper()
	to, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	to.unit = testUnit
	return to
}

// serve runs a project to which a token is known; only the suite signs in by a key.
func serve(t *testing.T) (*fake, *Target) {
	t.Helper()
	f := newFake(nil)
	f.tokens = 1
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	f.url = server.URL
	return f, made(t, Config{
		Project: project, Bucket: bucket, Credentials: "token-1\n", Endpoint: f.url,
		Transport: http.DefaultTransport, Tries: 1, ChunkSize: 1 << 20, Wait: wait, Now: f.clock,
	})
}

func (l lab) platform(t *testing.T) uploadtest.Platform {
	t.Helper()
	f := newFake(&l.key.PublicKey)
	f.url = "http://google.test"
	locked := func(do func()) {
		f.mu.Lock()
		defer f.mu.Unlock()
		do()
	}
	return uploadtest.Platform{
		RawSize: 300<<10 + 512,
		Target: func(faults *uploadtest.Faults) upload.Target {
			c := l.config(t, f)
			c.Transport = faults.Transport(uploadtest.InProcess(f))
			return made(t, c)
		},
		Patient: func(faults *uploadtest.Faults) upload.Target {
			c := l.config(t, f)
			c.Transport, c.Tries = faults.Transport(uploadtest.InProcess(f)), 5
			return made(t, c)
		},
		// What makes something may not be made twice, and the sign-in is not ours.
		Repeats: func(r *http.Request) bool {
			return r.Method != http.MethodPost || strings.HasPrefix(r.URL.Path, "/upload/")
		},
		Stranger: func() upload.Target {
			c := l.config(t, f)
			c.Transport, c.Credentials = uploadtest.InProcess(f), l.credentials(t, "stranger@elsewhere", f.url)
			return made(t, c)
		},
		Leftovers: func() (all []string, err error) {
			locked(func() {
				for name, i := range f.images {
					if i.str("labels", "imagectl") == "1" {
						all = append(all, name)
					}
				}
				for name := range f.files {
					if strings.HasPrefix(name, objectPrefix) {
						all = append(all, name)
					}
				}
			})
			return all, nil
		},
		Plant: func() func() error {
			locked(func() {
				f.images["theirs"] = &fakeImage{doc: map[string]any{"name": "theirs", "family": "prod-worker", "status": "READY", "creationTimestamp": f.now.Add(-time.Hour).Format(time.RFC3339)}}
				f.files["backup.tar.gz"] = &fakeFile{}
			})
			return func() (err error) {
				locked(func() {
					if f.images["theirs"] == nil || f.images["theirs"].str("deprecated", "state") != "" || f.files["backup.tar.gz"] == nil {
						err = errors.New("something of theirs is gone or changed")
					}
				})
				return err
			}
		},
		Quota: func() { locked(func() { f.full = true }) },
		Use: func(o upload.Object) error {
			locked(func() { f.disks = append(f.disks, f.url+prefix+"global/images/"+o.ID) })
			return nil
		},
		Absent: map[uploadtest.Case]string{
			uploadtest.Forgotten: "TestAFileThatNobodyFinishedIsBroken has it",
			uploadtest.Options:   "an image has no options of ours: what a machine is like is said when it is made",
			uploadtest.Full:      "Google names no place that could be full: what ends is a quota",
			uploadtest.CalledOff: "images.insert works on by itself once it is asked, and the stand-in is done when it is asked how far it is; that an upload breaks off there is among the faults, which Settle ends",
		},
		Unprovable: []string{"stored bytes"},
		Settle: func() {
			locked(func() {
				for _, i := range f.images {
					i.looks = min(i.looks, 0)
				}
				for _, o := range f.operations {
					f.finish(o)
				}
			})
		},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	uploadtest.Run(t, newLab(t).platform)
}

func quiet(upload.Event) {}

// large is an image whose file is sent in several chunks.
func large(t *testing.T, target *Target) upload.Image {
	t.Helper()
	target.conf.ChunkSize = 2 * chunkUnit
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	b := make([]byte, 1<<20)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	if _, err := img.File.WriteAt(b, 1<<20); err != nil {
		t.Fatal(err)
	}
	return img
}

// part makes a session that has the first chunks of a file, as a broken upload
// leaves it.
func part(t *testing.T, f *fake, target *Target, img upload.Image, j *uploadtest.Journal) *fakeSession {
	t.Helper()
	left := upload.Leftover{Kind: leftObject, Name: objectPrefix + "begun.tar.gz"}
	session, err := target.begin(t.Context(), img, left.Name)
	if err != nil {
		t.Fatal(err)
	}
	left.Note = session
	if err := j.Write(left); err != nil {
		t.Fatal(err)
	}
	var body body
	if err := archive(t.Context(), &body, img, testUnit); err != nil {
		t.Fatal(err)
	}
	s := f.sessions[session[strings.LastIndexByte(session, '=')+1:]]
	s.body = body[:3*chunkUnit]
	return s
}

type body []byte

func (b *body) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

func TestABrokenUploadGoesOnWhereStorageSays(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		keep  int // of a chunk, at most
		spoil func(*fakeSession)
		want  bool // that all is sent again
		fails bool
	}{
		{name: "as it was"},
		{name: "storage keeps half of a chunk", keep: chunkUnit},
		{name: "the session is gone", spoil: func(s *fakeSession) { s.name = "" }, want: true},
		{name: "other bytes are there", spoil: func(s *fakeSession) { s.body[77] ^= 1 }, fails: true},
	} {
		f, target := serve(t)
		img, j := large(t, target), &uploadtest.Journal{}
		s := part(t, f, target, img, j)
		f.keep = tt.keep
		if tt.spoil != nil {
			tt.spoil(s)
		}
		if s.name == "" {
			clear(f.sessions)
		}
		_, err := target.Upload(t.Context(), img, j, quiet)
		if tt.fails {
			if !errors.Is(err, errDiffers) || len(f.files) != 0 || len(j.Left()) != 0 {
				t.Errorf("%s: got %v, and %d files are left", tt.name, err, len(f.files))
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var all body
		if err := archive(t.Context(), &all, img, testUnit); err != nil {
			t.Fatal(err)
		}
		want := int64(len(all))
		if !tt.want {
			want -= 3 * chunkUnit
		}
		if tt.keep == 0 && f.sent != want || f.sent < want {
			t.Errorf("%s: sent were %d bytes, want %d", tt.name, f.sent, want)
		}
		if len(f.files) != 0 || len(j.Left()) != 0 {
			t.Errorf("%s: left are %d files and %v", tt.name, len(f.files), j.Left())
		}
	}
}

func TestWhatStorageHasIsCompared(t *testing.T) {
	t.Parallel()
	_, target := serve(t)
	img := large(t, target)
	var all body
	if err := archive(t.Context(), &all, img, testUnit); err != nil {
		t.Fatal(err)
	}
	file := fakeFile{body: all}
	right := object{Size: int64(len(all)), CRC32C: file.doc("")["crc32c"].(string)}
	file.body[len(all)/2] ^= 1
	for _, tt := range []struct {
		name string
		o    object
		want error
	}{
		{"what was sent", right, nil},
		{"another byte", object{Size: right.Size, CRC32C: file.doc("")["crc32c"].(string)}, errDiffers},
		{"another length", object{Size: right.Size - 1, CRC32C: right.CRC32C}, errDiffers},
		{"no digest", object{Size: right.Size}, errDiffers},
	} {
		if _, err := target.send(t.Context(), img, "", stand{done: &tt.o}, quiet); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestThrottlingIsWaitedFor(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	target.api.Tries = 5
	waited := time.Duration(0)
	target.api.Wait = func(ctx context.Context, d time.Duration) error {
		waited += d
		return ctx.Err()
	}
	f.throttle = 4
	if _, err := target.List(t.Context(), ""); err != nil || waited != 15*time.Second {
		t.Errorf("after a wait of %s: %v", waited, err)
	}
	f.throttle = 5
	if _, err := target.List(t.Context(), ""); !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "rateLimitExceeded: Google says") {
		t.Errorf("got %v, want ErrServer in Google's words", err)
	}
}

func TestWhatIsNotOursIsLeftAlone(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	theirs := &fakeImage{doc: map[string]any{"name": imageName(img), "family": "prod-worker", "status": "READY", "creationTimestamp": f.now.Add(time.Hour).Format(time.RFC3339)}}
	f.images[imageName(img)] = theirs
	if _, err := target.Preflight(t.Context(), img); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("a taken name: %v, want ErrTaken", err)
	}
	if err := target.Delete(t.Context(), upload.Object{ID: imageName(img)}); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("deleting theirs: %v, want ErrTaken", err)
	}
	delete(f.images, imageName(img))
	o, err := target.Upload(t.Context(), img, &uploadtest.Journal{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	theirs.doc["name"] = "theirs"
	f.images["theirs"] = theirs
	if err := target.Promote(t.Context(), o); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("promoting below theirs: %v, want ErrTaken", err)
	}
	delete(f.images, "theirs")
	if err := target.Promote(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := target.Delete(t.Context(), o); !errors.Is(err, upload.ErrInUse) {
		t.Errorf("deleting what is current: %v, want ErrInUse", err)
	}
	f.files["imagectl/theirs.tar.gz"] = &fakeFile{created: f.now}
	if err := target.Delete(t.Context(), upload.Object{ID: "files/imagectl/theirs.tar.gz"}); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("deleting their file: %v, want ErrTaken", err)
	}
}

func TestAFileThatNobodyFinishedIsBroken(t *testing.T) {
	t.Parallel()
	f, target := serve(t)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	if _, err := target.file(t.Context(), img, &uploadtest.Journal{}, quiet); err != nil {
		t.Fatal(err)
	}
	if all, err := target.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("at once: %+v %v, want nothing", all, err)
	}
	f.now = f.now.Add(abandoned + time.Hour)
	all, err := target.List(t.Context(), "prod-worker")
	if err != nil || len(all) != 1 || !all[0].Broken || all[0].Digest != img.Digest {
		t.Fatalf("a day later: %+v %v", all, err)
	}
	if err := target.Delete(t.Context(), all[0]); err != nil || len(f.files) != 0 {
		t.Errorf("deleting it: %v, %d are left", err, len(f.files))
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	digest := strings.Repeat("0123456789abcdef", 4)
	for _, tt := range []struct{ name, version, want string }{
		{"prod-worker", "4593.2.1-01234567", "prod-worker-4593-2-1-01234567"},
		{"prod-worker", "4593.0.0+Nightly-01234567", "prod-worker-4593-0-0-nightly-01234567"},
		{strings.Repeat("a", 45) + "-b", "4593.2.1-01234567", strings.Repeat("a", 45) + "-0123456789abcdef"},
	} {
		got := imageName(upload.Image{Name: tt.name, Version: tt.version, Digest: digest})
		if got != tt.want || !familyName.MatchString(got) {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
	if err := fits(upload.Image{Name: "9-worker"}); err == nil {
		t.Error("a family may begin with a digit")
	}
}

func TestSettingsThatCannotBeRight(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no project", func(c *Config) { c.Project = "" }, `reading the project "": want a project's ID`},
		{"a URL for a bucket", func(c *Config) { c.Bucket = "gs://x" }, `reading the bucket "gs://x": want a bucket's name`},
		{"nothing to sign in with", func(c *Config) { c.Credentials = "\n" }, "reading the credentials: they are empty"},
		{"a user's credentials", func(c *Config) { c.Credentials = `{"type":"authorized_user"}` }, `reading the credentials: want a token or the key file of a service account; its type is "authorized_user"`},
		{"a key that is none", func(c *Config) { c.Credentials = strings.Replace(c.Credentials, "-----BEGIN", "-----", 1) }, "reading the key of " + account + ": it is not in PEM form"},
		{"another architecture", func(c *Config) { c.Arch = "arm64" }, `reading the architecture "arm64": want X86_64 or ARM64`},
		{"chunks that storage refuses", func(c *Config) { c.ChunkSize = 1000 }, "reading the size 1000 of chunks: want a multiple of 262144"},
		{"an endpoint with a path", func(c *Config) { c.Endpoint = "https://x/compute" }, `reading the endpoint "https://x/compute": want http:// or https://, a host and no path`},
	} {
		c := l.config(t, newFake(&l.key.PublicKey))
		c.Endpoint = ""
		tt.change(&c)
		if _, err := New(c); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}
