//go:build vm

package release_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
)

var binDir = flag.String("bin", "", "directory of imagectl")

const (
	lockedImage  = "flatcar_production_image.bin.bz2"
	lockedKernel = "flatcar_production_pxe.vmlinuz"
)

// TestLockRefusesBadReleases runs imagectl lock --update against a mirror whose
// one file is bad, over the lock of the good one. variants/ signs only
// version.txt; it plays the kernel, for lock looks at signatures, not inside.
func TestLockRefusesBadReleases(t *testing.T) {
	s := newSite(t)
	if out, code := s.lock(); code != 0 {
		t.Fatalf("locking the release as published: exit code %d: %s", code, out)
	}
	good := s.lockFile()
	content, mark := s.variant("version.txt"), `imagectl: locking flatcar/`
	for _, c := range []struct {
		name, file    string
		content, sign []byte
		says          []string
	}{
		{
			"one flipped bit", lockedImage, flipped(s.published(lockedImage)), s.published(lockedImage + ".sig"),
			[]string{mark + "image: fetching http://.*/" + lockedImage + ": the signature does not hold", `changed or cut off after that`, `nothing of it is used: try another mirror`},
		}, {
			"truncated", lockedImage, s.published(lockedImage)[:1<<20], s.published(lockedImage + ".sig"),
			[]string{mark + "image: fetching http://.*/" + lockedImage + ": the signature does not hold", `changed or cut off after that`, `nothing of it is used: try another mirror`},
		}, {
			"one flipped bit, and digests in place of a signature", lockedKernel, flipped(s.published(lockedKernel)), nil,
			[]string{mark + "pxe-kernel: fetching http://.*/" + lockedKernel + ": the signature does not hold", `the file is not what was signed`, `try another mirror`},
		}, {
			"signed by a stranger", lockedKernel, content, s.variant("version.txt.stranger.sig"),
			[]string{mark + "pxe-kernel: fetching http://.*/" + lockedKernel + ": the signature does not hold", `made by key [0-9A-F]{40}, which is neither the pinned primary key ` + s.primary, `pin another key only after its publisher has confirmed`},
		}, {
			"signed by a subkey after its end", lockedKernel, content, s.variant("version.txt.after-expiry.sig"),
			[]string{mark + "pxe-kernel: fetching http://.*/" + lockedKernel + ": the signature does not hold", `by subkey [0-9A-F]{40} of ` + s.primary + `, which had expired on 2025-`, `try another mirror or release`},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.instead(t, map[string][]byte{c.file: c.content, c.file + ".sig": c.sign})
			out, code := s.lock("--update")
			want(t, "exit code", fmt.Sprint(code), "1")
			for _, pattern := range c.says {
				if !regexp.MustCompile(pattern).MatchString(out) {
					t.Errorf("got %q, want it to match %q", out, pattern)
				}
			}
			if !bytes.Equal(s.lockFile(), good) {
				t.Errorf("imagectl.lock was changed to %s", s.lockFile())
			}
		})
	}
	t.Run("digests in place of a signature", func(t *testing.T) {
		s.instead(t, map[string][]byte{lockedKernel + ".sig": nil, lockedImage + ".sig": nil})
		if out, code := s.lock("--update"); code != 0 || !regexp.MustCompile(`inputs locked`).MatchString(out) {
			t.Errorf("exit code %d: %s", code, out)
		}
	})
	t.Run("signed by a subkey that has since expired", func(t *testing.T) {
		s.instead(t, map[string][]byte{lockedKernel: content, lockedKernel + ".sig": s.variant("version.txt.expired-subkey.sig")})
		out, code := s.lock("--update")
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		if !regexp.MustCompile(`changed  flatcar/pxe-kernel .*\n +signed by ` + s.primary + `, subkey [0-9A-F]{40}, on 2024-06-01T`).MatchString(out) {
			t.Errorf("got %q, want the kernel's new signer", out)
		}
		if bytes.Equal(s.lockFile(), good) {
			t.Error("imagectl.lock was not changed")
		}
	})
}

// A site is a directory with a cluster.yaml whose mirror is the test release,
// served over HTTP, with single files replaced.
type site struct {
	t            *testing.T
	dir, primary string
	replaced     map[string][]byte
}

func newSite(t *testing.T) *site {
	t.Helper()
	if *binDir == "" {
		t.Fatal("which imagectl? go test -tags vm ./test/release -release DIR -bin DIR (made by make build)")
	}
	released(t, lockedImage)
	s := &site{t: t, dir: t.TempDir()}
	files := http.FileServer(http.Dir(*releaseDir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b, ok := s.replaced[filepath.Base(r.URL.Path)]; ok && b == nil {
			http.NotFound(w, r)
			return
		} else if ok {
			_, _ = w.Write(b) // a client that went away fails its own command
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	ring := s.read(filepath.Join(*releaseDir, "keys/signing-key.asc"))
	keys, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(ring))
	if err != nil || len(keys) != 1 {
		t.Fatalf("the release's keyring holds %d keys: %v", len(keys), err)
	}
	s.primary = fmt.Sprintf("%X", keys[0].PrimaryKey.Fingerprint)
	version := filepath.Base(filepath.Dir(resolved(t, lockedImage)))
	write(t, filepath.Join(s.dir, "flatcar.asc"), string(ring))
	write(t, filepath.Join(s.dir, "other"), "any input but the release\n")
	for _, name := range []string{"kubeadm", "kubelet", "kubectl"} {
		write(t, filepath.Join(s.dir, name), name)
	}
	write(t, filepath.Join(s.dir, "cluster.yaml"), fmt.Sprintf(siteYAML, version, server.URL, s.primary))
	return s
}

const siteYAML = `version: 1
cluster: demo
flatcar: {channel: stable, version: %s, mirror: "%s/stable", keyring: flatcar.asc, primaryKey: %s}
kubernetes: {version: v1.36.3, binaries: .}
etcd: {version: v3.6.10, source: other}
cni: {version: v1.9.1, source: other}
agent: {source: other}
server: {address: 10.0.0.2}
boot:
  interface: eth1
  dhcp: authoritative
  subnets: [{cidr: 10.0.0.0/24}]
  ipxe: {bios: other, uefi: other}
roles:
  control-plane: {kind: control-plane}
machines:
  - name: cp1
    role: control-plane
    match: {mac: ["52:54:00:00:00:11"]}
    address: 10.0.0.11
    disk: {path: /dev/vda}
`

// lock runs the real program and returns all it prints and its exit code.
func (s *site) lock(args ...string) (string, int) {
	s.t.Helper()
	bin, err := filepath.Abs(filepath.Join(*binDir, "imagectl"))
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(bin, append([]string{"lock"}, args...)...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "IMAGECTL_CACHE="+filepath.Join(s.dir, "cache"))
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		s.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// instead makes the mirror answer with other bytes until the test ends; with nil,
// that it has no such file.
func (s *site) instead(t *testing.T, files map[string][]byte) {
	s.replaced = files
	t.Cleanup(func() { s.replaced = nil })
}

func (s *site) lockFile() []byte { return s.read(filepath.Join(s.dir, "imagectl.lock")) }

func (s *site) published(name string) []byte { return s.read(released(s.t, name)) }

func (s *site) variant(name string) []byte {
	return s.read(filepath.Join(*releaseDir, "variants", name))
}

func (s *site) read(path string) []byte {
	s.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// resolved is the path of a released file without links, which names its version.
func resolved(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.EvalSymlinks(released(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func flipped(b []byte) []byte {
	b[len(b)/2] ^= 1
	return b
}
