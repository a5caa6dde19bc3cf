package cli

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// pushSite has an entry for each platform that is sent to.
func pushSite(t *testing.T, registryURL string) *uploadSite {
	t.Helper()
	s := newUploadSite(t)
	t.Setenv("S3_SECRET", "secret")
	t.Setenv("XDG_RUNTIME_DIR", s.dir)
	t.Setenv("DOCKER_CONFIG", s.dir)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	b, err := os.ReadFile(s.path("cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("cluster.yaml", string(b)+`
  - {name: vault, type: s3, endpoint: "http://127.0.0.1:1", bucket: vm, username: k, password: {env: S3_SECRET}}
  - {name: registry, type: oci, endpoint: "`+registryURL+`/team/vm"}
  - {name: half, type: oci, endpoint: "`+registryURL+`/team/vm", username: robot}
  - {name: odd, type: oci, endpoint: "`+registryURL+`/team/vm", options: {form: tarball}}
  - {name: lv, type: libvirt, endpoint: "qemu:///session", datastore: default}
  - {name: amazon, type: aws, region: eu-central-1, endpoint: "http://127.0.0.1:1"}
  - {name: nokey, type: aws, region: eu-central-1, username: AKIA1}
  - {name: zone, type: aws, region: eu-central-1a, username: AKIA1, password: {env: S3_SECRET}}
  - {name: ms, type: azure, datastore: vms, region: westeurope, username: app, password: {env: S3_SECRET}, options: {subscription: s, resourceGroup: g}}
  - {name: google, type: gcp, bucket: vm-images, password: {env: S3_SECRET}}
  - {name: tcp, type: libvirt, endpoint: "qemu+tcp://kvm1/system", datastore: default}
`)
	return s
}

func TestUploadToPlatformsThatAreSentTo(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	s := pushSite(t, server.URL)
	for _, c := range []struct {
		target string
		code   int
		want   string
	}{
		{"registry", exitDone, ""},
		{"half", exitUsage, "upload target half: username without password; leave both out for what docker login stored"},
		{"odd", exitUsage, `upload target odd: reading the form "tarball": want artifact or containerdisk`},
		{"tcp", exitUsage, "upload target tcp: reading the libvirt URI"},
		{"amazon", exitUsage, "upload target amazon: there is neither username and password nor AWS_ACCESS_KEY_ID"},
		{"nokey", exitUsage, "upload target nokey: username without password"},
		{"zone", exitUsage, `upload target zone: reading the region "eu-central-1a": want a name like eu-central-1`},
		{"ms", exitUsage, `upload target ms: reading who signs in to tenant ""`},
		{"google", exitUsage, `upload target google: reading the project "": want a project's ID`},
		{"lv", exitServer, "connecting to libvirt: server failed"},
	} {
		code, out, errs := s.imagectl("upload", "list", c.target)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("upload list %s: %d, want %d: %s%s", c.target, code, c.code, out, errs)
		}
	}
}
