package cluster

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// flatcarPrimaryKey is the primary key of Flatcar Buildbot (Official Builds);
// the subkeys that sign below it change every second year.
const flatcarPrimaryKey = "F88CFEDEFF29A5B4D9523864E25D9AED0593B34A"

// flatcarKeyURL is where Flatcar publishes its keyring.
const flatcarKeyURL = "https://www.flatcar.org/security/image-signing-key/Flatcar_Image_Signing_Key.asc"

// Where upstream publishes. The iPXE programs have no version in their URL: the
// lock file pins what was found.
const (
	etcdDefault      = "https://github.com/etcd-io/etcd/releases/download/{version}/etcd-{version}-linux-{arch}.tar.gz"
	cniDefault       = "https://github.com/containernetworking/plugins/releases/download/{version}/cni-plugins-linux-{arch}-{version}.tgz"
	ipxeBIOSDefault  = "https://boot.ipxe.org/undionly.kpxe"
	ipxeUEFIDefault  = "https://boot.ipxe.org/x86_64-efi/snponly.efi"
	ipxeArm64Default = "https://boot.ipxe.org/arm64-efi/snponly.efi"
)

var (
	// rfc1123 is a DNS label as Kubernetes wants names (RFC 1123 section 2.1, lower case).
	rfc1123 = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	// flatcarVersion is MAJOR.CHANNEL.PATCH; the middle number is the channel.
	flatcarVersion    = regexp.MustCompile(`^[0-9]{4,6}\.([0-3])\.[0-9]{1,4}(?:\+[A-Za-z0-9.-]+)?$`)
	kubernetesVersion = regexp.MustCompile(`^v1\.([0-9]{1,3})\.[0-9]{1,3}$`)
	sha256Text        = regexp.MustCompile(`^[0-9a-f]{64}$`)
	fingerprint       = regexp.MustCompile(`^([0-9A-F]{40}|[0-9A-F]{64})$`)
	// interfaceName follows dev_valid_name in net/core/dev.c, and is stricter.
	interfaceName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`)
	uuidText      = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	// labelName and labelPrefix are Kubernetes' qualified names.
	labelName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)
	taintText = regexp.MustCompile(`^([^=:]+)(?:=([^=:]*))?:(NoSchedule|PreferNoSchedule|NoExecute)$`)
)

// kubernetesMinors are the minor versions whose kubeadm configuration (v1beta4)
// and component flags imagectl writes.
func kubernetesMinors() []string { return []string{"34", "35", "36"} }

// The defaults of kubeadm's documentation and of flannel's manifest.
func defaultPodCIDR() netip.Prefix     { return netip.MustParsePrefix("10.244.0.0/16") }
func defaultServiceCIDR() netip.Prefix { return netip.MustParsePrefix("10.96.0.0/12") }

func matchVersion(pattern, s string) bool {
	ok, err := regexp.MatchString("^v"+pattern+"$", s)
	return err == nil && ok
}

// isHostname says whether s is a DNS name of lower-case labels.
func isHostname(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for _, l := range strings.Split(s, ".") {
		if !rfc1123.MatchString(l) {
			return false
		}
	}
	return true
}

// label checks a name that becomes a host name or part of a file name.
func (c *checker) label(f rawString) string {
	if f.Set && !rfc1123.MatchString(f.V) {
		hint := ""
		if fixed := strings.Trim(strings.ToLower(strings.NewReplacer("_", "-", ".", "-", " ", "-").Replace(f.V)), "-"); rfc1123.MatchString(fixed) {
			hint = lastKey(f.Path) + ": " + fixed
		}
		c.add(f.Pos, f.Path, hint, "%q is not a name: want 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit", f.V)
	}
	return f.V
}

// choice checks a word against the ones that work and the ones that will.
func (c *checker) choice(f rawString, def string, now, later []string) string {
	if !f.Set {
		return def
	}
	switch {
	case slices.Contains(now, f.V):
		return f.V
	case slices.Contains(later, f.V):
		c.add(f.Pos, f.Path, lastKey(f.Path)+": "+def, "%s is not supported yet", f.V)
	default:
		all := strings.Join(append(slices.Clone(now), later...), ", ")
		if near, ok := nearest(f.V, append(slices.Clone(now), later...)); ok {
			c.add(f.Pos, f.Path, lastKey(f.Path)+": "+near, "%q is not one of %s", f.V, all)
		} else {
			c.add(f.Pos, f.Path, "", "%q is not one of %s", f.V, all)
		}
	}
	return def
}

func (c *checker) port(f rawInt, def int) int {
	if f.Set && (f.V < 1 || f.V > 65535) {
		c.add(f.Pos, f.Path, "", "%d is not a port: want 1 to 65535", f.V)
		return def
	}
	return f.or(def)
}

// hosts checks names for certificates.
func (c *checker) hosts(list []rawString) []string {
	var out []string
	for _, f := range list {
		if !f.Set {
			continue
		}
		if _, err := netip.ParseAddr(f.V); err != nil && !isHostname(strings.TrimPrefix(f.V, "*.")) {
			c.add(f.Pos, f.Path, "", "%q is neither a DNS name nor an IP address", f.V)
		}
		out = append(out, f.V)
	}
	return out
}

// endpoint checks host:port.
func (c *checker) endpoint(f rawString) string {
	host, port, err := net.SplitHostPort(strings.TrimPrefix(f.V, "https://"))
	n, portErr := strconv.Atoi(port)
	_, addrErr := netip.ParseAddr(host)
	switch {
	case strings.HasPrefix(f.V, "https://"):
		c.add(f.Pos, f.Path, "endpoint: "+strings.TrimSuffix(strings.TrimPrefix(f.V, "https://"), "/"), "want host:port without https://")
	case err != nil || portErr != nil || n < 1 || n > 65535 || (addrErr != nil && !isHostname(host)):
		c.add(f.Pos, f.Path, "endpoint: api.example.org:6443", "%q is not host:port", f.V)
	}
	return f.V
}

// kubeletLabels are the keys in Kubernetes' own name spaces that a kubelet may
// set on its own node (k8s.io/kubelet/pkg/apis/well_known_labels.go).
func kubeletLabels() []string {
	return []string{
		"topology.kubernetes.io/zone", "topology.kubernetes.io/region",
		"failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region",
		"kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch", "node.kubernetes.io/instance-type",
	}
}

// labels checks node labels.
func (c *checker) labels(d dict[rawString]) map[string]string {
	out := map[string]string{}
	for _, e := range d {
		prefix, name, qualified := strings.Cut(e.Key, "/")
		if !qualified {
			prefix, name = "", e.Key
		}
		reserved := prefix == "kubernetes.io" || prefix == "k8s.io" || strings.HasSuffix(prefix, ".kubernetes.io") || strings.HasSuffix(prefix, ".k8s.io")
		allowed := slices.Contains(kubeletLabels(), e.Key) || strings.HasSuffix(prefix, "kubelet.kubernetes.io") || strings.HasSuffix(prefix, "node.kubernetes.io")
		switch {
		case !labelName.MatchString(name) || (qualified && !isHostname(prefix)):
			c.add(e.Pos, e.Path, "such as example.org/disk: ssd", "%q is not a label key", e.Key)
		case reserved && !allowed:
			c.add(e.Pos, e.Path, "use a prefix of your own: example.org/"+name, "a kubelet may not set %s on its own node and would not start", e.Key)
		case e.V.Set && e.V.V != "" && !labelName.MatchString(e.V.V):
			c.add(e.V.Pos, e.Path, "", "%q is not a label value: want at most 63 letters, digits, - _ .", e.V.V)
		}
		out[e.Key] = e.V.V
	}
	return out
}

func (c *checker) taints(list []rawString) []string {
	var out []string
	for _, f := range list {
		if !f.Set {
			continue
		}
		m := taintText.FindStringSubmatch(f.V)
		ok := m != nil && (m[2] == "" || labelName.MatchString(m[2]))
		if ok {
			prefix, name, qualified := strings.Cut(m[1], "/")
			if !qualified {
				prefix, name = "example", m[1]
			}
			ok = labelName.MatchString(name) && isHostname(prefix)
		}
		if !ok {
			c.add(f.Pos, f.Path, "such as example.org/dedicated=db:NoSchedule", "%q is not a taint: want key=value:NoSchedule, PreferNoSchedule or NoExecute", f.V)
		}
		out = append(out, f.V)
	}
	return out
}
