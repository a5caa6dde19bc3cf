//go:build upload

package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/daemon"
)

var (
	versitygw = flag.String("versitygw", "", "the program versitygw, a store of another hand")
	program   = flag.String("imagectl", "", "the program imagectl, as make builds it")
)

const (
	// resident is what an upload may have in memory at its peak, in KiB.
	resident = 64 << 10
	// large is the size of the image in bytes: what has all of it in memory is found out.
	large = 256 << 20
)

// noise puts an image of role worker into out/, once for each format that is there.
func (s *uploadSite) noise(formats ...store.Format) {
	s.Helper()
	m := store.Manifest{Version: 1, Cluster: "lab", Flatcar: "4593.2.1", Kubernetes: "v1.36.3"}
	if err := os.MkdirAll(s.path("out"), 0o755); err != nil {
		s.Fatal(err)
	}
	for _, format := range formats {
		name := "lab-worker." + string(format)
		f, err := os.Create(s.path("out/" + name))
		if err != nil {
			s.Fatal(err)
		}
		h := sha256.New()
		if _, err := io.CopyN(io.MultiWriter(f, h), rand.NewChaCha8([32]byte{}), large); err != nil {
			s.Fatal(err)
		}
		if err := f.Close(); err != nil {
			s.Fatal(err)
		}
		sum := hex.EncodeToString(h.Sum(nil))
		m.Artefacts = append(m.Artefacts, store.Artefact{Name: name, Role: "worker", Format: format, Size: large, SHA256: sum, RawSize: large, RawSHA256: sum})
	}
	if err := store.WriteManifest(s.path("out"), m); err != nil {
		s.Fatal(err)
	}
}

// gateway runs versitygw with a bucket.
func gateway(t *testing.T, bucket string) (endpoint string) {
	t.Helper()
	if *versitygw == "" {
		t.Fatal("-versitygw is not set; run this through make upload-servers")
	}
	address := daemon.Address(t)
	cmd := exec.Command(*versitygw, "--quiet", "--port", address, "--access", "operator", "--secret", "secret-token", "posix", t.TempDir())
	daemon.Start(t, cmd, "make upload-servers installs it", answering("http://"+address+"/"))
	c, err := minio.New(address, &minio.Options{Creds: credentials.NewStaticV4("operator", "secret-token", ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return "http://" + address
}

func answering(url string) func() error {
	return func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
}

// dockerRegistry runs Debian's.
func dockerRegistry(t *testing.T) (endpoint string) {
	t.Helper()
	dir, address := t.TempDir(), daemon.Address(t)
	conf := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", dir+"/data", address)
	path := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon.Start(t, exec.Command("docker-registry", "serve", path), "apt-get install docker-registry", answering("http://"+address+"/v2/"))
	return "http://" + address
}

// libvirtd runs Debian's with a pool.
func libvirtd(t *testing.T) (endpoint string) {
	t.Helper()
	host := daemon.StartLibvirtd(t)
	cmd := exec.Command("virsh", "--connect", "qemu+unix:///session?socket="+host.Socket(), "pool-create-as", "templates", "dir", "--target", host.Pool())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("making a pool: %v: %s", err, out)
	}
	return "qemu:///session?socket=" + host.Socket()
}

// The program as it is shipped, with an image four times as large as what it may have in
// memory.
func TestTheUploadsMemory(t *testing.T) {
	if *program == "" {
		t.Fatal("-imagectl is not set; run this through make upload-servers")
	}
	s := newUploadSite(t)
	s.noise(store.Raw, store.QCOW2)
	registry := dockerRegistry(t)
	s.entry(fmt.Sprintf(`
  - {name: vault, type: s3, endpoint: "%s", bucket: vms, region: us-east-1, username: operator, password: {env: ONE_PASSWORD}, insecure: true}
  - {name: registry, type: oci, endpoint: "%[2]s/team/vm", insecure: true}
  - {name: kubevirt, type: oci, endpoint: "%[2]s/team/disks", insecure: true, options: {form: containerdisk}}
  - {name: lv, type: libvirt, endpoint: "%s", datastore: templates, options: {emulate: "true"}}
`, gateway(t, "vms"), registry, libvirtd(t)))
	for _, c := range []struct {
		target string
		format store.Format
	}{
		{"lv", store.Raw}, {"vault", store.Raw}, {"registry", store.QCOW2},
		// The file is packed into a layer on the way.
		{"kubevirt", store.QCOW2},
		// The front-end fetches from the program.
		{"one", store.QCOW2},
	} {
		t.Run(c.target, func(t *testing.T) {
			kib, said, err := daemon.Peak(t.Context(), t, nil, *program, "-f", s.path("cluster.yaml"), "upload", c.target, "worker", "--format", string(c.format), "--out", s.path("out"))
			if err != nil || !strings.Contains(said, "is current now") {
				t.Fatalf("%v: %s", err, said)
			}
			t.Logf("%d KiB were resident at most", kib)
			if kib > resident {
				t.Errorf("%d KiB were resident at most, want less than %d", kib, resident)
			}
		})
	}
}
