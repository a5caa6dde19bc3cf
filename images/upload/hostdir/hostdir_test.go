package hostdir_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/hostdir"
	"github.com/imagectl/imagectl/images/upload/opennebula"
	"github.com/imagectl/imagectl/images/upload/opennebula/onedtest"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

func (s *server) config() hostdir.Config {
	return hostdir.Config{
		Endpoint: "ssh://oneadmin@" + s.listen.Addr().String() + s.dir, HostKey: string(ssh.MarshalAuthorizedKey(s.host.PublicKey())),
		Auth: []ssh.AuthMethod{ssh.PublicKeys(s.user)}, Dial: (&net.Dialer{}).DialContext,
	}
}

func source(t testing.TB, c hostdir.Config) *hostdir.Source {
	t.Helper()
	s, err := hostdir.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// files are the names in a directory.
func files(t testing.TB, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// conformance runs the suite with OpenNebula, whose front-end reads the directory.
func conformance(t *testing.T, start func(t *testing.T) (conf hostdir.Config, dir string, watch func(*uploadtest.Faults))) {
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		one := onedtest.Start(t)
		conf, dir, watch := start(t)
		target := func(f *uploadtest.Faults, session string) upload.Target {
			c := conf
			c.Dial = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
				ferr := f.Call(ctx, func() error {
					conn, err = conf.Dial(ctx, network, address)
					return err
				})
				if conn == nil {
					return nil, ferr
				}
				if ferr != nil {
					conn.Close()
				}
				return f.Conn(conn), ferr
			}
			watch(f)
			return opennebula.New(opennebula.Config{
				Endpoint: one.URL, Session: session, Datastore: onedtest.Datastore, Source: source(t, c),
				Client: &http.Client{Transport: f.Transport(http.DefaultTransport)},
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
				return append(one.Images(onedtest.Session), files(t, dir)...), nil
			},
			Plant: one.Plant, Fill: func() { one.Fill(0) }, Quota: func() { one.Quota(0) },
			Use:    func(o upload.Object) error { return one.Use(o.ID) },
			Settle: one.Settle,
			Absent: map[uploadtest.Case]string{
				uploadtest.Forgotten: "what is staged is not looked for (docs/upload.md)",
				uploadtest.Options:   "OpenNebula's own suite has it",
				uploadtest.Storm:     "OpenNebula's own suite has it",
				uploadtest.CalledOff: "OpenNebula's own suite has it; here the file would be there still, and the import end well",
			},
			Unprovable: []string{"stored bytes"},
			Slow:       true, RawSize: 300<<10 + 512,
		}
	})
}

func TestConformance(t *testing.T) {
	t.Parallel()
	conformance(t, func(t *testing.T) (hostdir.Config, string, func(*uploadtest.Faults)) {
		s := newServer(t)
		return s.config(), s.dir, func(f *uploadtest.Faults) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.faults = cmp.Or(s.faults, f)
		}
	})
}

func quiet(upload.Event) {}

func TestFileIsReadableUntilItIsReleased(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	c := s.config()
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	b, err := os.ReadFile(img.File.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"", "https://mirror.example.org/images/"} {
		c.URL = url
		j := &uploadtest.Journal{}
		at, release, err := source(t, c).Stage(t.Context(), upload.Wanted{Name: "a.qcow2", Image: img}, j, quiet)
		if err != nil {
			t.Fatal(err)
		}
		name, ok := strings.CutPrefix(at, cmp.Or(url, s.dir+"/"))
		if !ok || !strings.HasSuffix(name, "-a.qcow2") || len(name) < 26+len("-a.qcow2") {
			t.Errorf("with the URL %q it is at %s", url, at)
		}
		path := filepath.Join(s.dir, name)
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b) {
			t.Errorf("there are %d bytes, %v", len(got), err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o644 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		if left := j.Left(); len(left) != 1 || left[0].Name != path {
			t.Errorf("the journal has %v", left)
		}
		release()
		if left := files(t, s.dir); len(left)+len(j.Left()) > 0 {
			t.Errorf("left are %v and %v", left, j.Left())
		}
	}
}

// A run that was called off leaves the file, and the next one goes on with it.
func TestNextRunGoesOnWithTheFile(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	src := source(t, s.config())
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	j := &uploadtest.Journal{}
	ctx, cancel := context.WithCancel(t.Context())
	first, release, err := src.Stage(ctx, upload.Wanted{Name: "a.qcow2", Image: img}, j, quiet)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	release()
	var sent int64
	second, release, err := src.Stage(t.Context(), upload.Wanted{Name: "a.qcow2", Image: img}, j, func(e upload.Event) { sent += e.Done })
	if err != nil || second != first || sent > 0 {
		t.Errorf("first %s, then %s with %d bytes, %v", first, second, sent, err)
	}
	release()
	if left := files(t, s.dir); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}

// What another imagectl made of the same disk may be of another size, and is in the way.
func TestNextRunReplacesAnotherFileOfTheSameDisk(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	src := source(t, s.config())
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	j := &uploadtest.Journal{}
	ctx, cancel := context.WithCancel(t.Context())
	first, release, err := src.Stage(ctx, upload.Wanted{Name: "a.qcow2", Image: img}, j, quiet)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	release()
	if err := os.WriteFile(first, []byte("made by another"), 0o600); err != nil {
		t.Fatal(err)
	}
	second, release, err := src.Stage(t.Context(), upload.Wanted{Name: "a.qcow2", Image: img}, j, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	want, err := os.ReadFile(img.File.Name())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(second); err != nil || second != first || !bytes.Equal(got, want) {
		t.Errorf("first %s, then %s with %d bytes, %v", first, second, len(got), err)
	}
}

func TestWhatDoesNotArriveIsSaid(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.short = true
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	_, _, err := source(t, s.config()).Stage(t.Context(), upload.Wanted{Name: "a.qcow2", Image: img}, &uploadtest.Journal{}, quiet)
	want := fmt.Sprintf("-a.qcow2.part has %d bytes there, and %d were sent", img.Size-1, img.Size)
	if !errors.Is(err, upload.ErrServer) || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestHostThatIsAnotherIsRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	for _, tt := range []struct {
		name   string
		change func(c *hostdir.Config)
		kind   error
		want   string
	}{
		{"another host key", func(c *hostdir.Config) { c.HostKey = string(ssh.MarshalAuthorizedKey(newKey(t).PublicKey())) }, upload.ErrAuth, "the host's key is not the pinned one: it is " + ssh.FingerprintSHA256(s.host.PublicKey())},
		{"another user's key", func(c *hostdir.Config) { c.Auth = []ssh.AuthMethod{ssh.PublicKeys(newKey(t))} }, upload.ErrAuth, "unable to authenticate"},
		{"another directory", func(c *hostdir.Config) { c.Endpoint += "/below" }, upload.ErrAuth, "permission denied"},
	} {
		c := s.config()
		tt.change(&c)
		j := &uploadtest.Journal{}
		_, _, err := source(t, c).Stage(t.Context(), upload.Wanted{Name: "a.qcow2", Image: img}, j, quiet)
		if !errors.Is(err, tt.kind) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(tt.want)) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
	if left := files(t, s.dir); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}

func TestFullHostIsCleanedUp(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.full = true
	src := source(t, s.config())
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	j := &uploadtest.Journal{}
	if _, _, err := src.Stage(t.Context(), upload.Wanted{Name: "a.qcow2", Image: img}, j, quiet); !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("got %v", err)
	}
	for _, l := range j.Left() {
		if mine, err := src.Clean(t.Context(), l); !mine || err != nil {
			t.Errorf("cleaning %v: %t, %v", l, mine, err)
		}
	}
	if left := files(t, s.dir); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}

func TestNothingElseIsCleaned(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	src := source(t, s.config())
	// Only files of the test's own: what is wrong here would be gone.
	elsewhere := filepath.Join(t.TempDir(), strings.Repeat("x", 40))
	for _, path := range []string{filepath.Join(s.dir, "notes"), elsewhere} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{s.dir + "/notes", elsewhere, s.dir + "/../" + strings.Repeat("x", 40), s.dir} {
		if mine, err := src.Clean(t.Context(), upload.Leftover{Kind: "staged file", Name: name}); !mine || err == nil {
			t.Errorf("%s: %t, %v", name, mine, err)
		}
	}
	if mine, _ := src.Clean(t.Context(), upload.Leftover{Kind: "image"}); mine {
		t.Error("an image is cleaned")
	}
	if left := files(t, s.dir); len(left) != 1 {
		t.Errorf("there is %v", left)
	}
	if _, err := os.Stat(elsewhere); err != nil {
		t.Error(err)
	}
}

func TestConfigThatIsRefused(t *testing.T) {
	t.Parallel()
	good := string(ssh.MarshalAuthorizedKey(newKey(t).PublicKey()))
	for _, tt := range []struct{ endpoint, key, url, want string }{
		{"https://a@b/c", good, "", "reading the endpoint: want ssh://USER@HOST[:PORT]/DIRECTORY"},
		{"ssh://b/c", good, "", "reading the endpoint: want ssh://USER@HOST[:PORT]/DIRECTORY"},
		{"ssh://a@b/", good, "", "reading the endpoint: want ssh://USER@HOST[:PORT]/DIRECTORY"},
		{"ssh://a:secret@b/c", good, "", "reading the endpoint: it must not carry a password; want ssh://USER@HOST[:PORT]/DIRECTORY"},
		{"ssh://a@b/c", "", "", `reading the host's key "": ssh: no key found; want what ssh-keyscan -t ed25519 b prints after the name, compared with the host's own`},
		{"ssh://a@b/c", good, "ftp://b/c", `reading the directory's URL "ftp://b/c": want an http or https URL without a query`},
	} {
		if _, err := hostdir.New(hostdir.Config{Endpoint: tt.endpoint, HostKey: tt.key, URL: tt.url}); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.endpoint, err, tt.want)
		}
	}
}
