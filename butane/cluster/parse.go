package cluster

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/butane/diag"
	"github.com/imagectl/imagectl/images/release"
)

// maxSize bounds an input file; cluster.yaml with 10,000 machines has about 2 MB.
const maxSize = 16 << 20

// Parse reads a cluster file and whatever it names: base files and Butane
// snippets. read returns the content of a path, such as os.ReadFile; paths it
// gets start where file's path starts. The Spec is complete only when no finding
// is an error. The list is sorted.
func Parse(read func(path string) ([]byte, error), file string) (Spec, diag.List) {
	var found diag.List
	limited := func(path string) ([]byte, error) {
		b, err := read(path)
		if err == nil && len(b) > maxSize {
			return nil, fmt.Errorf("it has %d bytes; more than %d are not accepted", len(b), maxSize)
		}
		return b, err
	}
	l := &loader{read: limited, found: &found}
	root := l.load(file, nil)
	var spec Spec
	if root != nil {
		var raw rawFile
		d := &decoder{found: &found}
		d.value(root, "", reflect.ValueOf(&raw).Elem())
		c := &checker{decoder: d, read: limited, dir: filepath.Dir(file), root: root}
		spec = c.file(raw)
	}
	found.Sort()
	return spec, found
}

// checker turns raw values into a Spec and reports what is not acceptable. A
// value that the decoder refused is not Set, and is not reported again.
type checker struct {
	*decoder
	read func(string) ([]byte, error)
	// dir is the directory of the file given to Parse.
	dir  string
	root *node
}

func (c *checker) file(raw rawFile) Spec {
	if raw.Version.Set && raw.Version.V != 1 {
		c.add(raw.Version.Pos, "version", "version: 1", "version %d of the format is not known, want 1", raw.Version.V)
	}
	s := Spec{
		Name:       c.label(raw.Cluster),
		Identity:   c.choice(raw.Identity.Policy, "approve", []string{"approve", "token", "tpm"}, nil),
		Flatcar:    c.flatcar(raw.Flatcar),
		Kubernetes: c.kubernetes(raw.Kubernetes, raw.Flatcar.Arch.or("amd64")),
		Etcd:       c.etcd(raw.Etcd, raw.Flatcar.Arch.or("amd64")),
		CNI:        c.component(raw.CNI, raw.Flatcar.Arch.or("amd64"), cniDefault, `1\.\d+\.\d+`, "v1.9.1"),
		Agent:      c.source(raw.Agent.Source, map[string]string{"arch": raw.Flatcar.Arch.or("amd64")}),
		Server:     c.server(raw.Server),
		Boot:       c.boot(raw.Boot, raw.Flatcar.Arch.or("amd64")),
		Roles:      c.roles(raw.Roles, map[string]string{"arch": raw.Flatcar.Arch.or("amd64")}),
		Machines:   c.machines(raw.Machines, raw.Boot),
		Addons:     c.inputs(raw.Addons, map[string]string{"arch": raw.Flatcar.Arch.or("amd64")}),
		Uploads:    c.uploads(raw.Upload),
	}
	s.PCRs = c.pcrs(raw.Identity, s.Identity)
	s.Backup = c.backup(raw.Backup, s.Uploads)
	s.Server.Artefacts = c.artefacts(raw.Server.Artefacts, s.Uploads)
	for _, d := range raw.Policy.SecondPerson {
		if v := c.choice(d, "", []string{"wipe", "destroy"}, nil); v != "" {
			s.SecondPerson = append(s.SecondPerson, v)
		}
	}
	c.tpms(raw, s)
	c.firewalls(raw, s.Machines)
	c.nodeNetworks(raw, s)
	c.networks(raw, s)
	c.vips(raw, s)
	c.references(raw, s)
	c.diskless(raw, s)
	c.quorum(raw, s)
	if s.Kubernetes.Endpoint == "" {
		s.Kubernetes.Endpoint = defaultEndpoint(s)
	}
	return s
}

// defaultEndpoint is the address that moves, or the first control plane that has one.
func defaultEndpoint(s Spec) string {
	if v := s.Kubernetes.APIVIP; len(v) > 0 {
		return netip.AddrPortFrom(v[0], 6443).String()
	}
	for _, m := range s.Machines {
		if r, ok := s.role(m.Role); ok && r.ControlPlane && m.Address.IsValid() {
			return m.Address.String() + ":6443"
		}
	}
	return ""
}

func (s Spec) role(name string) (Role, bool) {
	for _, r := range s.Roles {
		if r.Name == name {
			return r, true
		}
	}
	return Role{}, false
}

func (c *checker) flatcar(raw rawFlatcar) Flatcar {
	f := Flatcar{
		Channel:    c.choice(raw.Channel, "stable", []string{"stable", "beta", "alpha", "lts"}, nil),
		Version:    raw.Version.V,
		Arch:       c.choice(raw.Arch, "amd64", []string{"amd64", "arm64"}, nil),
		PrimaryKey: flatcarPrimaryKey,
		SBOM:       raw.SBOM.V,
	}
	if raw.Version.Set {
		m := flatcarVersion.FindStringSubmatch(f.Version)
		switch {
		case m == nil:
			c.add(raw.Version.Pos, raw.Version.Path, "such as version: 4593.2.5; the channel's newest is in its current/version.txt", "%q is not a Flatcar version: the build is pinned, so names such as current are not accepted", f.Version)
		case raw.Mirror.Set:
		case channelOf(m[1]) != f.Channel:
			c.add(raw.Version.Pos, raw.Version.Path, "channel: "+channelOf(m[1]), "%s is a version of channel %s, and flatcar.channel is %s", f.Version, channelOf(m[1]), f.Channel)
		}
	}
	mirror := raw.Mirror
	if !mirror.Set {
		mirror.V = "https://{channel}.release.flatcar-linux.net"
		mirror.Set = true
		mirror.place = place{Pos: raw.Pos, Path: raw.Path + ".mirror"}
	}
	vars := map[string]string{"channel": f.Channel, "version": f.Version, "arch": f.Arch}
	f.Mirror = c.source(mirror, vars)
	seen := map[string]place{}
	c.unique(seen, "mirror", f.Mirror, mirror.place)
	for _, m := range raw.Mirrors {
		source := c.source(m, vars)
		c.unique(seen, "mirror", source, m.place)
		f.Mirrors = append(f.Mirrors, source)
	}
	if s := c.choice(raw.Signature, "auto", []string{"auto", string(release.Detached), string(release.Digests)}, nil); s != "auto" {
		f.Signature = release.Form(s)
	}
	if f.Arch == "arm64" {
		c.warn(raw.Arch.place, "docs/images.md says what was tried", "arm64 is new here: no machine of that kind has been installed yet")
	}
	if raw.Keyring.Set {
		f.Keyring = c.path(raw.Keyring)
		if _, err := c.read(c.locate(raw.Keyring)); err != nil {
			c.warn(raw.Keyring.place, "download it from "+flatcarKeyURL+"; its fingerprint is pinned", "the keyring cannot be read, and imagectl lock needs it: %s", cause(err))
		}
	}
	if raw.PrimaryKey.Set {
		f.PrimaryKey = strings.ToUpper(strings.ReplaceAll(raw.PrimaryKey.V, " ", ""))
		if !fingerprint.MatchString(f.PrimaryKey) {
			c.add(raw.PrimaryKey.Pos, raw.PrimaryKey.Path, "gpg --show-keys --with-fingerprint KEYRING prints it", "want the fingerprint of the primary key: 40 or 64 hexadecimal digits")
		}
	}
	return f
}

// channelOf reads the second number of a Flatcar version, 0 to 3.
func channelOf(number string) string {
	return map[string]string{"0": "alpha", "1": "beta", "2": "stable", "3": "lts"}[number]
}

func (c *checker) kubernetes(raw rawKubernetes, arch string) Kubernetes {
	k := Kubernetes{
		Version:     raw.Version.V,
		DNSDomain:   raw.DNSDomain.or("cluster.local"),
		PodCIDR:     raw.PodCIDR.or(defaultPodCIDR()),
		ServiceCIDR: raw.ServiceCIDR.or(defaultServiceCIDR()),
		SANs:        c.hosts(raw.SANs),

		CAKeyOnNodes: c.choice(raw.CAKey, "control-planes", []string{"server", "control-planes"}, nil) == "control-planes",
		PodSecurity:  c.podSecurity(raw.PodSecurity),
	}
	if raw.Version.Set {
		m := kubernetesVersion.FindStringSubmatch(k.Version)
		switch {
		case m == nil && kubernetesVersion.MatchString("v"+k.Version):
			c.add(raw.Version.Pos, raw.Version.Path, "version: v"+k.Version, "%q lacks the leading v", k.Version)
		case m == nil:
			c.add(raw.Version.Pos, raw.Version.Path, "version: v1.36.3", "%q is not a Kubernetes version", k.Version)
		case !slices.Contains(kubernetesMinors(), m[1]):
			c.add(raw.Version.Pos, raw.Version.Path, "version: v1.36.3", "Kubernetes 1.%s is not supported: this imagectl knows 1.34 to 1.36", m[1])
		}
	}
	if raw.DNSDomain.Set && !isHostname(k.DNSDomain) {
		c.add(raw.DNSDomain.Pos, raw.DNSDomain.Path, "dnsDomain: cluster.local", "%q is not a DNS name", k.DNSDomain)
	}
	if raw.Endpoint.Set {
		k.Endpoint = c.endpoint(raw.Endpoint)
	}
	for _, a := range raw.APIVIP {
		k.APIVIP = append(k.APIVIP, a.V)
	}
	vars := map[string]string{"version": k.Version, "arch": arch}
	dir := raw.Binaries
	if !dir.Set {
		dir.V, dir.Set = "https://dl.k8s.io/release/{version}/bin/linux/{arch}", true
	}
	base := c.source(dir, vars)
	k.Kubeadm, k.Kubelet, k.Kubectl = joinSource(base, "kubeadm"), joinSource(base, "kubelet"), joinSource(base, "kubectl")
	k.Images = c.inputs(raw.Images, vars)
	return k
}

func (c *checker) server(raw rawServer) Server {
	s := Server{
		Address:   raw.Address.V,
		HTTPPort:  c.port(raw.HTTPPort, 8080),
		HTTPSPort: c.port(raw.HTTPSPort, 8443),
		SANs:      c.hosts(raw.SANs),
	}
	if s.HTTPPort == s.HTTPSPort {
		at := raw.HTTPSPort
		if !at.Set {
			at = raw.HTTPPort
		}
		c.add(at.Pos, at.Path, "httpPort: 8080\nhttpsPort: 8443", "httpPort and httpsPort are both %d", s.HTTPPort)
	}
	seen := map[string]place{}
	for _, a := range append([]rawAddr{raw.Address}, raw.Peers...) {
		if !a.Set {
			continue
		}
		if a.V.IsUnspecified() || a.V.IsLoopback() || a.V.IsMulticast() {
			c.add(a.Pos, a.Path, "the server's address on the boot network", "machines cannot reach %s", a.V)
		}
		c.unique(seen, "server", a.V.String(), a.place)
	}
	for _, a := range raw.Peers {
		s.Peers = append(s.Peers, a.V)
	}
	return s
}

// boot: machines of flatcar.arch get iPXE without being asked for, others that somebody
// names it for.
func (c *checker) boot(raw rawBoot, arch string) Boot {
	b := Boot{
		Interface:     raw.Interface.V,
		DHCP:          c.choice(raw.DHCP, "authoritative", []string{"authoritative", "proxy", "proxy-4011", "off"}, nil),
		Unknown:       c.choice(raw.Unknown, "discover", []string{"discover", "ignore"}, nil),
		Syslog:        raw.Syslog.V,
		NBP:           c.nbp(raw.NBP, "ipxe", raw),
		IPXEBIOS:      ipxeBIOSDefault,
		IPXEUEFI:      ipxeUEFIDefault,
		InstallerArgs: c.kernelArgs(raw.InstallerArgs),
	}
	vars := map[string]string{"arch": "amd64"}
	if raw.IPXE.BIOS.Set {
		b.IPXEBIOS = c.source(raw.IPXE.BIOS, vars)
	}
	if raw.IPXE.UEFI.Set {
		b.IPXEUEFI = c.source(raw.IPXE.UEFI, vars)
	}
	if arch == "arm64" {
		b.IPXEArm64 = ipxeArm64Default
	}
	if raw.IPXE.Arm64.Set {
		b.IPXEArm64 = c.source(raw.IPXE.Arm64, map[string]string{"arch": "arm64"})
	}
	b.GRUB = GRUB{Shim: c.source(raw.GRUB.Shim, vars), GRUB: c.source(raw.GRUB.GRUB, vars)}
	b.ISO = c.iso(raw.ISO, vars)
	b.SecureBoot = c.secureBoot(raw)
	c.interfaceName(raw.Interface)
	for _, s := range raw.Subnets {
		b.Subnets = append(b.Subnets, c.subnet(s))
	}
	b.DHCP6 = c.dhcp6(raw.DHCP6)
	for _, r := range raw.Relays {
		b.Relays = append(b.Relays, r.V)
	}
	for _, n := range raw.Neighbours {
		b.Neighbours = append(b.Neighbours, neighbour(n))
	}
	return b
}

func (c *checker) interfaceName(raw rawString) {
	if raw.Set && !interfaceName.MatchString(raw.V) {
		c.add(raw.Pos, raw.Path, "such as eth1; ip -br link lists them", "%q is not the name of a network interface", raw.V)
	}
}

// iso: what BIOS boots with is wanted as a whole or not at all.
func (c *checker) iso(raw rawISO, vars map[string]string) ISO {
	out := ISO{Stub: c.source(raw.Stub, vars)}
	set := 0
	for _, f := range []struct {
		key  string
		from rawString
		to   *string
	}{{"isolinux", raw.ISOLINUX, &out.ISOLINUX}, {"ldlinux", raw.LDLINUX, &out.LDLINUX}, {"mbr", raw.MBR, &out.MBR}} {
		if *f.to = c.source(f.from, vars); f.from.Set {
			set++
		}
	}
	if set != 0 && set != 3 {
		c.add(raw.Pos, raw.Path, "isolinux: boot/isolinux.bin\nldlinux: boot/ldlinux.c32\nmbr: boot/isohdpfx.bin",
			"isolinux, ldlinux and mbr belong together: BIOS needs all three, UEFI none")
	}
	return out
}

func (c *checker) component(raw rawComponent, arch, def, pattern, example string) Component {
	out := Component{Version: raw.Version.V}
	if raw.Version.Set && !matchVersion(pattern, out.Version) {
		hint := "version: " + example
		if matchVersion(pattern, "v"+out.Version) {
			hint = "version: v" + out.Version
		}
		c.add(raw.Version.Pos, raw.Version.Path, hint, "%q is not a version that imagectl knows how to use", out.Version)
	}
	src := raw.Source
	if !src.Set {
		src.V, src.Set = def, true
	}
	out.Source = c.source(src, map[string]string{"version": out.Version, "arch": arch})
	return out
}
