package dhcp

import (
	"fmt"
	"net/netip"

	"github.com/imagectl/imagectl/pxe/boot"
)

// foreign says why a client is left to the servers of other clusters on this network, or is
// empty. All of them hear every broadcast, so each answers those that it knows, and at most
// one of them everybody else.
func (r *query) foreign() string {
	switch {
	case len(r.Network.Neighbours) == 0 || r.answer.Name != "":
		return ""
	case r.answer.Code == boot.CodeNeighbour:
		return r.answer.Reason
	case r.Network.OnlyListed && r.unrecorded():
		return fmt.Sprintf("%s is not in cluster.yaml, and the servers of other clusters answer here too (boot.neighbours)", r.client.MAC)
	}
	return ""
}

// unrecorded says that we know nothing of a client beside whose server there are others. Then
// we may not tell it that its address is wrong (RFC 2131 section 4.3.2): who gave it knows.
func (r *query) unrecorded() bool {
	return len(r.Network.Neighbours) > 0 && r.answer.Name == "" && len(r.own) == 0
}

// neighbourChosen is for a client that chose the server of another cluster. For one of our
// machines that is a mistake: two clusters list it.
func (r *query) neighbourChosen(server netip.Addr) Decision {
	if r.answer.Name == "" {
		return silent(boot.CodeNeighbour, "the client chose the server %s of another cluster", server)
	}
	return silent("listed-twice", "it is %s of cluster.yaml and chose the server %s of another cluster, which answers it too: take it out of one of them (imagectl validate with both files finds such machines)", r.answer.Name, server).refused()
}
