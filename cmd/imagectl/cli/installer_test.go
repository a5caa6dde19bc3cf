package cli

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coreos/ignition/v2/config"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/catalog"
)

type armedStates struct{}

func (armedStates) State(string) machine.State { return machine.Armed }

// installing is what a server's first machine boots with a version of Flatcar.
func installing(t *testing.T, channel, version string) (*site, boot.Answer) {
	t.Helper()
	dir := siteWith(t, `server: {address: 192.0.2.1, peers: [192.0.2.2]}
boot:
  interface: lo
  dhcp: proxy
  ipxe: {bios: ipxe/undionly.kpxe, uefi: ipxe/snponly.efi}
machines:
  - {name: cp1, role: control-plane, match: {mac: ["52:54:00:00:00:00"]}, address: 127.0.0.1, disk: {path: /dev/vda}}
`, map[string]string{"ipxe/undionly.kpxe": "no PE header", "ipxe/snponly.efi": efiProgram(t)})
	t.Chdir(dir)
	g := &globals{stdio: Stdio{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}, file: filepath.Join(dir, "cluster.yaml")}
	p, err := g.plan()
	if err != nil {
		t.Fatal(err)
	}
	s, err := g.loadSite(t.Context(), p, sources{out: "out", cache: "cache"})
	if err != nil {
		t.Fatal(err)
	}
	s.plan.Flatcar.Channel, s.plan.Flatcar.Version = channel, version
	ca, err := pki.NewCA("imagectl", time.Hour, time.Minute, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.catalogConfig(string(ca.CertificatePEM()), armedStates{})
	if err != nil {
		t.Fatal(err)
	}
	cat, err := catalog.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s, cat.Look(boot.Machine{MAC: p.Machines[0].MACs[0]})
}

// What comes with the kernel is all that the installer needs until its agent runs, and
// that knows every server.
func TestTheInstallerNeedsNoServerToStart(t *testing.T) {
	s, a := installing(t, "stable", "4593.2.5")
	if !a.Configured || len(a.Initrd) != 2 || a.Initrd[1].Name != "demo-installer.cpio.gz" {
		t.Fatalf("it boots %+v", a)
	}
	f, err := s.open(a.Initrd[1].SHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	archive, err := io.ReadAll(f)
	if err != nil || int64(len(archive)) != a.Initrd[1].Size {
		t.Fatalf("read %d bytes of %d: %v", len(archive), a.Initrd[1].Size, err)
	}
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", "gzip -dc | cpio --extract --quiet --no-absolute-filenames")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	agent, err := os.ReadFile("out/imagectl.raw")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read("usr/share/oem/imagectl.raw"), agent) {
		t.Error("the agent in it is another")
	}
	ign := read("usr/share/oem/config.ign")
	if _, report, err := config.Parse(ign); err != nil || report.IsFatal() {
		t.Errorf("its Ignition config: %v, %s", err, report.String())
	}
	if bytes.Contains(ign, []byte("http:")) {
		t.Error("it names something to fetch")
	}
	var parsed struct {
		Storage struct {
			Links []struct{ Path, Target string }
		}
	}
	if err := json.Unmarshal(ign, &parsed); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, l := range parsed.Storage.Links {
		found = found || l.Path == "/etc/extensions/imagectl.raw" && l.Target == "/oem/imagectl.raw"
	}
	if !found {
		t.Errorf("the agent is no extension: %v", parsed.Storage.Links)
	}
}

// These look into the first archive only.
func TestReleasesThatLoseArchivesAskForTheirConfig(t *testing.T) {
	if _, a := installing(t, "alpha", "4500.0.0"); a.Configured || len(a.Initrd) != 1 {
		t.Errorf("it boots %+v", a)
	}
	for version, want := range map[string]bool{
		"alpha 4486.0.0": false, "alpha 4487.0.0": true, "alpha 4668.1.0": true, "alpha 4669.0.0": false,
		"beta 4514.0.0": false, "beta 4515.1.0": true, "beta 4627.0.0": true, "beta 4628.1.0": false,
		"stable 4593.2.5": false, "lts 4500.0.0": false,
	} {
		channel, number, _ := strings.Cut(version, " ")
		if got := losesArchives(plan.Flatcar{Channel: channel, Version: number}); got != want {
			t.Errorf("%s: got %v", version, got)
		}
	}
}
