package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
	"github.com/imagectl/imagectl/images/store"
)

const (
	serverAddress = "10.97.0.1"
	// machinesNet holds every machine's address and not the server's.
	machinesNet = "10.97.64.0/18"
	ipxeDir     = "/usr/lib/ipxe"
	biosProgram = "undionly.kpxe"
	uefiProgram = "snponly.efi"
	// stand-ins for the installer's kernel and initrd: a storm is about how many ask,
	// not about how much they fetch.
	kernelSize, initrdSize = 64 << 10, 256 << 10
)

// writeSite makes a directory with everything that imagectl serve reads. What only
// machines would read is made up.
func writeSite(dir string, machines []*machine) error {
	write := func(name string, content []byte) error {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, content, 0o644)
	}
	var y strings.Builder
	fmt.Fprintf(&y, `version: 1
cluster: storm
flatcar: {channel: stable, version: 4593.2.5, keyring: flatcar.asc}
kubernetes: {version: v1.36.3, podCIDR: 10.128.0.0/9, serviceCIDR: 172.16.0.0/16}
etcd: {version: v3.6.5}
cni: {version: v1.9.1}
agent: {source: bootstrapd}
server: {address: %[1]s}
boot:
  interface: rack
  dhcp: authoritative
  subnets: [{cidr: 10.97.0.0/16}]
  ipxe: {bios: %[2]s/%[3]s, uefi: %[2]s/%[4]s}
addons: [{name: cni, source: cni.yaml}]
roles:
  control-plane: {kind: control-plane}
  worker: {kind: worker}
machines:
`, serverAddress, ipxeDir, biosProgram, uefiProgram)
	for i, m := range machines {
		role := "worker"
		if i == 0 {
			role = "control-plane"
		}
		fmt.Fprintf(&y, "  - {name: %s, role: %s, match: {mac: [%q]}, address: %s, disk: {path: /dev/vda}}\n", m.name, role, m.mac, m.address)
	}
	for name, text := range map[string]string{"flatcar.asc": "no key\n", "bootstrapd": "agent", "cni.yaml": "kind: ConfigMap\n", "cluster.yaml": y.String()} {
		if err := write(name, []byte(text)); err != nil {
			return err
		}
	}
	if err := writeLock(dir); err != nil {
		return err
	}
	m := store.Manifest{Version: 1, Cluster: "storm", Flatcar: "4593.2.5", Kubernetes: "v1.36.3"}
	for _, a := range []store.Artefact{
		{Name: "storm-pxe.vmlinuz", Format: store.PXEKernel, Size: kernelSize}, {Name: "storm-pxe.cpio.gz", Format: store.PXEInitrd, Size: initrdSize},
		{Name: "imagectl.raw", Format: store.Sysext, Size: 4096},
		{Name: "storm-control-plane.raw.zst", Role: "control-plane", Format: store.RawZstd, Size: 4096}, {Name: "storm-worker.raw.zst", Role: "worker", Format: store.RawZstd, Size: 4096},
	} {
		content := bytes.Repeat([]byte(a.Name+"\n"), int(a.Size)/len(a.Name))[:a.Size]
		if err := write(filepath.Join("out", a.Name), content); err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		a.SHA256 = hex.EncodeToString(sum[:])
		if a.Format == store.RawZstd {
			a.RawSize, a.RawSHA256 = 1<<20, strings.Repeat("2", 64)
		}
		m.Artefacts = append(m.Artefacts, a)
	}
	return store.WriteManifest(filepath.Join(dir, "out"), m)
}

// writeLock locks what is there as it is; the rest is never read.
func writeLock(dir string) error {
	spec, found := cluster.Parse(os.ReadFile, filepath.Join(dir, "cluster.yaml"))
	if err := found.Err(); err != nil {
		return err
	}
	wants := spec.Wants()
	l := lock.Lock{Version: 1, Wants: release.Digest(wants)}
	for _, w := range wants {
		b := lock.Blob{ID: w.ID, Source: w.Source, SHA256: strings.Repeat("0", 64), Size: 1}
		path := w.Source
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if content, err := os.ReadFile(path); err == nil {
			sum := sha256.Sum256(content)
			b.SHA256, b.Size = hex.EncodeToString(sum[:]), int64(len(content))
		}
		if w.Signed != nil {
			b.Signer = &lock.Signer{Primary: w.Signed.Primary, Subkey: w.Signed.Primary, SignedAt: "2026-01-01T00:00:00Z"}
		}
		l.Inputs = append(l.Inputs, b)
	}
	slices.SortFunc(l.Inputs, func(a, b lock.Blob) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return lock.Write(filepath.Join(dir, lock.FileName), l)
}
