package vsphere_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/vmware/govmomi/vapi/library"
	"github.com/vmware/govmomi/vapi/rest"
	_ "github.com/vmware/govmomi/vapi/simulator"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
	"github.com/imagectl/imagectl/images/upload/vsphere"
)

// shelf is a content library of its own in the simulator, and govmomi's view of it.
type shelf struct {
	*vcenter
	name, id string
	manager  *library.Manager
}

func (v *vcenter) shelf(t *testing.T) *shelf {
	t.Helper()
	c := rest.NewClient(v.client().Client)
	if err := c.Login(t.Context(), url.UserPassword("ops", "secret")); err != nil {
		t.Fatal(err)
	}
	own := *v
	own.T = t
	s := &shelf{vcenter: &own, name: "l" + rand.Text(), manager: library.NewManager(c)}
	var err error
	s.id, err = s.manager.CreateLibrary(t.Context(), library.Library{
		Name: s.name, Type: "LOCAL", Storage: []library.StorageBacking{{DatastoreID: v.sim.Any("Datastore").Reference().Value, Type: "DATASTORE"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *shelf) items() []library.Item {
	s.Helper()
	all, err := s.manager.GetLibraryItems(s.Context(), s.id)
	if err != nil {
		s.Fatal(err)
	}
	return all
}

func (s *shelf) config() vsphere.LibraryConfig {
	u := *s.server.URL
	u.User = nil
	return vsphere.LibraryConfig{
		Endpoint: u.String(), Username: "ops", Password: "secret", Name: s.name, Transport: unique{http.DefaultTransport, s},
		Random: rand.Reader, Now: time.Now, Wait: wait, Beat: never,
	}
}

func (s *shelf) target(c vsphere.LibraryConfig) *vsphere.Library {
	s.Helper()
	l, err := vsphere.NewLibrary(c)
	if err != nil {
		s.Fatal(err)
	}
	return l
}

// unique refuses a name that another item has, as a vCenter does; the simulator does so
// only for new items.
type unique struct {
	base  http.RoundTripper
	shelf *shelf
}

// RoundTrip implements http.RoundTripper.
func (u unique) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodPatch {
		return u.base.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	var ask struct {
		Spec struct{ Name string } `json:"update_spec"`
	}
	if err := json.Unmarshal(body, &ask); err != nil {
		return nil, err
	}
	u.shelf.renames.Lock()
	defer u.shelf.renames.Unlock()
	for _, i := range u.shelf.items() {
		if i.Name == ask.Spec.Name && !strings.HasSuffix(r.URL.Path, i.ID) {
			const text = `{"type":"com.vmware.vapi.std.errors.already_exists","value":{"messages":[{"default_message":"A library item with that name exists."}]}}`
			return &http.Response{StatusCode: http.StatusBadRequest, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
		}
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(body))
	return u.base.RoundTrip(r)
}

// whole gives the simulator a file when all of it is there, or as much as comes: it answers
// nobody while it reads one, which a vCenter does.
type whole struct{ base http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (w whole) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return w.base.RoundTrip(r)
	}
	body, broken := io.ReadAll(r.Body)
	r.Body.Close()
	rest := io.Reader(bytes.NewReader(body))
	if broken != nil {
		rest = io.MultiReader(rest, iotest.ErrReader(broken))
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(rest)
	return w.base.RoundTrip(r)
}

func (s *shelf) platform() uploadtest.Platform {
	var no atomic.Pointer[refusal]
	return uploadtest.Platform{
		Target: func(f *uploadtest.Faults) upload.Target {
			c := s.config()
			c.Transport = f.Transport(refusing{whole{c.Transport}, &no})
			return s.target(c)
		},
		Stranger: func() upload.Target {
			c := s.config()
			c.Password = "wrong"
			return s.target(c)
		},
		Leftovers: func() (left []string, err error) {
			for _, i := range s.items() {
				if !strings.HasPrefix(i.Name, "foreign") {
					left = append(left, i.Name)
				}
			}
			return left, nil
		},
		Plant: func() func() error {
			text := "name: prod-worker\nversion: 4593.2.1-00000000"
			id, err := s.manager.CreateLibraryItem(s.Context(), library.Item{Name: "foreign", Description: &text, Type: library.ItemTypeOVF, LibraryID: s.id})
			if err != nil {
				s.Fatal(err)
			}
			return func() error {
				i, err := s.manager.GetLibraryItem(s.Context(), id)
				if err == nil && (i.Name != "foreign" || *i.Description != text) {
					err = fmt.Errorf("the item of somebody else is %+v", i)
				}
				return err
			}
		},
		Fill:  func() { no.Store(fullLibrary()) },
		Quota: func() { no.Store(noMoreFiles()) },
		Absent: map[uploadtest.Case]string{
			uploadtest.Forgotten: "TestAnItemThatIsUnfinishedForADayIsBroken has it",
			uploadtest.Options:   "the OVF of an item has no options of ours: they are given when a machine is deployed",
			uploadtest.InUse:     "machines are deployed as copies: vCenter deletes an item whatever was made of it",
			uploadtest.Storm:     "nothing is sent again: each call makes or ends something; the next run begins anew",
			uploadtest.CalledOff: "the files are sent by this process, in a session that is cancelled",
		},
		Unprovable: []string{"size of the disk's file", "stored bytes"},
		Slow:       !everyFault,
	}
}

func TestConformanceOfALibrary(t *testing.T) {
	t.Parallel()
	all := startVCenter(t, false)
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform { return all.shelf(t).platform() })
}

// put keeps what is sent to the place of a file, by its name.
type put struct {
	base http.RoundTripper
	mu   *sync.Mutex
	got  map[string][]byte
}

// RoundTrip implements http.RoundTripper.
func (p put) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPut {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		if r.ContentLength != int64(len(b)) {
			return nil, errors.New("the length is wrong")
		}
		p.mu.Lock()
		p.got[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]] = b
		p.mu.Unlock()
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(b))
	}
	return p.base.RoundTrip(r)
}

func TestLibraryHasTheDiskAndWhatTheNameMeans(t *testing.T) {
	t.Parallel()
	v := startVCenter(t, false)
	vmdk := uploadtest.Image(t, store.VMDK, "prod-worker", 5)
	want, err := os.ReadFile(vmdk.File.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range []upload.Image{vmdk, archive(t, vmdk)} {
		s := v.shelf(t)
		c := s.config()
		files := put{c.Transport, new(sync.Mutex), map[string][]byte{}}
		c.Transport = files
		l := s.target(c)
		out, err := run(t.Context(), t, l, img)
		if err != nil {
			t.Fatal(err)
		}
		ovf, disk := "", ""
		for name, b := range files.got {
			if bytes.Equal(b, want) {
				disk = name
			} else if strings.HasSuffix(name, ".ovf") {
				ovf = string(b)
			}
		}
		if len(files.got) != 2 || disk == "" || !strings.Contains(ovf, `ovf:href="`+disk+`"`) {
			t.Errorf("%s: the disk is in %q of %d files, and the OVF is %s", img.Format, disk, len(files.got), ovf)
		}
		i, err := s.manager.GetLibraryItem(t.Context(), out.Object.ID)
		if err != nil {
			t.Fatal(err)
		}
		if i.Name != "prod-worker" || i.Type != library.ItemTypeOVF || !strings.Contains(*i.Description, "\nrole: worker\n") {
			t.Errorf("%s: the item is %+v, %s", img.Format, i, *i.Description)
		}
		// The name never means two things, and goes back.
		two, err := run(t.Context(), t, l, uploadtest.Image(t, store.VMDK, "prod-worker", 6))
		if err != nil {
			t.Fatal(err)
		}
		for _, current := range []string{two.Object.ID, out.Object.ID} {
			for _, i := range s.items() {
				if (i.Name == "prod-worker") != (i.ID == current) {
					t.Errorf("%s: %s is called %s while %s is current", img.Format, i.ID, i.Name, current)
				}
			}
			if _, _, err := upload.Rollback(t.Context(), l, "prod-worker"); err != nil {
				t.Error(err)
			}
		}
	}
}

// A promotion that broke off after its first half leaves nothing current, and the next
// upload ends it.
func TestHalfAPromotionIsEnded(t *testing.T) {
	t.Parallel()
	s := startVCenter(t, false).shelf(t)
	l := s.target(s.config())
	img := uploadtest.Image(t, store.VMDK, "prod-worker", 5)
	out, err := run(t.Context(), t, l, img)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.manager.UpdateLibraryItem(t.Context(), &library.Item{ID: out.Object.ID, Name: "prod-worker_" + img.Version}); err != nil {
		t.Fatal(err)
	}
	all, err := l.List(t.Context(), "prod-worker")
	if err != nil || len(all) != 1 || all[0].Current {
		t.Errorf("listed is %+v, %v", all, err)
	}
	again, err := run(t.Context(), t, l, img)
	if err != nil || !again.Promoted || s.items()[0].Name != "prod-worker" {
		t.Errorf("the outcome is %+v, %v; the item is %s", again, err, s.items()[0].Name)
	}
}

// What a machine that is gone has left is broken after a day.
func TestAnItemThatIsUnfinishedForADayIsBroken(t *testing.T) {
	t.Parallel()
	s := startVCenter(t, false).shelf(t)
	c, now := s.config(), time.Now()
	c.Now = func() time.Time { return now }
	faults := &uploadtest.Faults{}
	c.Transport = faults.Transport(c.Transport)
	l := s.target(c)
	img := uploadtest.Image(t, store.VMDK, "prod-worker", 5)
	// Login, library, items, item, and here the session.
	faults.Fail(5, uploadtest.Refused, true)
	if _, err := l.Upload(t.Context(), img, &uploadtest.Journal{}, func(upload.Event) {}); !errors.Is(err, upload.ErrServer) {
		t.Errorf("got %v, want ErrServer", err)
	}
	faults.Heal()
	if n := len(s.items()); n != 1 {
		t.Fatalf("there are %d items, want the half one", n)
	}
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{23 * time.Hour, 0}, {2 * time.Hour, 1}} {
		now = now.Add(tt.after)
		all, err := l.List(t.Context(), "")
		if err != nil || len(all) != tt.want || tt.want > 0 && !all[0].Broken {
			t.Errorf("after %s: %+v, %v", tt.after, all, err)
		}
	}
	if _, err := upload.Cleanup(t.Context(), l, t.TempDir(), "vc"); err != nil || len(s.items()) > 0 {
		t.Errorf("%v; left is %v", err, s.items())
	}
}

// A login ends when it is idle; the next call makes another.
func TestALoginThatHasEndedIsMadeAgain(t *testing.T) {
	t.Parallel()
	s := startVCenter(t, false).shelf(t)
	c := s.config()
	ended := &logout{base: c.Transport}
	c.Transport = ended
	l := s.target(c)
	if _, err := l.List(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	ended.now = true
	if _, err := run(t.Context(), t, l, uploadtest.Image(t, store.VMDK, "prod-worker", 5)); err != nil {
		t.Error(err)
	}
	if ended.logins != 2 {
		t.Errorf("there were %d logins, want 2", ended.logins)
	}
	l.Close(context.Background())
}

// logout ends the login once before a call.
type logout struct {
	base   http.RoundTripper
	now    bool
	logins int
}

// RoundTrip implements http.RoundTripper.
func (l *logout) RoundTrip(r *http.Request) (*http.Response, error) {
	login := strings.HasSuffix(r.URL.Path, "/cis/session")
	if login && r.Method == http.MethodPost {
		l.logins++
	}
	if l.now && !login {
		l.now = false
		out, err := http.NewRequestWithContext(r.Context(), http.MethodDelete, r.URL.Scheme+"://"+r.URL.Host+"/rest/com/vmware/cis/session", nil)
		if err != nil {
			return nil, err
		}
		out.Header.Set("vmware-api-session-id", r.Header.Get("vmware-api-session-id"))
		resp, err := l.base.RoundTrip(out)
		if err != nil {
			return nil, err
		}
		resp.Body.Close()
	}
	return l.base.RoundTrip(r)
}

func TestLibrarySaysWhy(t *testing.T) {
	t.Parallel()
	s := startVCenter(t, false).shelf(t)
	img := uploadtest.Image(t, store.VMDK, "prod-worker", 5)
	for _, tt := range []struct {
		name   string
		change func(*vsphere.LibraryConfig)
		kind   error
		want   string
	}{
		{"a wrong password", func(c *vsphere.LibraryConfig) { c.Password = "wrong" }, upload.ErrAuth, "logging in at http://127.0.0.1"},
		{"no such library", func(c *vsphere.LibraryConfig) { c.Name = "nowhere" }, upload.ErrNotFound, "there are 0 local ones that ops may see"},
	} {
		c := s.config()
		tt.change(&c)
		_, err := run(t.Context(), t, s.target(c), img)
		if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %v with %q", tt.name, err, tt.kind, tt.want)
		}
	}
	if _, err := s.manager.CreateLibraryItem(t.Context(), library.Item{Name: "prod-worker", Type: library.ItemTypeOVF, LibraryID: s.id}); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t.Context(), t, s.target(s.config()), img); !errors.Is(err, upload.ErrTaken) {
		t.Errorf("a name that somebody's item has: got %v, want ErrTaken", err)
	}
	if all := s.items(); len(all) != 1 {
		t.Errorf("there are %d items, want that one", len(all))
	}
}
