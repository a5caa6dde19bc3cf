package cli

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/imagectl/imagectl/images/store"
)

// A server that has the manifest gets the rest from the store, once, and believes no
// byte that the manifest does not name.
func TestAServerWithoutTheBuildGetsItFromTheStore(t *testing.T) {
	inside := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	var asked atomic.Int64
	var lies atomic.Bool
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			asked.Add(1)
			if lies.Load() {
				w = liar{w}
			}
		}
		inside.ServeHTTP(w, r)
	}))
	t.Cleanup(shop.Close)
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	dir := siteWith(t, `server: {address: 192.0.2.1, peers: [192.0.2.2], artefacts: shop}
upload: [{name: shop, type: oci, endpoint: "`+shop.URL+`/team/servers", insecure: true}]
boot:
  interface: lo
  dhcp: proxy
  ipxe: {bios: ipxe/undionly.kpxe, uefi: ipxe/snponly.efi}
machines:
  - {name: cp1, role: control-plane, match: {mac: ["52:54:00:00:00:00"]}, address: 127.0.0.1, disk: {path: /dev/vda}}
`, map[string]string{"ipxe/undionly.kpxe": "no PE header", "ipxe/snponly.efi": efiProgram(t)})
	t.Chdir(dir)
	g := &globals{stdio: Stdio{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}, file: filepath.Join(dir, "cluster.yaml")}
	load := func(from sources) (*site, error) {
		p, err := g.plan()
		if err != nil {
			t.Fatal(err)
		}
		if from.shelf, err = g.shelf(p); err != nil {
			t.Fatal(err)
		}
		return g.loadSite(t.Context(), p, from)
	}
	there, err := load(sources{out: "out", cache: "cache"})
	if err != nil {
		t.Fatal(err)
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("the store was asked %d times for what is in out/", n)
	}
	if err := os.Mkdir("other", 0o755); err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile(filepath.Join("out", store.ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("other", store.ManifestName), manifest, 0o644); err != nil {
		t.Fatal(err)
	}
	elsewhere := sources{out: "other", cache: "fresh"}
	if _, err := load(elsewhere); err == nil || !strings.HasSuffix(err.Error(), "; imagectl server publish puts it there") {
		t.Errorf("before anything was published: got %v", err)
	}
	out, errs, code := imagectl(t, "server", "publish", "--cache", "cache")
	if code != exitDone || !strings.HasPrefix(out, "shop has 5 files, ") || !strings.Contains(out, "next: bring cluster.yaml, imagectl.lock and out/manifest.json to each server\n") {
		t.Fatalf("publish: %d\n%s%s", code, out, errs)
	}
	lies.Store(true)
	if _, err := load(elsewhere); err == nil || !strings.HasSuffix(err.Error(), "delete them there: imagectl server publish sends only what is missing") {
		t.Errorf("wrong bytes: got %v", err)
	}
	lies.Store(false)
	asked.Store(0)
	for range 2 {
		got, err := load(elsewhere)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got.artefacts, there.artefacts, func(a, b store.Artefact) bool { return a.SHA256 == b.SHA256 && a.Name == b.Name }) {
			t.Errorf("it serves %v, and who built it %v", got.artefacts, there.artefacts)
		}
		for _, a := range got.artefacts {
			digest, _, err := store.HashFile(t.Context(), got.files[a.SHA256])
			if err != nil || digest != a.SHA256 {
				t.Errorf("%s: %s, %v", a.Name, digest, err)
			}
		}
	}
	if n := asked.Load(); n != int64(len(there.artefacts)) {
		t.Errorf("the store was asked %d times for %d files", n, len(there.artefacts))
	}
	_, errs, code = imagectl(t, "server", "publish", "--out", "other", "--cache", "cache")
	if code != exitFailed || !strings.Contains(errs, "run imagectl build") {
		t.Errorf("publishing what is not there: %d, %s", code, errs)
	}
}

// liar changes the first byte of what goes through.
type liar struct{ http.ResponseWriter }

func (l liar) Write(b []byte) (int, error) {
	wrong := append([]byte{}, b...)
	if len(wrong) > 0 {
		wrong[0] ^= 1
	}
	return l.ResponseWriter.Write(wrong)
}
