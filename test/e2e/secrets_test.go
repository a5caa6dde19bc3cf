//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/test/lab"
)

// powerOff stops the server as systemd would and pulls every plug.
func powerOff(t *testing.T, rack *lab.Lab) {
	t.Helper()
	if err := rack.StopServe(); err != nil {
		t.Fatal(err)
	}
	for _, m := range rack.Active() {
		rack.Guests[m.Name].Stop()
	}
}

// noSecretLeft collects every private key of the run, from the stopped server's
// store and from the nodes' disks, and looks for each of them where
// an unauthenticated client could have read: on the wire, and in everything that
// went into an image or a boot file, before compression.
func noSecretLeft(t *testing.T, ctx context.Context, rack *lab.Lab, pcap string) {
	server, err := rack.ServerSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all := server
	for _, m := range rack.Active() {
		onPartition(t, rack.Disk(m), "ROOT", func(dir string) {
			keys, err := lab.KeysBelow(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(keys) < 2 {
				t.Errorf("%s: found %d private keys on its disk; the search looks at the wrong place", m.Name, len(keys))
			}
			for i := range keys {
				keys[i].Name = m.Name + ":" + keys[i].Name
			}
			all = append(all, keys...)
			nothingPlanted(t, m, dir)
			if _, err := os.Stat(filepath.Join(dir, lab.DeathMark)); err != nil {
				t.Errorf("%s: its agent was not killed in the middle of kubeadm's work, so that proved nothing: %v", m.Name, err)
			}
			noCAKey(t, m, dir, server)
		})
	}
	finds, err := lab.ScanFile(pcap, all)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(rack.Site, "out")
	more, err := lab.ScanDir(out, all)
	if err != nil {
		t.Fatal(err)
	}
	finds = append(finds, more...)
	finds = append(finds, scanImageInputs(t, rack, all)...)
	for _, f := range finds {
		t.Error(f)
	}
	t.Logf("looked for %d secrets in %s, in out/ and in every extension and OEM file", len(all), filepath.Base(pcap))
}

// scanImageInputs unpacks what the built images hold compressed.
func scanImageInputs(t *testing.T, rack *lab.Lab, all []lab.Secret) []string {
	t.Helper()
	var finds []string
	images, err := filepath.Glob(filepath.Join(rack.Site, "out", "*.raw"))
	if err != nil || len(images) == 0 {
		t.Fatalf("finding the built images: %v %v", images, err)
	}
	scan := func(dir string) {
		more, err := lab.ScanDir(dir, all)
		if err != nil {
			t.Fatal(err)
		}
		finds = append(finds, more...)
	}
	unpack := func(extension string) {
		dir := filepath.Join(t.TempDir(), "tree")
		if out, err := exec.Command("unsquashfs", "-quiet", "-no-progress", "-dest", dir, extension).CombinedOutput(); err != nil {
			t.Fatalf("unpacking %s: %v: %s", extension, err, out)
		}
		scan(dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, image := range images {
		if out, err := exec.Command("sfdisk", "--dump", image).Output(); err != nil || !strings.Contains(string(out), `name="OEM"`) {
			// The agent's extension is published by itself, without partitions.
			unpack(image)
			continue
		}
		onPartition(t, image, "OEM", func(dir string) { scan(dir) })
		onPartition(t, image, "ROOT", func(dir string) {
			extensions, err := filepath.Glob(filepath.Join(dir, "opt/extensions/*/*.raw"))
			if err != nil || len(extensions) < 3 {
				t.Fatalf("%s holds %d extensions, want at least 3 (%v)", image, len(extensions), err)
			}
			for _, e := range extensions {
				unpack(e)
			}
		})
	}
	return finds
}

// nothingPlanted looks for what sshkey= would have left behind.
func nothingPlanted(t *testing.T, m lab.Machine, root string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, "home/*/.ssh/*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) > 0 {
		t.Errorf("%s: sshkey= was acted on: %v", m.Name, found)
	}
}

// noCAKey looks for the private keys of etcd's CA and of imagectl's own on a node.
func noCAKey(t *testing.T, m lab.Machine, root string, server []lab.Secret) {
	t.Helper()
	var cas []lab.Secret
	for _, s := range server {
		if strings.HasPrefix(s.Name, "ca/etcd") || strings.HasPrefix(s.Name, "ca/imagectl") {
			cas = append(cas, s)
		}
	}
	if len(cas) != 2 {
		t.Fatalf("the server's store gave %d CA keys, want those of imagectl and etcd", len(cas))
	}
	finds, err := lab.ScanDir(root, cas)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range finds {
		t.Errorf("%s: %s", m.Name, f)
	}
}
