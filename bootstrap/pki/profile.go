package pki

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Lifetimes says how long certificates live. A zero field means its default.
type Lifetimes struct {
	// Backdate is how long before issue a certificate is valid already, for
	// machines whose clock is dead. Default 48 hours; negative means none.
	Backdate time.Duration
	// Agent is for nodes and the server itself. Default 30 days; renewed from
	// day 10.
	Agent time.Duration
	// Leaf is for etcd and Kubernetes. Default 90 days.
	Leaf time.Duration
	// Operator is for context files. Default 12 hours.
	Operator time.Duration
	// Kubeconfig is for an operator's Kubernetes client certificate. Default 8
	// hours.
	Kubeconfig time.Duration
	// Join is for kubeadm's file discovery, and for kubelet until it has a certificate of its
	// own. Default 40 minutes: it must not end before kubeadm's patience with either.
	Join time.Duration
	// CA is for authorities. Default 10 years.
	CA time.Duration
}

const day = 24 * time.Hour

// WithDefaults fills in the zero fields.
func (l Lifetimes) WithDefaults() Lifetimes {
	for _, f := range []struct {
		v    *time.Duration
		want time.Duration
	}{
		{&l.Backdate, 2 * day}, {&l.Agent, 30 * day}, {&l.Leaf, 90 * day}, {&l.Operator, 12 * time.Hour},
		{&l.Kubeconfig, 8 * time.Hour}, {&l.Join, 40 * time.Minute}, {&l.CA, 3653 * day},
	} {
		if *f.v == 0 {
			*f.v = f.want
		}
	}
	l.Backdate = max(l.Backdate, 0)
	return l
}

// RenewAfter is the age at which a certificate of that lifetime is due: a third.
func RenewAfter(lifetime time.Duration) time.Duration { return lifetime / 3 }

// Profile is what a certificate is for. Its fields are out of reach, so that an
// unchecked one cannot exist; the functions below make them.
type Profile struct {
	commonName     string
	organization   string
	dnsNames       []string
	addresses      []netip.Addr
	uri            *url.URL
	client, server bool
	lifetime       time.Duration
	backdate       time.Duration
}

func (p Profile) usages() []x509.ExtKeyUsage {
	var u []x509.ExtKeyUsage
	if p.client {
		u = append(u, x509.ExtKeyUsageClientAuth)
	}
	if p.server {
		u = append(u, x509.ExtKeyUsageServerAuth)
	}
	return u
}

// nameRE is what cluster.yaml allows as a name: a DNS label. Everything that
// enters a subject or SAN is checked against it once more.
var nameRE = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// operatorRE is wider: people have dots and at signs.
var operatorRE = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9._@]{0,62}$`)

// dnsRE is a DNS name.
var dnsRE = regexp.MustCompile(`^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)*[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (p Profile) checked() (Profile, error) {
	if p.lifetime < time.Minute {
		return Profile{}, fmt.Errorf("making a profile for %s: a lifetime of %v is below one minute", p.commonName, p.lifetime)
	}
	// ub-common-name, RFC 5280 appendix A.1, which Kubernetes does not keep for nodes.
	if len(strings.TrimPrefix(strings.TrimPrefix(p.commonName, NodeUser), NodeAdminUser)) > 64 {
		return Profile{}, fmt.Errorf("making a profile for %s: a common name of %d characters exceeds 64", p.commonName, len(p.commonName))
	}
	for _, n := range p.dnsNames {
		if len(n) > 253 || !dnsRE.MatchString(n) {
			return Profile{}, fmt.Errorf("making a profile for %s: %q is no DNS name", p.commonName, n)
		}
	}
	for _, a := range p.addresses {
		if !a.IsValid() {
			return Profile{}, fmt.Errorf("making a profile for %s: an address is not set", p.commonName)
		}
	}
	slices.Sort(p.dnsNames)
	p.dnsNames = slices.Compact(p.dnsNames)
	slices.SortFunc(p.addresses, netip.Addr.Compare)
	p.addresses = slices.Compact(p.addresses)
	return p, nil
}

// Machine is what the profiles of a node are made from: its record, never its
// request.
type Machine struct {
	Cluster, Name string
	// Address may be the zero value; then no certificate names an address.
	Address netip.Addr
}

func (m Machine) check() error {
	if !nameRE.MatchString(m.Name) {
		return fmt.Errorf("making a profile: %q is no machine name", m.Name)
	}
	if !nameRE.MatchString(m.Cluster) {
		return fmt.Errorf("making a profile for %s: %q is no cluster name", m.Name, m.Cluster)
	}
	return nil
}

func (m Machine) addresses(more ...netip.Addr) []netip.Addr {
	if m.Address.IsValid() {
		more = append(more, m.Address)
	}
	return more
}

// Node is the agent's own certificate: client of the server, server of the node
// API. Its DNS name is the machine's name, so that a caller can insist on it
// whatever the address is.
func Node(m Machine, l Lifetimes) (Profile, error) {
	if err := m.check(); err != nil {
		return Profile{}, err
	}
	l = l.WithDefaults()
	return Profile{
		commonName: m.Name, dnsNames: []string{m.Name}, addresses: m.addresses(),
		uri:    Identity{Cluster: m.Cluster, Kind: KindNode, Name: m.Name}.URI(),
		client: true, server: true, lifetime: l.Agent, backdate: l.Backdate,
	}.checked()
}

// Server is the certificate of imagectl serve: server for everyone, client of
// the node API.
func Server(cluster string, dnsNames []string, addresses []netip.Addr, l Lifetimes) (Profile, error) {
	if !nameRE.MatchString(cluster) {
		return Profile{}, fmt.Errorf("making a profile: %q is no cluster name", cluster)
	}
	l = l.WithDefaults()
	return Profile{
		commonName: "imagectl", dnsNames: slices.Clone(dnsNames), addresses: slices.Clone(addresses),
		uri:    Identity{Cluster: cluster, Kind: KindServer, Name: "imagectl"}.URI(),
		client: true, server: true, lifetime: l.Agent, backdate: l.Backdate,
	}.checked()
}

// Operator is a person's certificate.
func Operator(cluster, name string, role Role, l Lifetimes) (Profile, error) {
	if !nameRE.MatchString(cluster) {
		return Profile{}, fmt.Errorf("making a profile: %q is no cluster name", cluster)
	}
	if !operatorRE.MatchString(name) {
		return Profile{}, fmt.Errorf("making a profile: %q is no operator name; use letters, digits, dots, dashes and @", name)
	}
	if !slices.Contains(Roles(), role) {
		return Profile{}, fmt.Errorf("making a profile for %s: there is no role %q", name, role)
	}
	l = l.WithDefaults()
	return Profile{
		commonName: name, organization: rolePrefix + string(role),
		uri:    Identity{Cluster: cluster, Kind: KindOperator, Name: name}.URI(),
		client: true, lifetime: l.Operator, backdate: l.Backdate,
	}.checked()
}

// EtcdServer serves etcd clients. etcd's own gateway dials its server with the
// same certificate, hence both usages.
func EtcdServer(m Machine, l Lifetimes) (Profile, error) {
	if err := m.check(); err != nil {
		return Profile{}, err
	}
	l = l.WithDefaults()
	return Profile{
		commonName: m.Name, dnsNames: []string{m.Name, "localhost"},
		addresses: m.addresses(netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()),
		client:    true, server: true, lifetime: l.Leaf, backdate: l.Backdate,
	}.checked()
}

// EtcdPeer is for etcd members among themselves.
func EtcdPeer(m Machine, l Lifetimes) (Profile, error) {
	if err := m.check(); err != nil {
		return Profile{}, err
	}
	l = l.WithDefaults()
	return Profile{
		commonName: m.Name, dnsNames: []string{m.Name}, addresses: m.addresses(),
		client: true, server: true, lifetime: l.Leaf, backdate: l.Backdate,
	}.checked()
}

// EtcdClient is a client of etcd; purpose tells its holders apart in etcd's log
// (kube-apiserver, imagectl-agent).
func EtcdClient(m Machine, purpose string, l Lifetimes) (Profile, error) {
	if err := m.check(); err != nil {
		return Profile{}, err
	}
	if !nameRE.MatchString(purpose) {
		return Profile{}, fmt.Errorf("making a profile for %s: %q is no purpose", m.Name, purpose)
	}
	l = l.WithDefaults()
	return Profile{
		// A name may have 63 characters; the purpose is what etcd's log needs.
		commonName: purpose, organization: "imagectl:node:" + m.Name,
		client: true, lifetime: l.Leaf, backdate: l.Backdate,
	}.checked()
}
