//go:build upload

package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
	"github.com/imagectl/imagectl/test/daemon"
)

// dockerRegistry runs Debian's docker-registry, of the kind before referrers, until
// the test ends; it returns host and port.
func dockerRegistry(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	address := daemon.Address(t)
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "htpasswd"), fmt.Appendf(nil, "%s:%s\n", operator, hash))
	write(t, filepath.Join(dir, "config.yml"), fmt.Appendf(nil, `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %[1]s/data}
  delete: {enabled: true}
http: {addr: %[2]q}
auth:
  htpasswd: {realm: registry, path: %[1]s/htpasswd}
`, dir, address))
	cmd := exec.Command("docker-registry", "serve", filepath.Join(dir, "config.yml"))
	daemon.Start(t, cmd, "apt-get install docker-registry", func() error {
		resp, err := http.Get("http://" + address + "/v2/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return address
}

func TestConformanceOfARealRegistry(t *testing.T) {
	address := dockerRegistry(t)
	n := 0
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		n++
		c := Config{Repository: fmt.Sprintf("%s/team/images-%d", address, n)}
		if strings.Contains(t.Name(), "/two_uploads_of_one_image_at_once_make_one") {
			// This registry writes a tag's file in place, and answers 500 to who reads it
			// meanwhile. As many tries as users have get over that; all other tests have one.
			c.Tries = 3
		}
		p := platform(t, c)
		// It waits for the disk at each request; the stand-in of make unit has all faults.
		p.Slow = true
		p.Absent[uploadtest.Full] = "this registry writes into a file system that is not ours to fill; the stand-in of make unit refuses"
		p.Absent[uploadtest.Quota] = "this registry has no quotas; the stand-in of make unit refuses as Harbor does"
		return p
	})
}

func TestARealRegistryKeepsWhatServersServe(t *testing.T) {
	to, err := New(Config{Repository: dockerRegistry(t) + "/team/servers", Plain: true, Username: operator, Password: password, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	keeps(t, to)
	keeps(t, to)
}

// skopeo is another hand's client: it reads what we wrote.
func TestSkopeoReadsBothForms(t *testing.T) {
	address := dockerRegistry(t)
	for _, form := range []Form{Artifact, ContainerDisk} {
		repo := fmt.Sprintf("%s/team/%s", address, form)
		to, err := New(Config{Repository: repo, Form: form, Plain: true, Username: operator, Password: password, Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		img := image(t, "1-aa", 1, store.QCOW2)
		o, err := to.Upload(t.Context(), img, nil, quiet)
		if err != nil {
			t.Fatal(err)
		}
		if err := to.Promote(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		creds := operator + ":" + password
		raw := run(t, "skopeo", "inspect", "--raw", "--tls-verify=false", "--creds", creds, "docker://"+repo+":demo-worker")
		var m struct {
			MediaType, ArtifactType string
			Annotations             map[string]string
			Layers                  []struct{ Digest string }
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		if m.MediaType != "application/vnd.oci.image.manifest.v1+json" || len(m.Layers) != 1 || m.Annotations["org.imagectl.digest"] != "sha256:"+img.Digest {
			t.Errorf("%s: skopeo reads %s", form, raw)
		}
		// A copy has every byte of every layer checked against its digest.
		dir := filepath.Join(t.TempDir(), "copy")
		run(t, "skopeo", "copy", "--src-tls-verify=false", "--src-creds", creds, "docker://"+repo+":demo-worker", "dir:"+dir)
		if form == Artifact {
			sum := strings.Fields(string(run(t, "sha256sum", filepath.Join(dir, img.SHA256))))[0]
			if sum != img.SHA256 {
				t.Errorf("skopeo copied a layer with the digest %s, want %s", sum, img.SHA256)
			}
		}
		checks, err := to.Verify(t.Context(), o, img)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range checks {
			if c.Result != upload.Good {
				t.Errorf("%s: %s: %s: %s", form, c.Name, c.Result, c.Detail)
			}
		}
	}
}

func run(t *testing.T, argv ...string) []byte {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, stderr.String())
	}
	return out
}
