package plan

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/diag"
	"github.com/imagectl/imagectl/butane/lockdown"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
)

// lockHint is what mends every finding of Resolve.
const lockHint = "run imagectl lock, review the difference and commit imagectl.lock"

// Resolve joins what cluster.yaml asks for with what the lock file pins. The Plan
// is complete when no finding is an error. file is the lock file's name, for
// findings.
func Resolve(spec cluster.Spec, l lock.Lock, file string) (Plan, diag.List) {
	r := resolver{lock: l, file: file}
	wants := spec.Wants()
	r.compare(wants)
	p := Plan{
		Cluster:  spec.Name,
		Identity: Identity(spec.Identity), PCRs: spec.PCRs, SecondPerson: spec.SecondPerson,
		Flatcar: Flatcar{
			Channel: spec.Flatcar.Channel, Version: spec.Flatcar.Version, Arch: spec.Flatcar.Arch,
			Image:     r.blob(lock.FlatcarImage),
			PXEKernel: r.blob(lock.FlatcarPXEKernel),
			PXEInitrd: r.blob(lock.FlatcarPXEInitrd),
		},
		Kubernetes: Kubernetes{
			Version: spec.Kubernetes.Version, Endpoint: spec.Kubernetes.Endpoint, APIVIP: spec.Kubernetes.APIVIP,
			PodCIDR: spec.Kubernetes.PodCIDR, ServiceCIDR: spec.Kubernetes.ServiceCIDR,
			DNSDomain: spec.Kubernetes.DNSDomain, SANs: spec.Kubernetes.SANs, CAKeyOnNodes: spec.Kubernetes.CAKeyOnNodes, PodSecurity: spec.Kubernetes.PodSecurity,
			Kubeadm: r.blob(lock.Kubeadm), Kubelet: r.blob(lock.Kubelet), Kubectl: r.blob(lock.Kubectl),
			CNI: r.blob(lock.CNIArchive),
		},
		Etcd: Etcd{Version: spec.Etcd.Version, Archive: r.blob(lock.EtcdArchive), Heartbeat: spec.Etcd.Heartbeat, Election: spec.Etcd.Election},
		Server: Server{
			Address: spec.Server.Address, Peers: spec.Server.Peers, HTTPPort: spec.Server.HTTPPort, HTTPSPort: spec.Server.HTTPSPort, SANs: spec.Server.SANs,
			Artefacts: spec.Server.Artefacts,
		},
		Backup: spec.Backup,
		Boot: Boot{
			Interface: spec.Boot.Interface, DHCP: DHCPMode(spec.Boot.DHCP), Unknown: UnknownMachines(spec.Boot.Unknown), Relays: spec.Boot.Relays, Neighbours: spec.Boot.Neighbours,
			IPXEBIOS: r.blob(lock.IPXEBIOS), IPXEUEFI: r.blob(lock.IPXEUEFIx64),
			NBP:           NBP(spec.Boot.NBP),
			SecureBoot:    spec.Boot.SecureBoot,
			Syslog:        spec.Boot.Syslog,
			InstallerArgs: append(lockdown.KernelArgs(), spec.Boot.InstallerArgs...),
		},
		Agent: r.blob(lock.Agent),
	}
	if spec.Flatcar.SBOM {
		p.Flatcar.SBOM = r.blob(lock.FlatcarSBOM)
	}
	if spec.Boot.IPXEArm64 != "" {
		p.Boot.IPXEArm64 = r.blob(lock.IPXEUEFIArm64)
	}
	if spec.Boot.GRUB.Shim != "" {
		p.Boot.Shim, p.Boot.GRUB = r.blob(lock.GRUBShim), r.blob(lock.GRUB)
	}
	if iso := spec.Boot.ISO; iso.Stub != "" {
		p.Boot.ISO.Stub = r.blob(lock.ISOStub)
		if iso.ISOLINUX != "" {
			p.Boot.ISO.ISOLINUX, p.Boot.ISO.LDLINUX, p.Boot.ISO.MBR = r.blob(lock.ISOLINUX), r.blob(lock.ISOLDLINUX), r.blob(lock.ISOMBR)
		}
	}
	for _, s := range spec.Boot.Subnets {
		p.Boot.Subnets = append(p.Boot.Subnets, Subnet(s))
	}
	p.Boot.DHCP6 = DHCP6{Mode: DHCP6Mode(spec.Boot.DHCP6.Mode), Address: spec.Boot.DHCP6.Address, Peers: spec.Boot.DHCP6.Peers, RapidCommit: spec.Boot.DHCP6.RapidCommit}
	for _, s := range spec.Boot.DHCP6.Subnets {
		p.Boot.DHCP6.Subnets = append(p.Boot.DHCP6.Subnets, Subnet6(s))
	}
	for _, i := range spec.Kubernetes.Images {
		p.Images = append(p.Images, r.blob(lock.ImagesPrefix+lock.ID(i.Name)))
	}
	sort.Slice(p.Images, func(i, j int) bool { return p.Images[i].ID < p.Images[j].ID })
	for _, role := range spec.Roles {
		out := r.role(role)
		out.Diskless = slices.ContainsFunc(spec.Machines, func(m cluster.Machine) bool { return m.Role == role.Name && m.Diskless })
		p.Roles = append(p.Roles, out)
	}
	for _, m := range spec.Machines {
		p.Machines = append(p.Machines, Machine{
			Name: m.Name, Role: m.Role, Zone: m.Zone, MACs: m.MACs, UUID: m.UUID, Serial: m.Serial, Selector: m.Selector, EK: m.EK,
			Address: m.Address, Disk: DiskRule(m.Disk), Diskless: m.Diskless, Labels: m.Labels, LocalBoot: m.LocalBoot, NBP: NBP(m.NBP), Quirks: m.Quirks, InstallerArgs: m.InstallerArgs, BMC: m.BMC, Firewall: m.Firewall, Network: m.Network,
		})
	}
	for _, a := range spec.Addons {
		p.Addons = append(p.Addons, Addon{Name: a.Name, Blob: r.blob(lock.AddonPrefix + lock.ID(a.Name))})
	}
	r.found.Sort()
	return p, r.found
}

type resolver struct {
	lock  lock.Lock
	file  string
	found diag.List
}

func (r *resolver) add(path, format string, args ...any) {
	r.found = append(r.found, diag.Finding{Pos: diag.Pos{File: r.file}, Path: path, Message: fmt.Sprintf(format, args...), Hint: lockHint})
}

// compare notices a lock file that was made for another cluster.yaml, and says
// in what they differ. Missing inputs are reported when they are looked up.
func (r *resolver) compare(wants []release.Want) {
	if r.lock.Version != 1 {
		r.add("version", "version %d of the lock format is not known, want 1", r.lock.Version)
		return
	}
	if r.lock.Wants == release.Digest(wants) {
		return
	}
	wanted := map[lock.ID]bool{}
	explained := false
	for _, w := range wants {
		wanted[w.ID] = true
		b, ok := r.lock.Find(w.ID)
		switch {
		case !ok:
			explained = true
		case b.Source != w.Source:
			explained = true
			r.add(string(w.ID), "is stale: it pins %s, and cluster.yaml asks for %s", b.Source, w.Source)
		case w.Signed != nil && (b.Signer == nil || b.Signer.Primary != w.Signed.Primary):
			explained = true
			r.add(string(w.ID), "is stale: cluster.yaml asks for a signature by %s", w.Signed.Primary)
		}
	}
	var extra []string
	for _, b := range r.lock.Inputs {
		if !wanted[b.ID] {
			extra = append(extra, string(b.ID))
		}
	}
	if len(extra) > 0 {
		r.add("", "is stale: cluster.yaml no longer asks for %s", strings.Join(extra, ", "))
	} else if !explained {
		r.add("", "is stale: it was made for another cluster.yaml")
	}
}

func (r *resolver) blob(id lock.ID) lock.Blob {
	b, ok := r.lock.Find(id)
	if !ok && r.lock.Version == 1 {
		r.add(string(id), "is not locked")
	}
	return b
}

func (r *resolver) role(in cluster.Role) Role {
	out := Role{Name: in.Name, ControlPlane: in.ControlPlane, KernelArgs: in.KernelArgs, Labels: in.Labels, Taints: in.Taints}
	for _, s := range in.Butane {
		out.Butane = append(out.Butane, Snippet(s))
	}
	for _, e := range in.Extensions {
		out.Extensions = append(out.Extensions, r.extension(e))
	}
	sort.Slice(out.Extensions, func(i, j int) bool { return out.Extensions[i].Name < out.Extensions[j].Name })
	return out
}

func (r *resolver) extension(in cluster.Extension) Extension {
	out := Extension{Name: in.Name, Recipe: in.Recipe}
	id := lock.ExtensionPrefix + lock.ID(in.Name)
	if in.Recipe == nil {
		out.Blob = r.blob(id)
		return out
	}
	for _, i := range in.Inputs {
		out.Inputs = append(out.Inputs, r.blob(id+"/"+lock.ID(i.Name)))
	}
	return out
}
