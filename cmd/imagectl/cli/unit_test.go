package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	oneUnit  = "imagectl-serve.service"
	manyUnit = "imagectl-serve@.service"
)

// shipped are the unit files that we ship, with the name that each has when it runs.
func shipped() map[string]string {
	return map[string]string{oneUnit: oneUnit, manyUnit: "imagectl-serve@prod.service"}
}

// systemd judges the unit files that we ship; only the program is another one,
// since verify wants it to exist.
func TestServiceUnitPleasesSystemd(t *testing.T) {
	t.Parallel()
	const program = "/usr/local/bin/imagectl"
	for file, name := range shipped() {
		b, err := os.ReadFile("../../../docs/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(b, []byte("ExecStart="+program+" serve ")) {
			t.Fatalf("%s does not start %s serve", file, program)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, file), bytes.ReplaceAll(b, []byte(program), []byte("/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("systemd-analyze", "verify", "--man=no", filepath.Join(dir, name)).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify %s: %v\n%s", name, err, out)
		}
	}
}

// What two clusters would write to has the cluster's name in it, and else the template is the
// unit of one cluster.
func TestServiceUnitOfManyClustersIsThatOfOne(t *testing.T) {
	t.Parallel()
	lines := func(file string) string {
		b, err := os.ReadFile("../../../docs/" + file)
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ := strings.Cut(string(b), "\n[Unit]\n")
		var out strings.Builder
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "#") {
				out.WriteString(line)
			}
		}
		return out.String()
	}
	got := lines(manyUnit)
	for many, one := range map[string]string{
		"coordination of %i\n": "coordination\n", "/etc/imagectl/%i\n": "/etc/imagectl/site\n", "/var/lib/imagectl/%i": "/var/lib/imagectl",
		"/var/cache/imagectl/%i": "/var/cache/imagectl", "Directory=imagectl/%i\n": "Directory=imagectl\n",
	} {
		if !strings.Contains(got, many) {
			t.Errorf("the template has no %q", many)
		}
		got = strings.ReplaceAll(got, many, one)
	}
	if diff := cmp.Diff(lines(oneUnit), got); diff != "" {
		t.Errorf("the template differs from the unit of one cluster in more than its name (-one +many):\n%s", diff)
	}
}

// It runs as nobody, with two of root's capabilities, and systemd finds little else that
// it could do: 10 is a service that may do everything.
func TestServiceUnitIsConfined(t *testing.T) {
	t.Parallel()
	for file, name := range shipped() {
		confined(t, file, name)
	}
}

func confined(t *testing.T, file, name string) {
	t.Helper()
	b, err := os.ReadFile("../../../docs/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"DynamicUser=yes", "NoNewPrivileges=yes", "AmbientCapabilities=CAP_NET_BIND_SERVICE CAP_NET_RAW", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_NET_RAW"} {
		if !bytes.Contains(b, []byte("\n"+want+"\n")) {
			t.Errorf("%s has no line %s", file, want)
		}
	}
	for _, never := range []string{"\nUser=", "\nExecStartPre=+", "=CAP_SYS_ADMIN", "\nPermissionsStartOnly="} {
		if bytes.Contains(b, []byte(never)) {
			t.Errorf("%s has %q", file, never)
		}
	}
	dir := t.TempDir()
	unit := filepath.Join(dir, name)
	if err := os.WriteFile(filepath.Join(dir, file), bytes.ReplaceAll(b, []byte("/usr/local/bin/imagectl"), []byte("/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	// The threshold is in tenths: systemd-analyze fails above 2.5.
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=25", unit).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("Overall exposure level for "+name+": ")) {
		t.Errorf("systemd-analyze security %s: %v\n%s", name, err, out)
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
