package glance_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/glance"
	"github.com/imagectl/imagectl/images/upload/staging"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// wait is short: what is waited for happens on this machine.
func wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Millisecond):
		return nil
	}
}

// config is for a cloud whose Keystone is at an address.
func config(keystone string) glance.Config {
	var marks atomic.Int64
	return glance.Config{
		Auth:       gophercloud.AuthOptions{IdentityEndpoint: keystone, ApplicationCredentialID: "robot", ApplicationCredentialSecret: secret},
		Properties: map[string]string{"hw_firmware_type": "uefi"},
		Client:     &http.Client{},
		Wait:       wait,
		Mark:       func() string { return time.Now().Format(time.RFC3339Nano) + " " + strconv.FormatInt(marks.Add(1), 10) },
		Now:        time.Now,
	}
}

func target(t *testing.T, c glance.Config) *glance.Target {
	t.Helper()
	to, err := glance.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// storm is why no request is sent again.
const storm = "the library that speaks to OpenStack sends nothing again but for a new token; the next run goes on"

func (c *cloud) platform(t *testing.T, conf glance.Config) uploadtest.Platform {
	p := uploadtest.Platform{
		RawSize: 300<<10 + 512,
		Target: func(f *uploadtest.Faults) upload.Target {
			mine := conf
			mine.Client = &http.Client{Transport: f.Transport(uploadtest.InProcess(c))}
			return target(t, mine)
		},
		Stranger: func() upload.Target {
			theirs := conf
			theirs.Auth.ApplicationCredentialSecret = "wrong"
			return target(t, theirs)
		},
		Leftovers: func() (all []string, err error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			for id, i := range c.images {
				if i.props["imagectl"] == "1" {
					all = append(all, id+" "+i.props["status"].(string))
				}
			}
			return all, nil
		},
		Plant: c.foreign,
		Quota: func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.quota = true
		},
		Use: func(o upload.Object) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.images[o.ID].inUse = true
			return nil
		},
	}
	if conf.Method != glance.Download {
		p.Fill = func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.full = true
		}
	} else {
		p.Hold = func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.hold = make(chan struct{})
		}
		p.Release = c.release
	}
	p.Settle, p.Absent = c.imports.Wait, map[uploadtest.Case]string{uploadtest.Storm: storm, uploadtest.Options: noTemplate, uploadtest.Forgotten: notAlone}
	if p.Fill == nil {
		p.Absent[uploadtest.Full] = "Glance downloads by itself, and an import that fails for want of space says so in words of its own: TestAnImportThatFailsSaysWhy has how it ends"
	}
	if p.Hold == nil {
		p.Absent[uploadtest.CalledOff] = "the file is sent by this process; what Glance does after that is over when it answers"
	}
	return p
}

// notAlone is why the loss of a journal is no case.
const notAlone = "TestWhatLiesUnfinishedForADayIsBroken has it"

// noTemplate is why options do not change.
const noTemplate = "the image is no template: its properties are those of its upload, and Promote says nothing new of them (docs/upload-openstack.md)"

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, m := range []glance.Method{glance.Put, glance.Direct, glance.Download} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
				c := newCloud(t)
				conf := config(c.URL + "/identity/v3")
				conf.Method = m
				if m == glance.Download {
					l := httptest.NewUnstartedServer(nil)
					s := staging.New("http://" + l.Listener.Addr().String())
					l.Config.Handler = s
					l.Start()
					t.Cleanup(l.Close)
					conf.Source = s
				}
				return c.platform(t, conf)
			})
		})
	}
}

func uploaded(t *testing.T, to upload.Target, img upload.Image, promote bool) (upload.Outcome, error) {
	t.Helper()
	j, err := upload.OpenJournal(t.TempDir(), upload.Key{Target: "os", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	return upload.Run(t.Context(), to, img, j, func(upload.Event) {}, promote)
}

func TestOnlyTheCurrentImageIsSeenAndHasTheName(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	to := target(t, config(c.URL+"/identity/v3"))
	one, two := uploadtest.Image(t, store.QCOW2, "prod-worker", 1), uploadtest.Image(t, store.QCOW2, "prod-worker", 2)
	var ids []string
	for _, img := range []upload.Image{one, two} {
		out, err := uploaded(t, to, img, true)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, out.Object.ID)
	}
	for n, want := range []object{
		{"name": "prod-worker_" + one.Version, "os_hidden": true, "protected": false},
		{"name": "prod-worker", "os_hidden": false, "protected": true, "min_disk": 1.0, "os_distro": "flatcar", "os_version": "4593.2.1", "hw_firmware_type": "uefi", "visibility": "private", "disk_format": "qcow2", "container_format": "bare", "imagectl_role": "worker", "imagectl_digest": "sha256:" + two.Digest},
	} {
		for k, v := range want {
			if got := c.images[ids[n]].props[k]; got != v {
				t.Errorf("image %d: %s is %v, want %v", n, k, got, v)
			}
		}
	}
	// What is current cannot be deleted by mistake.
	if err := to.Delete(t.Context(), upload.Object{ID: ids[1]}); !errors.Is(err, upload.ErrInUse) {
		t.Errorf("deleting the current one: %v", err)
	}
	// A promotion that broke off after its first half is finished by the next.
	c.images[ids[0]].props["name"], c.images[ids[0]].props["os_hidden"] = "prod-worker", false
	if err := to.Promote(t.Context(), upload.Object{ID: ids[1], Name: "prod-worker"}); err != nil {
		t.Fatal(err)
	}
	if p := c.images[ids[0]].props; p["name"] == "prod-worker" || p["os_hidden"] != true {
		t.Errorf("the old one is still seen: %v", p)
	}
}

func TestAnImageThatWasDeletedCanBeUploadedAgain(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	to := target(t, config(c.URL+"/identity/v3"))
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	first, err := uploaded(t, to, img, false)
	if err != nil {
		t.Fatal(err)
	}
	c.images[first.Object.ID].props["protected"] = false
	if err := to.Delete(t.Context(), first.Object); err != nil {
		t.Fatal(err)
	}
	again, err := uploaded(t, to, img, false)
	if err != nil || again.Object.ID == first.Object.ID {
		t.Errorf("got %+v, %v", again, err)
	}
}

func TestOtherBytesThanThoseThatWereSentAreDeleted(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	conf := config(c.URL + "/identity/v3")
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	// A proxy that spoils a byte.
	conf.Client = &http.Client{Transport: spoil{http.DefaultTransport}}
	_, err := uploaded(t, target(t, conf), img, true)
	if !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "digest that Glance computed, sha512") {
		t.Errorf("got %v", err)
	}
	if len(c.images) != 0 {
		t.Errorf("left is %v", c.images)
	}
}

type spoil struct{ http.RoundTripper }

// RoundTrip changes the first byte of a file.
func (s spoil) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPut {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		b[0]++
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(b))
	}
	return s.RoundTripper.RoundTrip(r)
}

func TestATokenThatIsTooOldIsReplaced(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	to := target(t, config(c.URL+"/identity/v3"))
	if _, err := to.List(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	c.expire()
	if _, err := uploaded(t, to, uploadtest.Image(t, store.QCOW2, "prod-worker", 1), true); err != nil {
		t.Error(err)
	}
}

// age lets the token be too old when the first transfer begins.
type age struct {
	http.RoundTripper
	once  sync.Once
	cloud *cloud
}

// RoundTrip implements http.RoundTripper.
func (a *age) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPut {
		a.once.Do(a.cloud.expire)
	}
	return a.RoundTripper.RoundTrip(r)
}

func TestATokenThatIsTooOldForTheFileIsReplaced(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	conf := config(c.URL + "/identity/v3")
	conf.Client = &http.Client{Transport: &age{RoundTripper: http.DefaultTransport, cloud: c}}
	if _, err := uploaded(t, target(t, conf), uploadtest.Image(t, store.QCOW2, "prod-worker", 1), true); err != nil {
		t.Error(err)
	}
}

// A site may make a raw image of what is imported: then there is nothing to compare the
// digest with, and the image stays.
func TestWhatASiteConvertsIsKept(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	c.converts = true
	conf := config(c.URL + "/identity/v3")
	conf.Method = glance.Direct
	to, img := target(t, conf), uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	out, err := uploaded(t, to, img, true)
	if err != nil {
		t.Fatal(err)
	}
	checks, err := to.Verify(t.Context(), out.Object, img)
	if err != nil {
		t.Fatal(err)
	}
	want := upload.Check{Name: "digest that Glance computed", Result: upload.Unprovable, Detail: "this site made raw of the qcow2 that was sent"}
	if !slices.Contains(checks, want) || slices.ContainsFunc(checks, func(k upload.Check) bool { return k.Result == upload.Bad }) {
		t.Errorf("the checks are %+v", checks)
	}
}

func TestWhatLiesUnfinishedForADayIsBroken(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	conf := config(c.URL + "/identity/v3")
	now := time.Now()
	conf.Now = func() time.Time { return now }
	to := target(t, conf)
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	c.full = true
	if _, err := uploaded(t, to, img, true); !errors.Is(err, upload.ErrSpace) || !strings.HasSuffix(err.Error(), "not enough disk space on the image storage media.") {
		t.Errorf("got %v", err)
	}
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{23 * time.Hour, 0}, {25 * time.Hour, 1}} {
		now = now.Add(tt.after)
		all, err := to.List(t.Context(), "")
		if err != nil || len(all) != tt.want || tt.want > 0 && !all[0].Broken {
			t.Errorf("after %s: %+v, %v", tt.after, all, err)
		}
	}
	if _, err := upload.Cleanup(t.Context(), to, t.TempDir(), "os"); err != nil || len(c.images) > 0 {
		t.Errorf("%v; left is %v", err, c.images)
	}
}

func TestAWayOfImportThatGlanceHasNotIsRefusedBeforeAnythingIsMade(t *testing.T) {
	t.Parallel()
	if _, err := glance.New(glance.Config{Method: "copy-image"}); err == nil || !strings.Contains(err.Error(), "want put, glance-direct or web-download") {
		t.Errorf("got %v", err)
	}
	if _, err := glance.New(glance.Config{Visibility: "secret"}); err == nil {
		t.Error("a visibility that there is not is taken")
	}
}

func TestCredentialsDoNotGoInTheClear(t *testing.T) {
	t.Parallel()
	conf := config("http://keystone.example.org/v3")
	conf.Client = &http.Client{Transport: refuse{t}}
	if _, err := target(t, conf).List(t.Context(), ""); !errors.Is(err, upload.ErrAuth) || !strings.Contains(err.Error(), "insecure: true") {
		t.Errorf("got %v", err)
	}
}

type refuse struct{ *testing.T }

// RoundTrip wants not to be called.
func (r refuse) RoundTrip(*http.Request) (*http.Response, error) {
	r.Error("something was sent")
	return nil, errors.New("nothing may be sent")
}

// A web-download that Glance cannot make says why, and leaves nothing after a
// cleanup.
func TestAnImportThatFailsSaysWhy(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	conf := config(c.URL + "/identity/v3")
	conf.Method, conf.Source = glance.Download, staging.Direct("http://127.0.0.1:1")
	_, err := uploaded(t, target(t, conf), uploadtest.Image(t, store.QCOW2, "prod-worker", 1), true)
	if !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "Task failed due to Internal Error") {
		t.Errorf("got %v", err)
	}
}
