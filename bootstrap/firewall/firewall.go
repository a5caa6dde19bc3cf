// Package firewall words a node's host firewall: an nftables ruleset that refuses
// whatever a node has not got to take. It is one table, inet imagectl, with one chain
// at the hook "input": what goes to the node itself. What a node forwards to pods, and
// every other table, belongs to kube-proxy and the CNI and is never touched.
//
// It holds no secret and starts no program: the agent gives the text to nft(8), which
// takes the place of the table in one transaction or leaves it as it was.
//
// The zero Input is the baseline of a node that does not know its cluster yet; an
// image loads it at boot, before anything listens.
package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Table is the family and the name of the table, as nft writes them.
const Table = "inet imagectl"

// Ports that the rules are about.
const (
	nodeAPI    = 50500
	apiServer  = 6443
	etcdClient = 2379
	etcdPeer   = 2380
)

// Input is what a node's rules follow from.
type Input struct {
	// APIServer says that the node runs a Kubernetes API server, which anyone may
	// reach: it authenticates by itself.
	APIServer bool
	// ControlPlanes and Workers are the addresses of the cluster's machines, in any
	// order.
	ControlPlanes, Workers []netip.Addr
	// Pods are the networks of the cluster's pods.
	Pods []netip.Prefix
	// Allow are an operator's own rules.
	Allow []Allow
}

// Allow opens ports to some.
type Allow struct {
	From  []netip.Prefix
	Ports []uint16
	// UDP opens the ports of UDP; otherwise those of TCP.
	UDP bool
}

// begin makes a script replace the table as a whole, whether or not there is one.
const begin = "add table " + Table + "\ndelete table " + Table + "\n"

// Remove is a script for nft that takes the table away.
func Remove() string { return begin }

// head is what any node takes. Error messages of ICMP belong to connections and are
// "related"; neighbour discovery belongs to none.
const head = `table inet imagectl {
	chain input {
		type filter hook input priority filter; policy drop;
		iif "lo" accept
		ct state established,related accept
		ct state invalid drop
		icmp type { echo-request, destination-unreachable, time-exceeded, parameter-problem } accept
		icmpv6 type { echo-request, destination-unreachable, packet-too-big, time-exceeded, parameter-problem, mld-listener-query, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
		udp sport 67 udp dport 68 accept
		ip6 saddr fe80::/10 udp dport 546 accept
`

// tail refuses aloud, so that who is kept out learns it at once and no scan waits.
// What went to many hosts is not answered.
const tail = `		meta pkttype != host drop
		meta l4proto tcp reject with tcp reset
		reject with icmpx admin-prohibited
	}
}
`

// Rules is a script for nft that puts the rules in the place of whatever the table
// held. The same input in any order gives the same text.
func Rules(in Input) string {
	var b strings.Builder
	b.WriteString(begin)
	b.WriteString(head)
	open := []uint16{nodeAPI}
	if in.APIServer {
		open = append(open, apiServer)
	}
	fmt.Fprintf(&b, "\t\ttcp dport %s accept\n", set(open))
	for _, a := range in.Allow {
		protocol := "tcp"
		if a.UDP {
			protocol = "udp"
		}
		from(&b, a.From, " "+protocol+" dport "+set(a.Ports))
	}
	// etcd is for its members and their API servers. A pod's packets may carry its
	// node's address, so this keeps pods on workers out as well.
	etcd := " tcp dport " + set([]uint16{etcdClient, etcdPeer})
	from(&b, hosts(in.ControlPlanes), etcd)
	fmt.Fprintf(&b, "\t\t%s reject with tcp reset\n", strings.TrimSpace(etcd))
	// Everything else between the machines of a cluster: kubelet, and tunnels, BGP and
	// health checks of any CNI. Pods come with their own address or their node's, as
	// the CNI likes, and scrape kubelet and node exporters.
	from(&b, hosts(slices.Concat(in.ControlPlanes, in.Workers)), "")
	from(&b, in.Pods, "")
	b.WriteString(tail)
	return b.String()
}

// from writes the rule that accepts what matches and comes from some networks, for
// each family that occurs; none when there are no networks.
func from(b *strings.Builder, networks []netip.Prefix, match string) {
	var v4, v6 []netip.Prefix
	for _, n := range networks {
		if n = n.Masked(); n.Addr().Is4() {
			v4 = append(v4, n)
		} else {
			v6 = append(v6, n)
		}
	}
	for _, f := range []struct {
		name     string
		networks []netip.Prefix
	}{{"ip", v4}, {"ip6", v6}} {
		if len(f.networks) > 0 {
			fmt.Fprintf(b, "\t\t%s saddr %s%s accept\n", f.name, sources(f.networks), match)
		}
	}
}

// sources is a set of networks. nft refuses a set with intervals that overlap, so
// what another one contains is left out.
func sources(networks []netip.Prefix) string {
	slices.SortFunc(networks, func(a, b netip.Prefix) int {
		if c := a.Bits() - b.Bits(); c != 0 {
			return c
		}
		return a.Addr().Compare(b.Addr())
	})
	var kept []netip.Prefix
	for _, n := range networks {
		if !slices.ContainsFunc(kept, func(k netip.Prefix) bool { return k.Contains(n.Addr()) }) {
			kept = append(kept, n)
		}
	}
	slices.SortFunc(kept, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	text := make([]string, len(kept))
	for i, n := range kept {
		if text[i] = n.String(); n.IsSingleIP() {
			text[i] = n.Addr().String()
		}
	}
	return "{ " + strings.Join(text, ", ") + " }"
}

// hosts are networks of one address each.
func hosts(addresses []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, len(addresses))
	for i, a := range addresses {
		a = a.Unmap().WithZone("")
		out[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return out
}

func set(ports []uint16) string {
	ports = slices.Compact(slices.Sorted(slices.Values(ports)))
	text := make([]string, len(ports))
	for i, p := range ports {
		text[i] = strconv.Itoa(int(p))
	}
	return "{ " + strings.Join(text, ", ") + " }"
}
