//go:build e2e

// Package templates uploads a role's image to a real libvirtd, clones the template
// as its users do, and boots two clones until they are enrolled at a real imagectl
// serve. "make templates" runs it, on the test release (test/release/README.md).
package templates

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"github.com/imagectl/imagectl/test/daemon"
	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

var (
	bin     = flag.String("bin", "", "directory of imagectl and bootstrapd")
	release = flag.String("release", "", "directory of the test release")
	cache   = flag.String("cache", "", "imagectl's cache directory; empty for a new one")
)

// report has a clone print what no two clones may share.
const report = `variant: flatcar
version: 1.1.0
systemd:
  units:
    - name: clone-report.service
      enabled: true
      contents: |
        [Service]
        Type=oneshot
        ExecStart=/bin/sh -c 'echo "clone: machine-id=$(cat /etc/machine-id) ssh-host-keys=$(ls /etc/ssh | grep -c ssh_host_)" > /dev/console'
        [Install]
        WantedBy=multi-user.target
`

var reported = regexp.MustCompile(`clone: machine-id=([0-9a-f]{32}) ssh-host-keys=(\d+)`)

func TestClonesOfATemplateEnrolAsThemselves(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 60*time.Minute, fmt.Errorf("the scenario's 60 minutes are over"))
	defer cancel()
	rack, clones := newRack(t, ctx)
	for _, args := range [][]string{{"lock"}, {"build", "--format", "pxe"}, {"build", "worker", "--format", "qcow2"}} {
		if _, err := rack.Imagectl(ctx, args...); err != nil {
			t.Fatal(err)
		}
	}
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	nodeJSON, err := rack.Imagectl(ctx, "machines", "config")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(rack.Site, "node.json"), nodeJSON)
	host := startHost(t)
	host.virsh("pool-create-as", "templates", "dir", "--target", host.Pool())
	appendTo(t, filepath.Join(rack.Site, "cluster.yaml"), fmt.Sprintf(`upload:
  - name: lv
    type: libvirt
    endpoint: qemu:///session?socket=%s
    datastore: templates
    options: {emulate: "true", memoryMB: "1536", node: node.json}
`, host.Socket()))

	for _, want := range []bool{false, true} {
		out, err := rack.Imagectl(ctx, "upload", "lv", "worker", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		var last struct {
			Version string
			Outcome struct{ Unchanged bool }
		}
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if last.Outcome.Unchanged != want {
			t.Fatalf("upload ends with %s, want unchanged %t", lines[len(lines)-1], want)
		}
		if out, err := rack.Imagectl(ctx, "upload", "verify", "lv", last.Version); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	rack.Log("uploaded and verified")

	// Both boot at once: of an emulator's time most is one processor's.
	seen, began := map[string]string{}, time.Now()
	for _, m := range clones {
		host.clone(rack, m)
	}
	for _, m := range clones {
		enrols(t, ctx, rack, m, seen)
		rack.Log("%s: enrolled after %s", m.Name, time.Since(began).Round(time.Second))
	}
	for _, m := range clones {
		host.virsh("destroy", m.Name)
	}
	// The template's disk is what was uploaded.
	if out, err := rack.Imagectl(ctx, "upload", "prune", "lv", "worker", "--keep", "1", "--yes"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := rack.Imagectl(ctx, "upload", "list", "lv"); err != nil || !strings.Contains(out, "demo-worker") {
		t.Errorf("upload list says %s, %v", out, err)
	}
}

// enrols waits until a clone is enrolled, and looks that it is itself.
func enrols(t *testing.T, ctx context.Context, rack *lab.Lab, m lab.Machine, seen map[string]string) {
	t.Helper()
	console := rack.Guests[m.Name].Console
	got, err := console.Wait(ctx, 0, reported)
	if err != nil {
		t.Fatal(err)
	}
	if got[2] != "0" {
		t.Errorf("%s has %s SSH host keys, want none", m.Name, got[2])
	}
	if _, err := console.Wait(ctx, 0, regexp.MustCompile(`which server this machine belongs to" from="?fw_cfg opt/org.imagectl/node`)); err != nil {
		t.Fatal(err)
	}
	if err := rack.Approve(ctx, m); err != nil {
		t.Fatal(err)
	}
	if err := rack.WaitState(ctx, m.Name, "enrolled"); err != nil {
		t.Fatal(err)
	}
	code, err := rack.ReadCode(ctx, m, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, own := range []string{"machine-id " + got[1], "key with the code " + code} {
		if other := seen[own]; other != "" {
			t.Errorf("%s and %s share the %s", m.Name, other, own)
		}
		seen[own] = m.Name
	}
}

func newRack(t *testing.T, ctx context.Context) (*lab.Lab, []lab.Machine) {
	t.Helper()
	for name, value := range map[string]string{"-bin": *bin, "-release": *release} {
		if value == "" {
			t.Fatalf("%s is not set; run this through make templates", name)
		}
	}
	machines := []lab.Machine{lab.Absent()}
	for i, name := range []string{"c1", "c2"} {
		machines = append(machines, lab.Machine{
			Name: name, Role: "worker", Firmware: vm.SeaBIOS, CPUs: 1, MiB: 1536,
			Address: fmt.Sprintf("10.77.0.%d", 41+i), MAC: fmt.Sprintf("52:54:00:77:00:%d", 41+i),
		})
	}
	upstream := t.TempDir()
	if err := lab.StandIns(upstream); err != nil {
		t.Fatal(err)
	}
	rack, err := lab.New(ctx, lab.Lab{Bin: *bin, Release: *release, Upstream: upstream, Work: t.TempDir(), Cache: *cache, Butane: report, Machines: machines, Accel: "tcg",
		Log: lab.Stamped(os.Stderr)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rack.Close)
	return rack, machines[1:]
}

// host is a libvirtd of a user of no rights.
type host struct {
	t *testing.T
	daemon.Libvirtd
}

func startHost(t *testing.T) *host {
	t.Helper()
	return &host{t, daemon.StartLibvirtd(t)}
}

func (h *host) virsh(args ...string) string {
	h.t.Helper()
	cmd := exec.Command("virsh", append([]string{"--connect", "qemu:///session?socket=" + h.Socket()}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.t.Fatalf("virsh %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// clone makes a machine with a disk over the template's, as docs/upload-libvirt.md
// says, and starts it.
func (h *host) clone(rack *lab.Lab, m lab.Machine) {
	h.t.Helper()
	var d libvirtxml.Domain
	if err := d.Unmarshal(h.virsh("dumpxml", "--inactive", "demo-worker")); err != nil {
		h.t.Fatal(err)
	}
	disk := &d.Devices.Disks[0]
	h.virsh("vol-create-as", "templates", m.Name+".qcow2", "12G", "--format", "qcow2",
		"--backing-vol", disk.Source.Volume.Volume, "--backing-vol-format", "qcow2")
	d.Name, d.UUID, d.Title, d.Metadata = m.Name, "", "", nil
	disk.Source.Volume.Volume, disk.ReadOnly = m.Name+".qcow2", nil
	d.Devices.Interfaces[0].MAC = &libvirtxml.DomainInterfaceMAC{Address: m.MAC}
	// The console comes to the test.
	path := filepath.Join(h.Dir, m.Name+".console")
	l, err := net.Listen("unix", path)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		h.t.Fatal(err)
	}
	d.Devices.Serials = []libvirtxml.DomainSerial{{Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "connect", Path: path}}}}
	d.Devices.Consoles = nil
	text, err := d.Marshal()
	if err != nil {
		h.t.Fatal(err)
	}
	file := filepath.Join(h.Dir, m.Name+".xml")
	write(h.t, file, text)
	h.virsh("define", file)
	h.virsh("start", m.Name)
	conn, err := l.Accept()
	if err != nil {
		h.t.Fatal(err)
	}
	rack.Guests[m.Name] = &vm.Guest{Console: vm.Follow(conn)}
	h.t.Cleanup(func() {
		// It is not the rack's to stop.
		delete(rack.Guests, m.Name)
		conn.Close()
		l.Close()
	})
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func appendTo(t *testing.T, path, content string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, string(b)+content)
}
