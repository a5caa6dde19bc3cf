package dhcp

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/selector"
)

// relay is what the relay agent of a request says. The zero value means that the
// client is in a network of ours: nobody else's sub-options count.
type relay struct {
	// agent is where the answer goes (giaddr).
	agent netip.Addr
	// link is an address in the client's network: agent, or another one that the
	// agent names because it has none there (RFC 3527).
	link netip.Addr
	// identifier is what the client shall take for the server, so that it renews
	// through the agent (RFC 5107); usually unset.
	identifier netip.Addr
	// circuit and remote are the switch port and the switch, as selector.Text writes
	// them; empty when not told.
	circuit, remote string
}

func relayOf(req *dhcpv4.DHCPv4) relay {
	agent := addr(req.GatewayIPAddr)
	if !agent.IsValid() {
		return relay{}
	}
	r := relay{agent: agent, link: agent}
	info := req.RelayAgentInfo()
	if info == nil {
		return r
	}
	if a := addr(info.Get(dhcpv4.LinkSelectionSubOption)); a.Is4() {
		r.link = a
	}
	if a := addr(info.Get(dhcpv4.ServerIdentifierOverrideSubOption)); a.Is4() {
		r.identifier = a
	}
	r.circuit = selector.Text(info.Get(dhcpv4.AgentCircuitIDSubOption))
	r.remote = selector.Text(info.Get(dhcpv4.AgentRemoteIDSubOption))
	return r
}

// strangeRelay says why a relay is not listened to.
func (r *query) strangeRelay() string {
	agent := r.relay.agent
	if !agent.IsValid() || slices.Contains(r.Network.Relays, agent) {
		return ""
	}
	if len(r.Network.Relays) > 0 {
		return fmt.Sprintf("the relay %s is not one of boot.relays in cluster.yaml", agent)
	}
	if _, ok := subnetOf(r.Network, agent); !ok {
		return fmt.Sprintf("the relay %s is in none of boot.subnets and not in boot.relays in cluster.yaml", agent)
	}
	return ""
}
