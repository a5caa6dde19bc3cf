package cli

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// helper is a program as docker runs it for credentials: one verb as argument, the server on
// standard input, an answer in JSON or words on standard output
// (https://github.com/docker/docker-credential-helpers). It writes down what it is asked.
const helper = `#!/bin/sh
read -r server
echo "$1 $server" >> %[1]s/asked
[ -e %[1]s/token ] || { echo "credentials not found in native keychain"; exit 1; }
[ -s %[1]s/token ] || { echo "the keychain is locked"; exit 1; }
printf '{"ServerURL":"%%s","Username":"robot","Secret":"%%s"}\n' "$server" "$(cat %[1]s/token)"
`

// Without username, whom the registry knows is asked of the program that docker's
// configuration names, at each command, and nothing of it stays here.
func TestUploadAsksACredentialHelper(t *testing.T) {
	inside := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, secret, _ := r.BasicAuth(); user != "robot" || secret != "of-the-keychain" {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"nobody comes in here"}]}`, http.StatusUnauthorized)
			return
		}
		inside.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s := newUploadSite(t)
	img := s.build(1)
	s.entry(fmt.Sprintf("\n  - {name: registry, type: oci, endpoint: %q}\n", server.URL+"/team/vm"))
	host := strings.TrimPrefix(server.URL, "http://")
	dir := t.TempDir()
	put := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	put("docker-credential-imagectl-test", fmt.Sprintf(helper, dir), 0o700)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("DOCKER_CONFIG", dir)
	put("token", "of-the-keychain", 0o600)
	for _, conf := range []string{`{"credHelpers": {"` + host + `": "imagectl-test"}}`, `{"credsStore": "imagectl-test"}`} {
		put("config.json", conf, 0o600)
		put("asked", "", 0o600)
		s.wants(exitDone, img.Version, "upload", "registry", "worker", "--out", s.path("out"))
		asked, err := os.ReadFile(filepath.Join(dir, "asked"))
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Split(strings.TrimSpace(string(asked)), "\n"); !strings.HasPrefix(lines[0], "get "+host) {
			t.Errorf("with %s the program was asked %q, want get %s", conf, lines, host)
		}
	}
	s.wants(exitDone, "good", "upload", "verify", "registry", img.Version, "--out", s.path("out"))
	for _, c := range []struct {
		name, token string
		code        int
		want        string
	}{
		{"another secret", "wrong", exitAuth, "nobody comes in here"},
		{"a program that fails", "", exitAuth, "the keychain is locked"},
	} {
		put("token", c.token, 0o600)
		code, out, errs := s.imagectl("upload", "list", "registry")
		if code != c.code || !strings.Contains(errs, c.want) || strings.Contains(out+errs, "of-the-keychain") {
			t.Errorf("%s: exit code %d, want %d with %q: %s%s", c.name, code, c.code, c.want, out, errs)
		}
	}
	// Nothing is known of this registry: it is asked without a name, and refuses that.
	if err := os.Remove(filepath.Join(dir, "token")); err != nil {
		t.Fatal(err)
	}
	s.wants(exitAuth, "nobody comes in here", "upload", "list", "registry")
	put("config.json", `{"credHelpers": {"`+host+`": "imagectl-missing"}}`, 0o600)
	s.wants(exitAuth, "docker-credential-imagectl-missing", "upload", "list", "registry")
	if err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), "of-the-keychain") {
			t.Errorf("%s has the secret", path)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
