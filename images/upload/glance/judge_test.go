//go:build upload

package glance_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/glance"
	"github.com/imagectl/imagectl/images/upload/staging"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// TestOfAGenuineGlance has all that needs the two servers, which take a while to start.
func TestOfAGenuineGlance(t *testing.T) {
	c := startOpenStack(t)
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *openstack)
	}{
		{"a store that is full", storeIsFull},
		{"an application credential", applicationCredential},
		{"every format is verified by what Glance computes", formats},
		{"a transfer that is cut", transferIsCut},
		{"a token that is revoked", tokenIsRevoked},
		{"a site that converts what is imported, and has quotas", siteConverts},
		{"a download that is not allowed", downloadIsNotAllowed},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, c) })
	}
	t.Run("two uploads at once by way of staging", func(t *testing.T) { twoByStaging(t, c) })
	t.Run("conformance", func(t *testing.T) {
		uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
			n := c.tenant(t)
			return n.platform(n.config())
		})
	})
}

// Two machines upload one image at once, several times over. Glance would take the file
// of both into staging, answer both with 500, and leave the file of one.
func twoByStaging(t *testing.T, c *openstack) {
	const machines = 2
	rounds := uint64(5)
	if testing.Short() {
		rounds = 2
	}
	for seed := range rounds {
		n := c.tenant(t)
		conf := n.config()
		conf.Method = glance.Direct
		img := uploadtest.Image(t, store.Raw, "prod-worker", seed)
		var all sync.WaitGroup
		var ids [machines]string
		for m := range machines {
			to := target(t, conf)
			all.Go(func() {
				j := &uploadtest.Journal{}
				out, err := upload.Run(t.Context(), to, img, j, func(upload.Event) {}, false)
				if err != nil || len(j.Left()) > 0 {
					t.Errorf("round %d, machine %d: %v, left is %v", seed, m, err, j.Left())
				}
				ids[m] = out.Object.ID
			})
		}
		all.Wait()
		if there, err := n.images(); err != nil || len(there) != 1 || ids[0] != ids[1] || there[0].text("id") != ids[0] {
			t.Errorf("round %d: they made %v, and there are %v, %v", seed, ids, there, err)
		}
	}
	if files, err := filepath.Glob(filepath.Join(c.settings.Dir, "staging", "????????-*")); err != nil || len(files) > 0 {
		t.Errorf("in staging is %v, %v", files, err)
	}
}

// A process of Glance may write no file beyond a size, which its store takes as it takes
// a disk that is full. Its data base is smaller.
func storeIsFull(t *testing.T, c *openstack) {
	const most = 2 << 20
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(c.glance.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: most, Max: unix.RLIM_INFINITY}, &unlimited); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Prlimit(c.glance.Process.Pid, unix.RLIMIT_FSIZE, &unlimited, nil); err != nil {
			t.Error(err)
		}
	}()
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	if img.Size <= most {
		t.Fatalf("the image has %d bytes, want more than %d", img.Size, most)
	}
	for _, m := range []glance.Method{glance.Put, glance.Direct} {
		n := c.tenant(t)
		conf := n.config()
		conf.Method = m
		to, dir := target(t, conf), t.TempDir()
		j, err := upload.OpenJournal(dir, upload.Key{Target: "os", Image: img})
		if err != nil {
			t.Fatal(err)
		}
		_, err = upload.Run(t.Context(), to, img, j, func(upload.Event) {}, true)
		if !errors.Is(err, upload.ErrSpace) || !strings.Contains(err.Error(), "Image storage media is full") {
			t.Errorf("%s: got %v, want ErrSpace with Glance's words", m, err)
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
		if _, err := upload.Cleanup(t.Context(), to, dir, "os"); err != nil {
			t.Error(err)
		}
		if all, err := n.images(); err != nil || len(all) > 0 {
			t.Errorf("%s: left is %v, %v", m, all, err)
		}
	}
	files, err := filepath.Glob(c.settings.Dir + "/*/????????-*")
	if err != nil || len(files) > 0 {
		t.Errorf("in the store is %v, %v", files, err)
	}
}

// An application credential of the role member is enough, and no password goes along.
func applicationCredential(t *testing.T, c *openstack) {
	n := c.tenant(t)
	token := c.auth(t, object{"identity": object{"methods": []string{"password"}, "password": object{"user": object{"id": n.user, "password": n.password}}},
		"scope": object{"project": object{"id": n.id}}})
	made := c.as(t, token, "POST", c.keystone+"/users/"+n.user+"/application_credentials", object{"application_credential": object{
		"name": "imagectl", "roles": []object{{"id": c.member}},
	}}).sub("application_credential")
	conf := config(c.keystone)
	conf.Wait, conf.Endpoint.Region = patient, region
	conf.Auth.ApplicationCredentialID, conf.Auth.ApplicationCredentialSecret = made.text("id"), made.text("secret")
	to := target(t, conf)
	one, two := uploadtest.Image(t, store.QCOW2, "prod-worker", 1), uploadtest.Image(t, store.QCOW2, "prod-worker", 2)
	var ids []string
	for _, img := range []upload.Image{one, two} {
		out, err := uploaded(t, to, img, true)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, out.Object.ID)
	}
	for k, want := range map[string]any{
		"name": "prod-worker", "os_hidden": false, "protected": true, "min_disk": 1.0, "os_distro": "flatcar", "os_version": "4593.2.1",
		"hw_firmware_type": "uefi", "visibility": "private", "disk_format": "qcow2", "container_format": "bare", "imagectl_role": "worker",
		"imagectl_digest": "sha256:" + two.Digest, "owner": n.id, "status": "active",
	} {
		if got := c.call(t, "GET", c.image+"/v2/images/"+ids[1], nil)[k]; got != want {
			t.Errorf("%s is %v, want %v", k, got, want)
		}
	}
	// What people see and what the name means is one image.
	list, _ := c.as(t, token, "GET", c.image+"/v2/images?name=prod-worker", nil)["images"].([]any)
	if len(list) != 1 || answered(list[0].(object)).text("id") != ids[1] {
		t.Errorf("the name prod-worker means %v, want %s", list, ids[1])
	}
	if err := to.Delete(t.Context(), upload.Object{ID: ids[1]}); !errors.Is(err, upload.ErrInUse) {
		t.Errorf("deleting the current one: %v", err)
	}
	// An image that was deleted can be uploaded again, though Glance knows its ID.
	if err := to.Delete(t.Context(), upload.Object{ID: ids[0]}); err != nil {
		t.Fatal(err)
	}
	again, err := uploaded(t, to, one, false)
	if err != nil || again.Object.ID == ids[0] || again.Object.Current {
		t.Errorf("uploaded again: %+v, %v", again, err)
	}
	conf.Auth.ApplicationCredentialSecret = "wrong"
	if _, err := target(t, conf).List(t.Context(), ""); !errors.Is(err, upload.ErrAuth) {
		t.Errorf("with a wrong secret: %v", err)
	}
}

func formats(t *testing.T, c *openstack) {
	for _, format := range []store.Format{store.QCOW2, store.Raw} {
		to := target(t, c.tenant(t).config())
		img := uploadtest.Image(t, format, "prod-worker", 1)
		out, err := uploaded(t, to, img, true)
		if err != nil {
			t.Fatal(err)
		}
		checks, err := to.Verify(t.Context(), out.Object, img)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, k := range checks {
			seen[k.Name] = true
			if k.Result != upload.Good {
				t.Errorf("%s: %s is %s: %s", format, k.Name, k.Result, k.Detail)
			}
		}
		if !seen["digest that Glance computed, sha512"] || !seen["size of the file"] {
			t.Errorf("%s: the checks are %+v", format, checks)
		}
	}
}

// short cuts the body of the first transfer.
type short struct {
	http.RoundTripper
	once sync.Once
}

// RoundTrip implements http.RoundTripper.
func (s *short) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPut {
		s.once.Do(func() {
			r = r.Clone(r.Context())
			r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, r.ContentLength/2), cut{}))
		})
	}
	return s.RoundTripper.RoundTrip(r)
}

type cut struct{}

// Read implements io.Reader.
func (cut) Read([]byte) (int, error) { return 0, errors.New("the line is cut") }

// The second run sends all again, be it soon or when Glance has noticed.
func transferIsCut(t *testing.T, c *openstack) {
	for _, m := range []glance.Method{glance.Put, glance.Direct} {
		n := c.tenant(t)
		conf := n.config()
		conf.Method = m
		conf.Client = &http.Client{Transport: &short{RoundTripper: http.DefaultTransport}}
		to, img := target(t, conf), uploadtest.Image(t, store.Raw, "prod-worker", 1)
		j := &uploadtest.Journal{}
		if _, err := upload.Run(t.Context(), to, img, j, func(upload.Event) {}, true); !errors.Is(err, upload.ErrServer) {
			t.Errorf("%s: the first run gave %v, want ErrServer", m, err)
		}
		out, err := upload.Run(t.Context(), to, img, j, func(upload.Event) {}, true)
		if err != nil || out.Unchanged || len(j.Left()) > 0 {
			t.Errorf("%s: the second run gave %+v, %v and leaves %v", m, out, err, j.Left())
		}
		if all, err := n.images(); err != nil || len(all) != 1 {
			t.Errorf("%s: there are %v, %v", m, all, err)
		}
	}
}

// revoke has each new token revoked before it is used, as often as it is told.
type revoke struct {
	http.RoundTripper
	left int
}

// RoundTrip implements http.RoundTripper.
func (r *revoke) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.RoundTripper.RoundTrip(req)
	if err != nil || !strings.HasSuffix(req.URL.Path, "/auth/tokens") || r.left == 0 {
		return resp, err
	}
	r.left--
	del, err := http.NewRequestWithContext(req.Context(), http.MethodDelete, req.URL.String(), nil)
	if err != nil {
		return nil, err
	}
	token := resp.Header.Get("X-Subject-Token")
	del.Header.Set("X-Auth-Token", token)
	del.Header.Set("X-Subject-Token", token)
	gone, err := r.RoundTripper.RoundTrip(del)
	if err != nil {
		return nil, err
	}
	return resp, gone.Body.Close()
}

func tokenIsRevoked(t *testing.T, c *openstack) {
	conf := c.tenant(t).config()
	conf.Client = &http.Client{Transport: &revoke{RoundTripper: http.DefaultTransport, left: 1}}
	if _, err := uploaded(t, target(t, conf), uploadtest.Image(t, store.QCOW2, "prod-worker", 1), true); err != nil {
		t.Error(err)
	}
}

// A site that converts makes another file of a qcow2, and the disk is the same. A quota
// is no space, be it of images or of what is sent.
func siteConverts(t *testing.T, c *openstack) {
	c.startStrict(t)
	conf := c.tenant(t).config()
	conf.Endpoint.Region, conf.Method = strict, glance.Direct
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
	b, err := os.ReadFile(filepath.Join(c.settings.Dir, "images", out.Object.ID))
	if err != nil || int64(len(b)) < img.RawSize {
		t.Fatalf("the store has %d bytes, %v, want the disk of %d", len(b), err, img.RawSize)
	}
	if sum := sha256.Sum256(b[:img.RawSize]); hex.EncodeToString(sum[:]) != img.Digest {
		t.Errorf("the store has another disk: %x", sum)
	}

	for _, tt := range []struct {
		method glance.Method
		limit  string
	}{{glance.Put, "image_count_total"}, {glance.Put, "image_count_uploading"}, {glance.Direct, "image_count_uploading"}} {
		n := c.tenant(t)
		n.limit(tt.limit, 0)
		conf := n.config()
		conf.Endpoint.Region, conf.Method = strict, tt.method
		to, j := target(t, conf), &uploadtest.Journal{}
		_, err := upload.Run(t.Context(), to, img, j, func(upload.Event) {}, true)
		if !errors.Is(err, upload.ErrSpace) || !strings.Contains(err.Error(), tt.limit+" is over limit of 0") {
			t.Errorf("%s with a limit of %s: got %v, want ErrSpace with Glance's words", tt.method, tt.limit, err)
		}
		for _, left := range j.Left() {
			if err := to.Clean(t.Context(), left); err != nil {
				t.Error(err)
			}
		}
		if all, err := n.images(); err != nil || len(all) > 0 {
			t.Errorf("%s with a limit of %s: left is %v, %v", tt.method, tt.limit, all, err)
		}
	}
}

func downloadIsNotAllowed(t *testing.T, c *openstack) {
	conf := c.tenant(t).config()
	conf.Method, conf.Source = glance.Download, staging.Direct("http://127.0.0.1:1")
	_, err := uploaded(t, target(t, conf), uploadtest.Image(t, store.QCOW2, "prod-worker", 1), true)
	if err == nil || !strings.Contains(err.Error(), "URI for web-download does not pass filtering") {
		t.Errorf("got %v", err)
	}
}
