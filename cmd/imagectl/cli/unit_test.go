package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// systemd judges the unit file that we ship; only the program is another one,
// since verify wants it to exist.
func TestServiceUnitPleasesSystemd(t *testing.T) {
	t.Parallel()
	const program = "/usr/local/bin/imagectl"
	b, err := os.ReadFile("../../../docs/imagectl-serve.service")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte("ExecStart="+program+" serve ")) {
		t.Fatalf("the unit does not start %s serve", program)
	}
	unit := filepath.Join(t.TempDir(), "imagectl-serve.service")
	if err := os.WriteFile(unit, bytes.ReplaceAll(b, []byte(program), []byte("/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
