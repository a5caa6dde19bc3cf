package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/site"
)

const (
	serverAddress = "10.97.0.1"
	// machinesNet holds every machine's address and not the server's.
	machinesNet = "10.97.64.0/18"
	// dynamicFirst and dynamicLast are for machines that cluster.yaml does not list.
	dynamicFirst, dynamicLast = "10.97.127.1", "10.97.127.250"
	ipxeDir                   = "/usr/lib/ipxe"
	biosProgram               = "undionly.kpxe"
	uefiProgram               = "snponly.efi"
	// stand-ins for the installer's kernel and initrd: a storm is about how many ask,
	// not about how much they fetch.
	kernelSize, initrdSize = 64 << 10, 256 << 10
)

// writeSite makes a directory with everything that imagectl serve reads. What only
// machines would read is made up. peer is the address of a second server,
// with which the first one shares a registry; empty for none.
func writeSite(dir string, machines []*machine, peer string) error {
	peers, upload := "", ""
	if peer != "" {
		peers = ", peers: [" + peer + "], artefacts: shop"
		upload = "upload: [{name: shop, type: oci, endpoint: \"http://" + registryAddress + "/site\", insecure: true}]\n"
	}
	var y strings.Builder
	fmt.Fprintf(&y, `version: 1
cluster: storm
flatcar: {channel: stable, version: 4593.2.5, keyring: flatcar.asc}
kubernetes: {version: v1.36.3, podCIDR: 10.128.0.0/9, serviceCIDR: 172.16.0.0/16}
etcd: {version: v3.6.5}
cni: {version: v1.9.1}
agent: {source: bootstrapd}
server: {address: %[1]s%[5]s}
boot:
  interface: rack
  dhcp: authoritative
  subnets: [{cidr: 10.97.0.0/16, range: {first: %[6]s, last: %[7]s}}]
  ipxe: {bios: %[2]s/%[3]s, uefi: %[2]s/%[4]s}
addons: [{name: cni, source: cni.yaml}]
roles:
  control-plane: {kind: control-plane}
  worker: {kind: worker}
%[8]smachines:
`, serverAddress, ipxeDir, biosProgram, uefiProgram, peers, dynamicFirst, dynamicLast, upload)
	for i, m := range machines {
		if m.unlisted {
			continue
		}
		role := "worker"
		if i == 0 {
			role = "control-plane"
		}
		fmt.Fprintf(&y, "  - {name: %s, role: %s, match: {mac: [%q]}, address: %s, disk: {path: /dev/vda}}\n", m.name, role, m.mac, m.address)
	}
	for name, text := range map[string]string{"flatcar.asc": "no key\n", "bootstrapd": "agent", "cni.yaml": "kind: ConfigMap\n", "cluster.yaml": y.String()} {
		if err := site.Write(filepath.Join(dir, name), []byte(text)); err != nil {
			return err
		}
	}
	return site.Complete(dir, func(f store.Format) int64 {
		switch f {
		case store.PXEKernel:
			return kernelSize
		case store.PXEInitrd:
			return initrdSize
		}
		return 4096
	})
}
