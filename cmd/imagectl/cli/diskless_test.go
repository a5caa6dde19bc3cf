package cli

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/catalog"
	"github.com/vincent-petithory/dataurl"
)

// What a diskless machine loads makes it a node of its role: every extension that its
// installed siblings have, from where it is served and with its digest, its network's files,
// and node.json without anything secret.
func TestADisklessMachineLoadsItsRole(t *testing.T) {
	dir := siteWith(t, `server: {address: 192.0.2.1}
boot:
  interface: lo
  dhcp: proxy
  ipxe: {bios: ipxe/undionly.kpxe, uefi: ipxe/snponly.efi}
identity: {policy: tpm}
machines:
  - {name: cp1, role: control-plane, match: {mac: ["52:54:00:00:00:00"]}, address: 127.0.0.1, disk: {path: /dev/vda}}
  - {name: w1, role: worker, match: {mac: ["52:54:00:00:00:01"]}, address: 127.0.0.2, diskless: true, network: {ntp: [192.0.2.9]}}
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
	ca, err := pki.NewCA("imagectl", time.Hour, time.Minute, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.catalogConfig(string(ca.CertificatePEM()), armedStates{})
	if err != nil {
		t.Fatal(err)
	}
	c.States = unstarted{}
	cat, err := catalog.New(c)
	if err != nil {
		t.Fatal(err)
	}
	m := boot.Machine{MAC: p.Machines[1].MACs[0]}
	a := cat.Look(m)
	if a.Action != boot.Run || !a.Configured || len(a.Initrd) != 2 || a.Initrd[1].Name != "demo-w1.cpio.gz" {
		t.Fatalf("it boots %+v", a)
	}
	f, err := s.open(a.Initrd[1].SHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sh", "-c", "gzip -dc | cpio --extract --quiet --to-stdout usr/share/oem/config.ign")
	cmd.Stdin = f
	loaded, err := cmd.Output()
	if err != nil {
		t.Fatalf("cpio: %v", err)
	}
	// Media and releases that lose archives ask for the same.
	asked, err := cat.Ignition(m)
	if err != nil || !bytes.Equal(asked, loaded) {
		t.Errorf("asked for its config it gets another: %v", err)
	}
	var ign struct {
		Storage struct {
			Files []struct {
				Path     string
				Contents struct {
					Source       string
					Verification struct{ Hash string }
				}
			}
			Disks, Filesystems []any
		}
	}
	if err := json.Unmarshal(loaded, &ign); err != nil {
		t.Fatal(err)
	}
	if len(ign.Storage.Disks)+len(ign.Storage.Filesystems) > 0 {
		t.Errorf("it writes disks: %+v", ign.Storage)
	}
	files := map[string]string{}
	var extensions []string
	for _, f := range ign.Storage.Files {
		if d, err := dataurl.DecodeString(f.Contents.Source); err == nil {
			files[f.Path] = string(d.Data)
		}
		if strings.HasPrefix(f.Path, "/etc/extensions/") {
			i := slices.IndexFunc(s.extensions["worker"], func(a store.Artefact) bool { return f.Path == "/etc/extensions/"+a.Extension+".raw" })
			if i < 0 {
				t.Errorf("it loads %s", f.Path)
				continue
			}
			e := s.extensions["worker"][i]
			extensions = append(extensions, e.Extension)
			if want := fmt.Sprintf("http://192.0.2.1:8080/files/%s/%s", e.SHA256, e.Name); f.Contents.Source != want || f.Contents.Verification.Hash != "sha256-"+e.SHA256 {
				t.Errorf("%s comes from %s as %s, want %s", f.Path, f.Contents.Source, f.Contents.Verification.Hash, want)
			}
			if _, ok := cat.Blob(e.SHA256); !ok {
				t.Errorf("%s is not served", f.Path)
			}
		}
	}
	if got, want := fmt.Sprint(extensions), "[imagectl kubernetes]"; got != want {
		t.Errorf("it has the extensions %s, want %s", got, want)
	}
	node, err := nodeconf.Parse([]byte(files[nodeconf.Path]))
	if err != nil || node.Mode != nodeconf.Node || !node.TPM || node.Machine != "w1" || node.Token != "" {
		t.Errorf("its node.json: %+v, %v", node, err)
	}
	if files["/etc/hostname"] != "w1\n" || !strings.Contains(files["/etc/systemd/timesyncd.conf.d/20-imagectl.conf"], "192.0.2.9") {
		t.Errorf("its name is %q, and its files are %v", files["/etc/hostname"], files)
	}
	// A machine with a disk gets the installer's.
	if other, err := c.Ignition("cp1"); err != nil || bytes.Equal(other, loaded) {
		t.Errorf("cp1 gets the same: %v", err)
	}
}
