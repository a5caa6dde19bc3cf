//go:build root

package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
)

// The drill of docs/backup.md with real processes: the server is killed, its disk is
// gone, another one goes on from the backup.
func TestServeIsRestoredElsewhere(t *testing.T) {
	dir := rackSite(t, 3)
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	// The key lies where the server never looks.
	recovery := filepath.Join(t.TempDir(), "recovery.key")
	if err := os.WriteFile(recovery, []byte(key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	backups := t.TempDir()
	yaml, err := os.ReadFile(filepath.Join(dir, "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	yaml = append(yaml, "backup: {recipients: ["+key.Recipient().String()+"], target: "+backups+"}\n"...)
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), yaml, 0o644); err != nil {
		t.Fatal(err)
	}
	s := startServe(t, dir)
	run := func(want string, args ...string) string {
		t.Helper()
		out, errs, code := imagectl(t, args...)
		if code != 0 || !regexp.MustCompile(want).MatchString(out) {
			t.Fatalf("imagectl %s: %d\n%s%s\nwant %s", strings.Join(args, " "), code, out, errs, want)
		}
		return out
	}
	if err := os.WriteFile(filepath.Join(dir, "state", "leases"), []byte(`{"mac":"52:54:00:00:00:09","addr":"10.97.250.7","until":"2036-01-01T00:00:00Z"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run("", "machines", "arm", "w1")
	before := run(`"sha256|"ca": `, "certs", "ls", "-o", "json")
	run("and read it back", "server", "backup")
	if err := s.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.Wait() // it was killed
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}

	began := time.Now()
	run(`next: make sure that the old server never starts again; give this machine its address \(nodes call https://10\.97\.0\.1:8443\)`,
		"server", "restore", backups, "--identity", recovery, "--state", filepath.Join(dir, "state"))
	startServe(t, dir)
	t.Logf("from nothing to a server that answers: %s", time.Since(began).Round(time.Millisecond))
	run("note: this server was restored at .* from the backup of ", "status")
	run(`w1 +worker +approved`, "machines", "ls")
	after := run("", "certs", "ls", "--all", "-o", "json")
	serial := regexp.MustCompile(`"serial": "([0-9a-f]+)"`)
	for _, m := range serial.FindAllStringSubmatch(before, -1) {
		if !strings.Contains(after, m[1]) {
			t.Errorf("certificate %s is not on record any more", m[1])
		}
	}
	leases, err := os.ReadFile(filepath.Join(dir, "state", "leases"))
	if err != nil || !strings.Contains(string(leases), "10.97.250.7") {
		t.Errorf("the leases: %s, %v", leases, err)
	}
	// The context file of before the loss is good still, and so is a new one.
	run("cluster demo: ", "status")
}
