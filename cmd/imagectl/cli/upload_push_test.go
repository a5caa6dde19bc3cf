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
		{"lv", exitServer, "connecting to libvirt: server failed"},
	} {
		code, out, errs := s.imagectl("upload", "list", c.target)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("upload list %s: %d, want %d: %s%s", c.target, code, c.code, out, errs)
		}
	}
}
