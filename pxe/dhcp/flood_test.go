package dhcp

import (
	"context"
	"encoding/binary"
	"net"
	"sync/atomic"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/datagram"
)

// crowded is a socket that reads batches, and keeps what would leave.
type crowded struct {
	*net.UDPConn
	// first is closed when the first batch shall leave.
	first chan struct{}
	begun atomic.Bool
	sent  chan []byte
}

func (c *crowded) ReadBatch(b *datagram.Batch) error { return datagram.Read(c.UDPConn, b) }

func (c *crowded) WriteBatch(b *datagram.Batch, _ func(int, error)) {
	if c.begun.CompareAndSwap(false, true) {
		<-c.first
	}
	for i := range b.Len() {
		c.sent <- append([]byte(nil), b.Data(i)...)
	}
	b.Fail(nil, func(int, error) {}) // takes them out
}

// While one batch of answers leaves the next requests are read, and where it takes too long
// their answers leave all the same: each once, to whom it is for.
func TestAFloodIsAnsweredWhileAnswersLeave(t *testing.T) {
	t.Parallel()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if err := udp.SetReadBuffer(1 << 20); err != nil {
		t.Fatal(err)
	}
	const clients = 4 * datagram.AtOnce
	conn := &crowded{UDPConn: udp, first: make(chan struct{}), sent: make(chan []byte, clients)}
	from, err := net.DialUDP("udp4", nil, udp.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	card := func(xid uint32) byte { return byte(xid % 2) } // there are two free addresses
	ask := func(i int) {
		m := discover(MAC{2, 0, 0, 0, 0, card(uint32(i))})
		binary.BigEndian.PutUint32(m.TransactionID[:], uint32(i))
		if _, err := from.Write(m.ToBytes()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range clients { // all are in the socket's queue before it is read
		ask(i)
	}
	s, err := NewServer(Config{Address: us, Files: files, Source: source(), Store: &memStore{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, Socket{Conn: conn}) }()
	answered := map[uint32]bool{}
	take := func(n int) {
		t.Helper()
		for range n {
			m, err := dhcpv4.FromBytes(<-conn.sent)
			if err != nil {
				t.Fatal(err)
			}
			xid := binary.BigEndian.Uint32(m.TransactionID[:])
			if answered[xid] || m.ClientHWAddr[5] != card(xid) {
				t.Errorf("client %d is answered twice, or another one in its place: %s", xid, m.ClientHWAddr)
			}
			answered[xid] = true
		}
	}
	// The first batch is on its way and one waits behind it; the others have left.
	take(clients - 2*datagram.AtOnce)
	close(conn.first)
	take(2 * datagram.AtOnce)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(answered) != clients {
		t.Errorf("%d clients are answered, want %d", len(answered), clients)
	}
}
