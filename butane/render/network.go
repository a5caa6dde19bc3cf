package render

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/images/upstream"
)

// File is a file of a node.
type File struct {
	Path    string
	Mode    uint32
	Content []byte
}

// NetworkList is a file that names the others of Networks.Files, one a line, so that
// whoever brings new ones knows which of the old to take away. It comes last.
const NetworkList = "/etc/imagectl/network.list"

// Where files of a node's network lie. The numbers are below Flatcar's (yy-, zz-) and
// leave room before and behind for the user's own.
const (
	networkDir   = "/etc/systemd/network/20-imagectl-"
	resolvedPath = "/etc/systemd/resolved.conf.d/20-imagectl.conf"
	timesyncPath = "/etc/systemd/timesyncd.conf.d/20-imagectl.conf"
	// certsDir is containerd's for registries (docs/hosts.md there).
	certsDir       = "/etc/containerd/certs.d/"
	containerdPath = "/etc/imagectl/containerd.toml"
	// containerdDropIn comes before 10-imagectl-runtimes.conf, whose configuration has
	// the runtimes too and names the same certsDir.
	containerdDropIn = "/etc/systemd/system/containerd.service.d/05-imagectl-mirrors.conf"
	// proxyEnv is where the proxy's password is: systemd tells anybody who asks by D-Bus what
	// Environment= says, and not what is in a file (systemd.exec(5)).
	proxyEnv = "/etc/imagectl/proxy.env"
)

const made = "# Made by imagectl from cluster.yaml; changes here do not last.\n"

// Passwords are those of one machine's network; the zero value for none.
type Passwords struct {
	Proxy string
	// Mirrors are those of registry mirrors by the registry's name.
	Mirrors map[string]string
}

// Networks writes machines' network.
type Networks struct {
	// direct is NO_PROXY of every node, without what a machine's own proxy says.
	direct []string
}

// NewNetworks looks at the cluster once for all its machines.
func NewNetworks(p plan.Plan) Networks { return Networks{direct: direct(p)} }

// Files returns what a machine's network needs in /etc: for systemd-networkd, -resolved
// and -timesyncd, for containerd and kubelet. They are the same for the same input, and
// none for the zero cluster.Network.
//
// What holds one of the passwords has mode 0600, and is for a node that has proved who it is;
// without them nothing here is secret.
func (n Networks) Files(net cluster.Network, passwords Passwords) []File {
	out := links(net)
	if len(net.DNS) > 0 {
		// With ~. these are asked for every name; those of DHCP only for their own domains.
		out = append(out, text(resolvedPath, "[Resolve]\nDNS="+join(net.DNS)+"\nDomains=~.\n"))
	}
	if len(net.NTP) > 0 {
		out = append(out, text(timesyncPath, "[Time]\nNTP="+strings.Join(net.NTP, " ")+"\n"))
	}
	out = append(out, n.proxy(net.Proxy, passwords.Proxy)...)
	out = append(out, mirrors(net.Mirrors, passwords.Mirrors)...)
	if len(out) == 0 {
		return nil
	}
	var list strings.Builder
	for _, f := range out {
		list.WriteString(f.Path + "\n")
	}
	return append(out, File{Path: NetworkList, Mode: 0o644, Content: []byte(list.String())})
}

func text(path, content string) File {
	return File{Path: path, Mode: 0o644, Content: []byte(made + "\n" + content)}
}

func join[T fmt.Stringer](list []T) string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, " ")
}

// links writes .netdev and .network files (systemd.netdev(5), systemd.network(5)).
func links(n cluster.Network) []File {
	var out []File
	seen := map[string]bool{}
	once := func(link string) bool {
		was := seen[link]
		seen[link] = true
		return link != "" && !was
	}
	for _, b := range n.Bonds {
		seen[b.Name] = true
		out = append(out, bond(b), network(n, b.Name, b.MTU))
		for i, card := range b.Cards {
			if once(card) {
				out = append(out, member(b, card, i == 0))
			}
		}
	}
	for _, v := range n.VLANs {
		seen[v.Name] = true
		out = append(out, text(networkDir+v.Name+".netdev", fmt.Sprintf("[NetDev]\nName=%s\nKind=vlan\n\n[VLAN]\nId=%d\n", v.Name, v.ID)), network(n, v.Name, v.MTU))
	}
	// Cards by themselves: those that carry VLANs, and those that have addresses or routes.
	for _, v := range n.VLANs {
		if once(v.Link) {
			out = append(out, network(n, v.Link, mtuBelow(n, v.Link)))
		}
	}
	for _, a := range n.Addresses {
		if once(a.Link) {
			out = append(out, network(n, a.Link, 0))
		}
	}
	for _, r := range n.Routes {
		if once(r.Link) {
			out = append(out, network(n, r.Link, 0))
		}
	}
	return out
}

// mtuBelow is the MTU of a card that VLANs stand on: none of theirs may be larger.
func mtuBelow(n cluster.Network, card string) int {
	largest := 0
	for _, v := range n.VLANs {
		if v.Link == card {
			largest = max(largest, v.MTU)
		}
	}
	return largest
}

// bond: without MIIMonitorSec a bond never notices a dead cable (the kernel's
// networking/bonding.rst, miimon). A connection stays on one card, and connections to one
// machine spread over all.
func bond(b cluster.Bond) File {
	s := "[NetDev]\nName=" + b.Name + "\nKind=bond\n"
	if mac := b.Cards[0]; isMAC(mac) {
		// Otherwise networkd makes one up, and no reservation is for it.
		s += "MACAddress=" + mac + "\n"
	}
	s += "\n[Bond]\nMode=" + b.Mode + "\nMIIMonitorSec=100ms\n"
	switch b.Mode {
	case "802.3ad":
		s += "LACPTransmitRate=fast\nTransmitHashPolicy=layer3+4\n"
	case "balance-xor":
		s += "TransmitHashPolicy=layer3+4\n"
	}
	return text(networkDir+b.Name+".netdev", s)
}

// member of a bond. A machine with a dead card still counts as online.
func member(b cluster.Bond, card string, first bool) File {
	s := match(card) + "\n[Link]\nRequiredForOnline=no\n\n[Network]\nBond=" + b.Name + "\n"
	if first && slices.Contains([]string{"active-backup", "balance-tlb", "balance-alb"}, b.Mode) {
		s += "PrimarySlave=yes\n"
	}
	return text(networkDir+strings.ReplaceAll(card, ":", "")+".network", s)
}

// network of a bond, a VLAN or a card by itself.
func network(n cluster.Network, link string, mtu int) File {
	var s strings.Builder
	s.WriteString(match(link))
	carrier := !n.Dynamic(link) && !slices.ContainsFunc(n.Addresses, func(a cluster.StaticAddress) bool { return a.Link == link })
	if mtu > 0 || carrier {
		s.WriteString("\n[Link]\n")
	}
	if mtu > 0 {
		fmt.Fprintf(&s, "MTUBytes=%d\n", mtu)
	}
	if carrier { // for VLANs only: it never has an address to wait for
		s.WriteString("RequiredForOnline=carrier\n")
	}
	s.WriteString("\n[Network]\n")
	for _, a := range n.Addresses {
		if a.Link == link {
			fmt.Fprintf(&s, "Address=%s\n", a.Address)
		}
	}
	switch {
	case n.Dynamic(link):
		s.WriteString("DHCP=yes\n")
	case carrier:
		s.WriteString("DHCP=no\nIPv6AcceptRA=no\nLinkLocalAddressing=no\n")
	default:
		s.WriteString("DHCP=no\nIPv6AcceptRA=no\n")
	}
	for _, v := range n.VLANs {
		if v.Link == link {
			s.WriteString("VLAN=" + v.Name + "\n")
		}
	}
	for _, r := range n.Routes {
		if r.Link != link {
			continue
		}
		fmt.Fprintf(&s, "\n[Route]\nDestination=%s\nGateway=%s\n", r.To, r.Via)
		if r.Metric > 0 {
			fmt.Fprintf(&s, "Metric=%d\n", r.Metric)
		}
	}
	return text(networkDir+strings.ReplaceAll(link, ":", "")+".network", s.String())
}

// match finds a card by the address that it was made with: in a bond it has another.
func match(link string) string {
	if isMAC(link) {
		return "[Match]\nPermanentMACAddress=" + link + "\n"
	}
	return "[Match]\nName=" + link + "\n"
}

func isMAC(link string) bool {
	_, err := net.ParseMAC(link)
	return err == nil
}

// proxy is the environment of what fetches images and of what kubelet starts. kubeadm gets
// none: it would copy it into the control plane's pods.
func (n Networks) proxy(p cluster.Proxy, password string) []File {
	if p.HTTP == "" && p.HTTPS == "" {
		return nil
	}
	var s, env strings.Builder
	s.WriteString("[Service]\n")
	for _, v := range []struct{ name, value string }{
		{"HTTP_PROXY", p.HTTP}, {"HTTPS_PROXY", p.HTTPS}, {"NO_PROXY", strings.Join(append(slices.Clone(n.direct), p.No...), ",")},
	} {
		if v.value != "" {
			fmt.Fprintf(&s, "Environment=\"%s=%s\"\n", v.name, v.value)
		}
		if at, err := url.Parse(v.value); v.name != "NO_PROXY" && v.value != "" && err == nil {
			at.User = url.UserPassword(p.Username, password)
			fmt.Fprintf(&env, "%s=\"%s\"\n", v.name, at)
		}
	}
	var out []File
	if p.Username != "" {
		// Also without the password: then there is no such file yet, and the node that gets it
		// has to start nothing anew but what reads it.
		s.WriteString("EnvironmentFile=-" + proxyEnv + "\n")
		if password != "" {
			out = append(out, File{Path: proxyEnv, Mode: 0o600, Content: []byte(made + env.String())})
		}
	}
	for _, unit := range []string{"containerd", "kubelet"} {
		out = append(out, text("/etc/systemd/system/"+unit+".service.d/20-imagectl-proxy.conf", s.String()))
	}
	return out
}

// direct is what no proxy is asked for, as Go's http/httpproxy reads it.
func direct(p plan.Plan) []string {
	out := []string{"localhost", "127.0.0.0/8", "::1", ".svc"}
	if p.Kubernetes.DNSDomain != "" {
		out = append(out, "."+p.Kubernetes.DNSDomain)
	}
	if host, _, err := net.SplitHostPort(p.Kubernetes.Endpoint); err == nil {
		out = append(out, host)
	}
	var prefixes []netip.Prefix
	add := func(all ...netip.Prefix) {
		for _, n := range all {
			if n.IsValid() {
				prefixes = append(prefixes, n.Masked())
			}
		}
	}
	host := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	add(p.Kubernetes.PodCIDR, p.Kubernetes.ServiceCIDR)
	for _, a := range append([]netip.Addr{p.Server.Address}, p.Server.Peers...) {
		add(host(a))
	}
	// The networks of nodes, not every node: this is one line of an environment.
	for _, s := range p.Boot.Subnets {
		add(s.Prefix)
	}
	for _, m := range p.Machines {
		for _, a := range m.Network.Addresses {
			add(a.Address)
		}
		if a := m.Address; a.IsValid() && !slices.ContainsFunc(prefixes, func(n netip.Prefix) bool { return n.Contains(a) }) {
			add(host(a))
		}
	}
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Bits()-b.Bits(), a.Addr().Compare(b.Addr()))
	})
	var kept []netip.Prefix // none inside another
	for _, n := range prefixes {
		if !slices.ContainsFunc(kept, func(k netip.Prefix) bool { return k.Contains(n.Addr()) }) {
			kept = append(kept, n)
		}
	}
	for _, n := range kept {
		if n.IsSingleIP() {
			out = append(out, n.Addr().String())
		} else {
			out = append(out, n.String())
		}
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(out, func(s string) bool {
		was := seen[s]
		seen[s] = true
		return was
	})
}

// mirrors writes a directory for each registry (containerd, docs/hosts.md).
func mirrors(list []cluster.RegistryMirror, passwords map[string]string) []File {
	if len(list) == 0 {
		return nil
	}
	out := []File{
		{Path: containerdPath, Mode: 0o644, Content: []byte(upstream.ContainerdBase())},
		text(containerdDropIn, "[Service]\nEnvironment=CONTAINERD_CONFIG="+containerdPath+"\n"),
	}
	for _, m := range list {
		dir := certsDir + m.Name + "/"
		if len(m.CA) > 0 {
			out = append(out, File{Path: dir + "ca.pem", Mode: 0o644, Content: m.CA})
		}
		f := text(dir+"hosts.toml", "")
		for _, e := range m.Endpoints {
			host := "[host." + strconv.Quote(e)
			f.Content = fmt.Appendf(f.Content, "%s]\ncapabilities = [\"pull\", \"resolve\"]\n", host)
			if _, path, _ := strings.Cut(strings.SplitN(e, "://", 2)[1], "/"); strings.HasPrefix(path, "v2/") {
				// The whole path is said; containerd would add another /v2.
				f.Content = append(f.Content, "override_path = true\n"...)
			}
			if len(m.CA) > 0 {
				f.Content = append(f.Content, "ca = \"ca.pem\"\n"...)
			}
			if password := passwords[m.Name]; m.Username != "" && password != "" {
				f.Mode = 0o600
				basic := base64.StdEncoding.EncodeToString([]byte(m.Username + ":" + password))
				f.Content = fmt.Appendf(f.Content, "\n%s.header]\nAuthorization = \"Basic %s\"\n", host, basic)
			}
			f.Content = append(f.Content, '\n')
		}
		out = append(out, f)
	}
	return out
}
