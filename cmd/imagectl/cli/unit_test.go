package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// It runs as nobody, with two of root's capabilities, and systemd finds little else that
// it could do: 10 is a service that may do everything.
func TestServiceUnitIsConfined(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../../docs/imagectl-serve.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"DynamicUser=yes", "NoNewPrivileges=yes", "AmbientCapabilities=CAP_NET_BIND_SERVICE CAP_NET_RAW", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_NET_RAW"} {
		if !bytes.Contains(b, []byte("\n"+want+"\n")) {
			t.Errorf("the unit has no line %s", want)
		}
	}
	for _, never := range []string{"\nUser=", "\nExecStartPre=+", "=CAP_SYS_ADMIN", "\nPermissionsStartOnly="} {
		if bytes.Contains(b, []byte(never)) {
			t.Errorf("the unit has %q", never)
		}
	}
	unit := filepath.Join(t.TempDir(), "imagectl-serve.service")
	if err := os.WriteFile(unit, bytes.ReplaceAll(b, []byte("/usr/local/bin/imagectl"), []byte("/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	// The threshold is in tenths: systemd-analyze fails above 2.5.
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=25", unit).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("Overall exposure level for imagectl-serve.service: ")) {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}

// What other machines say moves no cursor: an error's text is theirs too.
func TestErrorsAreFitForATerminal(t *testing.T) {
	t.Setenv("IMAGECTL_CONFIG", "\x1b[2Jx")
	var out, errs strings.Builder
	code := Main(t.Context(), Stdio{In: strings.NewReader(""), Out: &out, Err: &errs}, []string{"status"})
	if got := errs.String(); code != exitFailed || !strings.Contains(got, "there is no context file  [2Jx") {
		t.Errorf("code %d, %q", code, got)
	}
}
