//go:build root

package render

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/images/upstream"
)

// registry is a mirror that has one image and asks for a password. It notes the paths that
// it was asked for.
type registry struct {
	prefix string
	blobs  map[string][]byte // by path
	mu     sync.Mutex
	asked  []string
}

func newRegistry(prefix string) *registry {
	r := &registry{prefix: prefix, blobs: map[string][]byte{}}
	digest := func(b []byte) string { d := sha256.Sum256(b); return "sha256:" + hex.EncodeToString(d[:]) }
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	r.blobs["/blobs/"+digest(config)] = config
	r.blobs["/manifests/1"] = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`, digest(config), len(config))
	r.blobs["/manifests/"+digest(r.blobs["/manifests/1"])] = r.blobs["/manifests/1"]
	return r
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	r.mu.Lock()
	r.asked = append(r.asked, req.URL.Path+" "+req.URL.Query().Get("ns"))
	r.mu.Unlock()
	b, ok := r.blobs[strings.TrimPrefix(req.URL.Path, r.prefix+"/library/example")]
	switch {
	case user != "reader" || password != "not for strangers":
		w.WriteHeader(http.StatusForbidden)
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	default:
		if strings.Contains(req.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			d := sha256.Sum256(b)
			w.Header().Set("Docker-Content-Digest", "sha256:"+hex.EncodeToString(d[:]))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = w.Write(b)
	}
}

// containerd fetches an image by what is written for it: past an endpoint that is away, from
// one with a path, with the CA and the password of cluster.yaml, and never from the registry
// itself.
func TestContainerdAsksTheMirrors(t *testing.T) {
	bin := filepath.Join(os.Getenv("IMAGECTL_UPSTREAM"), "containerd")
	if _, err := os.Stat(filepath.Join(bin, "ctr")); err != nil {
		t.Fatalf("a judge is missing: %v (IMAGECTL_UPSTREAM; make upstream)", err)
	}
	const prefix = "/v2/hub"
	mirror := newRegistry(prefix)
	srv := httptest.NewTLSServer(mirror)
	defer srv.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	away := gone.Addr().String()
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	n := cluster.Network{Mirrors: []cluster.RegistryMirror{{
		Name: "docker.io", Endpoints: []string{"https://" + away, srv.URL + prefix}, CA: ca, Username: "reader", Password: cluster.Secret{Env: "MIRROR"},
	}}}
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, f := range NewNetworks(plan.Plan{}).Files(n, Passwords{Mirrors: map[string]string{"docker.io": "not for strangers"}}) {
		write(f.Path, f.Content)
	}

	// Both configurations, with and without runtimes, say where the mirrors are.
	runtimes, err := upstream.ContainerdConfig([]upstream.Runtime{{Name: "gvisor", Type: "io.containerd.runsc.v1"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{filepath.Join(dir, containerdPath), write("runtimes.toml", []byte(runtimes))} {
		out, err := exec.Command(filepath.Join(bin, "containerd"), "--config", file, "config", "dump").Output()
		if err != nil || !strings.Contains(string(out), "config_path = '"+strings.TrimSuffix(certsDir, "/")+"'") {
			t.Errorf("containerd reads of %s, %v:\n%s", file, err, out)
		}
	}

	socket := filepath.Join(dir, "s")
	config := write("containerd.toml", fmt.Appendf(nil, "version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", dir+"/root", dir+"/state", socket))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	daemon := exec.Command(filepath.Join(bin, "containerd"), "--config", config)
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for try := 0; ; try++ {
		c, err := net.Dial("unix", socket)
		if err == nil {
			_ = c.Close()
			break
		}
		if ctx.Err() != nil {
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("containerd does not listen: %v\n%s", err, said)
		}
		time.Sleep(100 * time.Millisecond)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "ctr"), "--address", socket, "content", "fetch", "--platform", "linux/amd64",
		"--hosts-dir", filepath.Join(dir, certsDir), "docker.io/library/example:1").CombinedOutput()
	if err != nil {
		t.Errorf("fetching by the mirror: %v\n%s\nthe mirror was asked for %q", err, out, mirror.asked)
	}
	if want := prefix + "/library/example/manifests/1 docker.io"; !slices.Contains(mirror.asked, want) {
		t.Errorf("the mirror was asked for %q, want %s", mirror.asked, want)
	}
}
