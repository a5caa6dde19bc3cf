package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/butane/render"
	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/catalog"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/server"
)

// site is a plan with everything that is served for it, found and checked.
type site struct {
	plan     plan.Plan
	kernel   boot.Blob
	initrd   boot.Blob
	agent    boot.Blob
	images   map[string]serverapi.Image // by role
	files    map[string]string          // path by digest, of all that may be served
	public   []boot.Blob
	ipxeBIOS []byte
	ipxeUEFI []byte
	// httpBoot is what UEFI loads by HTTP.
	httpBoot map[boot.Firmware]httpboot.Program
	addons   []*api.Addon
	// medium is the URL of the installer's ISO image, where a BMC shall boot it.
	medium string
}

// loadSite looks for what imagectl build made and imagectl lock pinned.
func (g *globals) loadSite(ctx context.Context, p plan.Plan, out, cacheDir string) (*site, error) {
	s := &site{plan: p, images: map[string]serverapi.Image{}, files: map[string]string{}}
	m, err := store.ReadManifest(out)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s: run imagectl build, or say with --out where it wrote to", filepath.Join(out, store.ManifestName))
	}
	if err != nil {
		return nil, err
	}
	if m.Cluster != p.Cluster || m.Kubernetes != p.Kubernetes.Version || m.Flatcar != p.Flatcar.Version {
		return nil, fmt.Errorf("%s holds images of cluster %s, Flatcar %s, Kubernetes %s; cluster.yaml says %s, %s, %s: run imagectl build",
			out, m.Cluster, m.Flatcar, m.Kubernetes, p.Cluster, p.Flatcar.Version, p.Kubernetes.Version)
	}
	for _, want := range []struct {
		format store.Format
		to     *boot.Blob
	}{{store.PXEKernel, &s.kernel}, {store.PXEInitrd, &s.initrd}, {store.Sysext, &s.agent}} {
		if *want.to, err = s.program(ctx, m, out, want.format); err != nil {
			return nil, err
		}
	}
	s.public = append(s.public, s.agent)
	for _, r := range p.Roles {
		a, err := s.artefact(m, out, r.Name, store.RawZstd)
		if err != nil {
			return nil, err
		}
		s.public = append(s.public, blobOf(a))
		s.images[r.Name] = serverapi.Image{
			URL: s.fileURL(a), SHA256: a.SHA256, Size: uint64(a.Size), RawSize: uint64(a.RawSize), RawSHA256: a.RawSHA256,
		}
	}
	cache, err := openCache(cacheDir)
	if err != nil {
		return nil, err
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
	if err := server.CheckPrograms(s.ipxeBIOS, s.ipxeUEFI); err != nil {
		return nil, err
	}
	if err := s.addHTTPBoot(ctx, m, out, cache.Path(p.Boot.IPXEUEFI.SHA256)); err != nil {
		return nil, err
	}
	if err := s.addMedium(m, out); err != nil {
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

// artefact finds one file of a build and makes it servable.
func (s *site) artefact(m store.Manifest, out, role string, f store.Format) (store.Artefact, error) {
	what := string(f)
	if role != "" {
		what = "role " + role + " as " + what
	}
	a, ok := m.Find(role, f)
	if !ok {
		return a, fmt.Errorf("%s has no %s: run imagectl build", filepath.Join(out, store.ManifestName), what)
	}
	path := filepath.Join(out, a.Name)
	info, err := os.Stat(path)
	if err != nil {
		return a, fmt.Errorf("looking for what was built: %w; run imagectl build", err)
	}
	if info.Size() != a.Size {
		return a, fmt.Errorf("%s has %d bytes, the manifest says %d: run imagectl build", path, info.Size(), a.Size)
	}
	s.files[a.SHA256] = path
	return a, nil
}

// program finds one file of the installer, which firmware or iPXE check nothing of,
// so we do.
func (s *site) program(ctx context.Context, m store.Manifest, out string, f store.Format) (boot.Blob, error) {
	a, err := s.artefact(m, out, "", f)
	if err != nil {
		return boot.Blob{}, err
	}
	path := s.files[a.SHA256]
	digest, _, err := store.HashFile(ctx, path)
	if err == nil && digest != a.SHA256 {
		err = fmt.Errorf("%s was changed after it was built (its digest is %.12s…, the manifest says %.12s…): run imagectl build", path, digest, a.SHA256)
	}
	return blobOf(a), err
}

// addHTTPBoot says what UEFI loads by HTTP. With Secure Boot that is the installer
// itself, signed by the owner's key: nobody has signed iPXE with it.
func (s *site) addHTTPBoot(ctx context.Context, m store.Manifest, out, ipxe string) error {
	p := s.plan
	if p.Boot.SecureBoot.Certificate != nil {
		const also = "imagectl build --format uki makes it"
		if err := canBootISO(p, build.SetUKI); err != nil {
			return fmt.Errorf("with boot.secureBoot, UEFI HTTP boot loads the signed installer: %w; then %s", err, also)
		}
		if _, ok := m.Find("", store.UKI); !ok {
			return fmt.Errorf("with boot.secureBoot, UEFI HTTP boot loads the signed installer, which is not in %s: %s", filepath.Join(out, store.ManifestName), also)
		}
		installer, err := s.program(ctx, m, out, store.UKI)
		firmware := map[string]boot.Firmware{"amd64": boot.UEFIx64, "arm64": boot.UEFIarm64}[p.Flatcar.Arch]
		s.httpBoot = map[boot.Firmware]httpboot.Program{firmware: {Blob: installer, Installer: true}}
		return err
	}
	b := p.Boot.IPXEUEFI
	s.files[b.SHA256] = ipxe
	s.httpBoot = map[boot.Firmware]httpboot.Program{boot.UEFIx64: {Blob: boot.Blob{Name: "snponly.efi", SHA256: b.SHA256, Size: b.Size}}}
	return nil
}

// addMedium makes the installer's ISO image servable where a BMC shall boot it.
func (s *site) addMedium(m store.Manifest, out string) error {
	i := slices.IndexFunc(s.plan.Machines, func(m plan.Machine) bool { return m.BMC != nil && m.BMC.Boot == bootISO })
	if i < 0 {
		return nil
	}
	const also = "imagectl build --format iso makes it"
	why := fmt.Sprintf("with bmc.boot: iso of %s, a BMC boots the installer's ISO image", s.plan.Machines[i].Name)
	if err := canBootISO(s.plan, build.SetISO); err != nil {
		return fmt.Errorf("%s: %w; then %s", why, err, also)
	}
	if _, ok := m.Find("", store.ISO); !ok {
		return fmt.Errorf("%s, which is not in %s: %s", why, filepath.Join(out, store.ManifestName), also)
	}
	a, err := s.artefact(m, out, "", store.ISO)
	if err != nil {
		return err
	}
	s.public, s.medium = append(s.public, blobOf(a)), s.fileURL(a)
	return nil
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
	path, ok := s.files[sha256]
	if !ok {
		return nil, fmt.Errorf("opening %s: %w", sha256, fs.ErrNotExist)
	}
	return os.Open(path)
}

// servers are the https URLs that nodes call, this server's own first.
func (s *site) servers() []string {
	var out []string
	for _, a := range append([]netip.Addr{s.plan.Server.Address}, s.plan.Server.Peers...) {
		out = append(out, "https://"+netip.AddrPortFrom(a, uint16(s.plan.Server.HTTPSPort)).String())
	}
	return out
}

// catalogConfig says what machines boot. ca is PEM. Every installer gets the same
// config: who a machine is comes out when it enrols.
func (s *site) catalogConfig(ca string, states catalog.States) (catalog.Config, error) {
	conf, err := nodeconf.Config{Cluster: s.plan.Cluster, Mode: nodeconf.Installer, Servers: s.servers(), CA: ca, TPM: s.plan.Identity == plan.ByTPM}.Encode()
	if err != nil {
		return catalog.Config{}, err
	}
	ignition, err := render.Installer(render.InstallerInput{
		NodeConfig: conf, AgentURL: s.fileURL(store.Artefact{Name: s.agent.Name, SHA256: s.agent.SHA256}), AgentSHA256: s.agent.SHA256,
	})
	if err != nil {
		return catalog.Config{}, err
	}
	return catalog.Config{
		Plan: s.plan, Kernel: s.kernel, Initrd: []boot.Blob{s.initrd}, Files: s.public, States: states,
		Ignition: func(string) ([]byte, error) { return ignition, nil },
	}, nil
}

// serverConfig is what the https services are told about the cluster.
func (s *site) serverConfig() serverapi.Config {
	p := s.plan
	c := serverapi.Config{
		Cluster: p.Cluster, IgnoreUnknown: p.Boot.Unknown == plan.Ignore, Tokens: p.Identity == plan.ByToken, TPM: p.Identity == plan.ByTPM, NodeServers: s.servers(),
		ServerAddresses: []netip.Addr{p.Server.Address},
		Kubernetes: serverapi.Kubernetes{
			Version: p.Kubernetes.Version, PodCIDR: p.Kubernetes.PodCIDR.String(), ServiceCIDR: p.Kubernetes.ServiceCIDR.String(),
			DNSDomain: p.Kubernetes.DNSDomain, Endpoint: p.Kubernetes.Endpoint, SANs: p.Kubernetes.SANs, Addons: s.addons,
		},
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
