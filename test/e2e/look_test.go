//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/lab"
)

// lookAtNodes does what one would log in for, by the node API of whole nodes, and has kubectl,
// the machine's console, tcpdump and age judge the answers.
func lookAtNodes(t *testing.T, ctx context.Context, rack *lab.Lab) {
	ask := func(args ...string) string {
		t.Helper()
		out, err := rack.Imagectl(ctx, append([]string{"node"}, args...)...)
		if err != nil {
			t.Error(err)
		}
		return out
	}
	for _, m := range rack.Active() {
		// One of them directly, the other through the server.
		via := map[string]string{"cp1": "direct", "w1": "server"}[m.Name]
		has(t, m.Name+"'s processes", ask("ps", m.Name, "--via", via), "bootstrapd", "kubelet", "containerd", "systemd")
		if failed := ask("units", m.Name, "--failed"); strings.Count(failed, "\n") > 1 {
			t.Errorf("units of %s that have failed:\n%s", m.Name, failed)
		}
		sameKernelLog(t, rack, m, ask("dmesg", m.Name))
	}
	has(t, "w1's kubelet", ask("units", "w1", "kubelet.service"), "loaded, active (running)")
	has(t, "w1's disks", ask("disks", "w1"), "disk-w1", "ROOT", "OEM")
	has(t, "w1's network", ask("net", "w1"), "10.77.0.21/24", "0.0.0.0/0")
	has(t, "w1's sockets", ask("net", "w1", "--sockets"), ":50500")
	sameClock(t, ask("time", "w1", "-o", "json"))
	has(t, "w1's release", ask("cat", "w1", "/usr/lib/os-release"), "ID=flatcar")
	if out, err := rack.Imagectl(ctx, "node", "cat", "w1", "/etc/kubernetes/kubelet.conf"); err == nil {
		t.Errorf("a file that is not on the list was sent: %d bytes", len(out))
	}
	has(t, "w1's containers", ask("logs", "w1"), "probe")
	theirs, err := rack.Kubectl(ctx, "logs", "probe")
	if err != nil {
		t.Error(err)
	}
	if ours := ask("logs", "w1", "default/probe"); !strings.Contains(ours, strings.TrimSpace(theirs)) {
		t.Errorf("the pod's log is %q, kubectl has %q", ours, theirs)
	}
	captured(t, rack, ask)
	bundled(t, rack, ask)
}

func has(t *testing.T, what, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s are without %q:\n%s", what, w, text)
		}
	}
}

// sameKernelLog: the kernel said its version on the console too.
func sameKernelLog(t *testing.T, rack *lab.Lab, m lab.Machine, log string) {
	t.Helper()
	console := rack.Guests[m.Name].Console
	lines := console.Tail(console.Len())
	slices.Reverse(lines) // of its last boot
	for _, line := range lines {
		if _, version, ok := strings.Cut(line, "Linux version "); ok {
			has(t, m.Name+"'s kernel messages", log, "Linux version "+strings.TrimSpace(version))
			return
		}
	}
	t.Errorf("the console of %s does not show which kernel it boots", m.Name)
}

// sameClock: guests have the host's clock at power-on, and answers take seconds.
func sameClock(t *testing.T, answer string) {
	t.Helper()
	var clock struct{ Now time.Time }
	if err := json.Unmarshal([]byte(answer), &clock); err != nil {
		t.Errorf("reading %q: %v", answer, err)
	} else if off := time.Since(clock.Now).Abs(); off > time.Minute {
		t.Errorf("w1's clock is off by %s, or it says a wrong time: %s", off, answer)
	}
}

// captured: kubelet's leases keep packets going to the API server.
func captured(t *testing.T, rack *lab.Lab, ask func(...string) string) {
	t.Helper()
	var net struct {
		Links []struct {
			Name      string
			Addresses []string
		}
	}
	if err := json.Unmarshal([]byte(ask("net", "w1", "-o", "json")), &net); err != nil {
		t.Error(err)
		return
	}
	link := ""
	for _, l := range net.Links {
		if slices.Contains(l.Addresses, "10.77.0.21/24") {
			link = l.Name
		}
	}
	file := filepath.Join(rack.Work, "w1.pcap")
	ask("capture", "w1", link, "--seconds", "60s", "--packets", "4", "--protocol", "tcp", "--port", "6443", "--out", file)
	out, err := exec.Command("tcpdump", "-nr", file).CombinedOutput()
	if lines := strings.Count(string(out), " IP 10.77.0."); err != nil || lines != 4 || strings.Count(string(out), ".6443") != 4 {
		t.Errorf("tcpdump sees %d packets of the capture on %s, want 4 of the API server's port: %v\n%s", lines, link, err, out)
	}
}

// bundled opens a support bundle with age's own program.
func bundled(t *testing.T, rack *lab.Lab, ask func(...string) string) {
	t.Helper()
	file := filepath.Join(rack.Work, "w1.tar.age")
	ask("bundle", "w1", "--out", file)
	age := exec.Command("age", "--decrypt", "-i", filepath.Join(rack.Work, "support.key"), file)
	var said bytes.Buffer
	age.Stderr = &said
	archive, err := age.Output()
	if err != nil {
		t.Errorf("age does not open the bundle: %v: %s", err, said.String())
		return
	}
	dir := t.TempDir()
	tar := exec.Command("tar", "-xv", "-C", dir)
	tar.Stdin = bytes.NewReader(archive)
	names, err := tar.CombinedOutput()
	if err != nil {
		t.Errorf("tar does not read the bundle: %v: %s", err, names)
	}
	has(t, "a bundle's files", string(names), "version.json", "health.json", "units.json", "processes.json", "disks.json", "network.json", "time.json", "containers.json", "journal")
	if missing, err := os.ReadFile(filepath.Join(dir, "errors.txt")); err == nil && len(missing) > 0 {
		t.Errorf("not in the bundle: %s", missing)
	}
	sealed, err := os.ReadFile(file)
	if err != nil {
		t.Error(err)
	}
	if bytes.Contains(sealed, []byte("bootstrapd")) {
		t.Error("the bundle is not encrypted")
	}
	fmt.Fprintf(os.Stderr, "   a support bundle of w1: %d bytes, %d files\n", len(sealed), bytes.Count(names, []byte("\n")))
}
