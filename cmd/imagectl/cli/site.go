package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/butane/render"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
	"github.com/imagectl/imagectl/images/shelf"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/catalog"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/server"
)

// site is a plan with everything that is served for it, found and checked.
type site struct {
	plan   plan.Plan
	kernel boot.Blob
	initrd boot.Blob
	agent  boot.Blob
	images map[string]serverapi.Image // by role
	files  map[string]string          // path by digest, of all that may be served
	// made is what was made when the server started, by digest.
	made   map[string][]byte
	public []boot.Blob
	// artefacts are what of a build is served.
	artefacts []store.Artefact
	ipxeBIOS  []byte
	ipxeUEFI  []byte
	// ipxeArm64 is nil where there is none.
	ipxeArm64 []byte
	// shim and grub are nil where no machine boots by them.
	shim, grub []byte
	// httpBoot is what UEFI loads by HTTP.
	httpBoot map[boot.Firmware]httpboot.Program
	addons   []*api.Addon
	// extensions are those that diskless machines load, by role.
	extensions map[string][]store.Artefact
	// medium is the URL of the installer's ISO image, where a BMC shall boot it.
	medium string
}

// sources are where the files of a site are.
type sources struct {
	// out is the output directory of imagectl build, cache that of inputs.
	out, cache string
	// shelf has what is not in out, but for the manifest; nil for none.
	shelf shelf.Place
}

// loadSite looks for what imagectl build made and imagectl lock pinned.
func (g *globals) loadSite(ctx context.Context, p plan.Plan, from sources) (*site, error) {
	cache, err := openCache(from.cache)
	if err != nil {
		return nil, err
	}
	progress := newProgress(g.stdio.Err)
	defer progress.close()
	s := &site{plan: p, images: map[string]serverapi.Image{}, extensions: map[string][]store.Artefact{}, files: map[string]string{}, made: map[string][]byte{}}
	out := artefacts{site: s, dir: from.out, shelf: from.shelf, cache: cache, progress: progress}
	m, err := store.ReadManifest(from.out)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s: run imagectl build, or say with --out where it wrote to", filepath.Join(from.out, store.ManifestName))
	}
	if err != nil {
		return nil, err
	}
	if m.Cluster != p.Cluster || m.Kubernetes != p.Kubernetes.Version || m.Flatcar != p.Flatcar.Version {
		return nil, fmt.Errorf("%s holds images of cluster %s, Flatcar %s, Kubernetes %s; cluster.yaml says %s, %s, %s: run imagectl build",
			from.out, m.Cluster, m.Flatcar, m.Kubernetes, p.Cluster, p.Flatcar.Version, p.Kubernetes.Version)
	}
	out.manifest = m
	for _, want := range []struct {
		format store.Format
		to     *boot.Blob
	}{{store.PXEKernel, &s.kernel}, {store.PXEInitrd, &s.initrd}, {store.Sysext, &s.agent}} {
		if *want.to, err = out.program(ctx, want.format); err != nil {
			return nil, err
		}
	}
	s.public = append(s.public, s.agent)
	for _, r := range p.Roles {
		a, err := out.find(ctx, r.Name, store.RawZstd)
		if err != nil {
			return nil, err
		}
		s.public = append(s.public, blobOf(a))
		s.images[r.Name] = serverapi.Image{
			URL: s.fileURL(a), SHA256: a.SHA256, Size: uint64(a.Size), RawSize: uint64(a.RawSize), RawSHA256: a.RawSHA256,
		}
		if err := out.addExtensions(ctx, r); err != nil {
			return nil, err
		}
	}
	read := func(b lock.Blob) ([]byte, error) {
		got, err := release.Fetch(ctx, cache, g.dir(), b, release.Watch{})
		if err != nil {
			return nil, err
		}
		return os.ReadFile(got.Path)
	}
	if s.ipxeBIOS, err = read(p.Boot.IPXEBIOS); err != nil {
		return nil, err
	}
	if s.ipxeUEFI, err = read(p.Boot.IPXEUEFI); err != nil {
		return nil, err
	}
	if p.Boot.IPXEArm64.ID != "" {
		if s.ipxeArm64, err = read(p.Boot.IPXEArm64); err != nil {
			return nil, err
		}
	}
	if err := server.CheckPrograms(s.ipxeBIOS, s.ipxeUEFI, s.ipxeArm64); err != nil {
		return nil, err
	}
	if p.Boot.GRUB.ID != "" {
		if s.shim, err = read(p.Boot.Shim); err != nil {
			return nil, err
		}
		if s.grub, err = read(p.Boot.GRUB); err != nil {
			return nil, err
		}
		if err := server.CheckGRUB(s.shim, s.grub); err != nil {
			return nil, err
		}
	}
	if err := out.addHTTPBoot(ctx); err != nil {
		return nil, err
	}
	if err := out.addMedium(ctx); err != nil {
		return nil, err
	}
	for _, a := range p.Addons {
		manifest, err := read(a.Blob)
		if err != nil {
			return nil, err
		}
		s.addons = append(s.addons, &api.Addon{Name: a.Name, Sha256: a.Blob.SHA256, Manifest: manifest})
	}
	return s, nil
}

func blobOf(a store.Artefact) boot.Blob {
	return boot.Blob{Name: a.Name, SHA256: a.SHA256, Size: a.Size}
}

func (s *site) fileURL(a store.Artefact) string {
	at := netip.AddrPortFrom(s.plan.Server.Address, uint16(s.plan.Server.HTTPPort))
	return fmt.Sprintf("http://%s/files/%s/%s", at, a.SHA256, a.Name)
}

// open opens a public file by digest.
func (s *site) open(sha256 string) (io.ReadSeekCloser, error) {
	if b, ok := s.made[sha256]; ok {
		return inMemory{bytes.NewReader(b)}, nil
	}
	path, ok := s.files[sha256]
	if !ok {
		return nil, fmt.Errorf("opening %s: %w", sha256, fs.ErrNotExist)
	}
	return os.Open(path)
}

// inMemory is a file of which nothing has to be closed.
type inMemory struct{ *bytes.Reader }

// Close implements io.Closer.
func (inMemory) Close() error { return nil }

// servers are the https URLs that nodes call, this server's own first.
func (s *site) servers() []string {
	var out []string
	for _, a := range append([]netip.Addr{s.plan.Server.Address}, s.plan.Server.Peers...) {
		out = append(out, "https://"+netip.AddrPortFrom(a, uint16(s.plan.Server.HTTPSPort)).String())
	}
	return out
}

// catalogConfig says what machines boot. ca is PEM. Every installer gets the same
// config: who a machine is comes out when it enrols. A diskless machine has its own, and
// has to enrol all the same.
func (s *site) catalogConfig(ca string, states catalog.States) (catalog.Config, error) {
	conf, err := nodeconf.Config{Cluster: s.plan.Cluster, Mode: nodeconf.Installer, Servers: s.servers(), CA: ca, TPM: s.plan.Identity == plan.ByTPM}.Encode()
	if err != nil {
		return catalog.Config{}, err
	}
	links, err := render.InstallerLinks(s.plan.Machines)
	if err != nil {
		return catalog.Config{}, err
	}
	ignition, err := render.Installer(render.InstallerInput{
		NodeConfig: conf, Links: links, AgentURL: s.fileURL(store.Artefact{Name: s.agent.Name, SHA256: s.agent.SHA256}), AgentSHA256: s.agent.SHA256,
	})
	if err != nil {
		return catalog.Config{}, err
	}
	c := catalog.Config{
		Plan: s.plan, Kernel: s.kernel, Initrd: []boot.Blob{s.initrd}, Files: s.public, States: states,
	}
	installer, ok, err := s.addInstaller(conf, links)
	if err != nil {
		return c, err
	}
	if ok {
		c.Initrd, c.Configured = append(c.Initrd, installer), true
	}
	diskless, err := s.addDiskless(&c, ca)
	// For media, and for releases that take none of what addInstaller makes.
	c.Ignition = func(machine string) ([]byte, error) {
		if own, ok := diskless[machine]; ok {
			return own, nil
		}
		return ignition, nil
	}
	return c, err
}

// serverConfig is what the https services are told about the cluster.
func (s *site) serverConfig() serverapi.Config {
	p := s.plan
	c := serverapi.Config{
		Cluster: p.Cluster, IgnoreUnknown: p.Boot.Unknown == plan.Ignore, Tokens: p.Identity == plan.ByToken, TPM: p.Identity == plan.ByTPM, PCRs: p.PCRs, NodeServers: s.servers(),
		ServerAddresses: []netip.Addr{p.Server.Address},
		Kubernetes: serverapi.Kubernetes{
			Version: p.Kubernetes.Version, PodCIDR: p.Kubernetes.PodCIDR.String(), ServiceCIDR: p.Kubernetes.ServiceCIDR.String(),
			DNSDomain: p.Kubernetes.DNSDomain, Endpoint: p.Kubernetes.Endpoint, APIVIP: p.Kubernetes.APIVIP, SANs: p.Kubernetes.SANs, Addons: s.addons,
			CAKeyOnNodes: p.Kubernetes.CAKeyOnNodes, PodSecurity: serverapi.PodSecurity(p.Kubernetes.PodSecurity),
		},
		Etcd: serverapi.Etcd{Heartbeat: p.Etcd.Heartbeat, Election: p.Etcd.Election},
	}
	for _, san := range p.Server.SANs {
		if a, err := netip.ParseAddr(san); err == nil {
			c.ServerAddresses = append(c.ServerAddresses, a)
		} else {
			c.ServerNames = append(c.ServerNames, san)
		}
	}
	for _, d := range p.SecondPerson {
		c.SecondPerson = append(c.SecondPerson, serverapi.Danger(d))
	}
	roles := map[string]plan.Role{}
	for _, r := range p.Roles {
		roles[r.Name] = r
	}
	for _, m := range p.Machines {
		r := roles[m.Role]
		labels := maps.Clone(r.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, m.Labels)
		sm := serverapi.Machine{
			Name: m.Name, Role: m.Role, Zone: m.Zone, ControlPlane: r.ControlPlane, UUID: m.UUID, Serial: m.Serial, EK: m.EK,
			Address: m.Address, Labels: labels, Taints: r.Taints, Image: s.images[m.Role],
			Diskless: m.Diskless,
			Disk: &api.DiskRule{Path: m.Disk.Path, Serial: m.Disk.Serial, Model: m.Disk.Model, Wwn: m.Disk.WWN,
				MinSizeBytes: uint64(m.Disk.MinBytes), MaxSizeBytes: uint64(m.Disk.MaxBytes)},
		}
		sm.FirewallOff = m.Firewall.Off
		for _, a := range m.Firewall.Allow {
			allow := &api.Firewall_Allow{Udp: a.UDP}
			for _, from := range a.From {
				allow.From = append(allow.From, from.String())
			}
			for _, port := range a.Ports {
				allow.Ports = append(allow.Ports, uint32(port))
			}
			sm.Allow = append(sm.Allow, allow)
		}
		for _, mac := range m.MACs {
			sm.MACs = append(sm.MACs, mac.String())
		}
		c.Machines = append(c.Machines, sm)
	}
	return c
}
