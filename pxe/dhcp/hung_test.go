package dhcp

import (
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// What is decided about a packet needs nothing but memory: while the disk (or the store that
// servers share) does not answer, all that needs no new lease is answered, and asks for none.
func TestADiskThatHangsHoldsUpNoDecision(t *testing.T) {
	t.Parallel()
	store := &memStore{asked: make(chan struct{})} // hangs until somebody reads
	conn := serve(t, store, nil)
	send := func(m *dhcpv4.DHCPv4) { conn.out <- m.ToBytes() }
	answer := func() dhcpv4.MessageType {
		t.Helper()
		m, err := dhcpv4.FromBytes(<-conn.in)
		if err != nil {
			t.Fatal(err)
		}
		return m.MessageType()
	}
	send(request(node1, wants("10.0.0.11"), toServer("10.0.0.1")))
	for range 100 {
		for _, m := range []*dhcpv4.DHCPv4{discover(laptop, pxe(7)), discover(node1, ipxe), packet(dhcpv4.MessageTypeInform, laptop, from("10.0.0.9"))} {
			send(m)
			if got := answer(); got == dhcpv4.MessageTypeAck && m.MessageType() != dhcpv4.MessageTypeInform {
				t.Fatalf("a lease is acknowledged that no disk has")
			}
		}
	}
	<-store.asked // for that lease, and nothing else
	if got := answer(); got != dhcpv4.MessageTypeAck {
		t.Errorf("when the disk answers again: got %s", got)
	}
	s, err := NewServer(Config{Address: us, Files: files, Source: source(), Store: store})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*dhcpv4.DHCPv4{discover(laptop, pxe(7)), request(node1, wants("10.0.0.11"), toServer("10.0.0.1")), packet(dhcpv4.MessageTypeRelease, node1, from("10.0.0.11"))} {
		s.handle(m.ToBytes(), Socket{}, netip.AddrPort{}) // would hang for ever, since nobody reads any more
	}
}
