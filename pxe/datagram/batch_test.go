package datagram

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// listen opens a socket on the loopback.
func listen(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func at(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// blocking calls what is done with a socket's descriptor.
func blocking(t *testing.T, c *net.UDPConn, do func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { err = do(int(fd)) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
}

// batched is a socket that Of takes as it is.
type batched struct{ *net.UDPConn }

func (b batched) ReadBatch(in *Batch) error { return Read(b.UDPConn, in) }
func (b batched) WriteBatch(out *Batch, failed func(int, error)) {
	Write(b.UDPConn, out, nil, failed)
}

// ways are the ways to read and to write a batch, and how many packets each takes at once.
func ways(t *testing.T) map[string]struct {
	atOnce int
	read   func(*net.UDPConn, *Batch) error
	write  func(*net.UDPConn, *Batch)
} {
	no := func(i int, err error) { t.Errorf("packet %d: %v", i, err) }
	type way = struct {
		atOnce int
		read   func(*net.UDPConn, *Batch) error
		write  func(*net.UDPConn, *Batch)
	}
	return map[string]way{
		"by descriptor": {AtOnce, func(c *net.UDPConn, b *Batch) error {
			blocking(t, c, b.Receive)
			return nil
		}, func(c *net.UDPConn, b *Batch) { blocking(t, c, b.Send) }},
		"together": {AtOnce, func(c *net.UDPConn, b *Batch) error { return Of(batched{c}).ReadBatch(b) },
			func(c *net.UDPConn, b *Batch) { Of(batched{c}).WriteBatch(b, no) }},
		"one after the other": {1, func(c *net.UDPConn, b *Batch) error { return Of(c).ReadBatch(b) },
			func(c *net.UDPConn, b *Batch) { Of(c).WriteBatch(b, no) }},
	}
}

// Packets that one system call takes are each as they were sent, whatever was in their
// buffers before: longer ones after shorter ones, and the other way round.
func TestPacketsOfOneBatchDoNotShareABuffer(t *testing.T) {
	t.Parallel()
	for name, way := range ways(t) {
		server, clients := listen(t), [2]*net.UDPConn{listen(t), listen(t)}
		in := New(256)
		for round, size := range []int{3, 200, 0, 50} {
			var want [AtOnce][]byte
			for i := range want {
				want[i] = bytes.Repeat([]byte{byte(1 + round*AtOnce + i)}, size+i%3)
				// On the loopback it is in the server's queue when the call returns.
				if _, err := clients[i%2].WriteToUDPAddrPort(want[i], at(server)); err != nil {
					t.Fatal(err)
				}
			}
			for n := 0; n < AtOnce; n += in.Len() {
				if err := way.read(server, in); err != nil || in.Len() != way.atOnce {
					t.Fatalf("%s, round %d: %d packets, %v, want %d", name, round, in.Len(), err, way.atOnce)
				}
				for i := range in.Len() { // not before all are there
					if got, want := in.Data(i), want[n+i]; !bytes.Equal(got, want) {
						t.Errorf("%s, round %d: packet %d is %d times %.1x, want %d times %.1x", name, round, n+i, len(got), got, len(want), want)
					}
					if got, want := in.Peer(i), at(clients[(n+i)%2]); got != want {
						t.Errorf("%s, round %d: packet %d comes from %s, want %s", name, round, n+i, got, want)
					}
				}
			}
		}
	}
}

// The same the other way: what waits to be sent together stays as it was put in, and goes
// to whom it was put in for, in its order.
func TestPacketsSentTogetherDoNotShareABuffer(t *testing.T) {
	t.Parallel()
	for name, way := range ways(t) {
		server, clients := listen(t), [2]*net.UDPConn{listen(t), listen(t)}
		out := New(16)
		for round := range 2 {
			var want [2][]string
			for i := range AtOnce {
				text := fmt.Sprintf("%d.%d", round, i)
				want[i%2] = append(want[i%2], text)
				out.Add(at(clients[i%2]), true, func(b []byte) []byte { return append(b, text...) })
			}
			if !out.Full() {
				t.Fatalf("%s: %d packets, and room for more", name, out.Len())
			}
			if way.write(server, out); out.Len() != 0 {
				t.Fatalf("%s: %d packets are left", name, out.Len())
			}
			for c, texts := range want {
				for _, text := range texts {
					buf := make([]byte, 16)
					if n, err := clients[c].Read(buf); err != nil || string(buf[:n]) != text {
						t.Fatalf("%s: client %d got %q, %v, want %q", name, c, buf[:n], err, text)
					}
				}
			}
		}
	}
}

// What cannot leave is said, with which, and stops nothing else.
func TestWhatDoesNotLeaveIsSaid(t *testing.T) {
	t.Parallel()
	server, client := listen(t), listen(t)
	fill := func() *Batch {
		out := New(0)
		for _, text := range []string{"a", "b", "c", "d"} {
			to := at(client)
			if text == "b" || text == "d" {
				to = netip.MustParseAddrPort("127.0.0.1:0") // there is no port 0
			}
			out.Add(to, true, func([]byte) []byte { return []byte(text) })
		}
		return out
	}
	for name, conn := range map[string]Conn{"together": batched{server}, "one after the other": Of(server)} {
		var failed []int
		conn.WriteBatch(fill(), func(i int, err error) {
			failed = append(failed, i)
			if !errors.Is(err, unix.EINVAL) {
				t.Errorf("%s: packet %d: %v", name, i, err)
			}
		})
		if !slices.Equal(failed, []int{1, 3}) {
			t.Errorf("%s: packets %v did not leave, want 1 and 3", name, failed)
		}
		for _, want := range []string{"a", "c"} {
			buf := make([]byte, 16)
			if n, err := client.Read(buf); err != nil || string(buf[:n]) != want {
				t.Fatalf("%s: got %q, %v, want %q", name, buf[:n], err, want)
			}
		}
	}
	server.Close()
	for name, conn := range map[string]Conn{"together": batched{server}, "one after the other": Of(server)} {
		n := 0
		conn.WriteBatch(fill(), func(_ int, err error) {
			n++
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s, closed: %v", name, err)
			}
		})
		if n != 4 {
			t.Errorf("%s, closed: %d packets did not leave, want 4", name, n)
		}
		if err := conn.ReadBatch(New(8)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s, closed: reading says %v", name, err)
		}
	}
}

// A server with several addresses says from which one it answers, for every packet.
func TestAllPacketsHaveTheControlMessage(t *testing.T) {
	t.Parallel()
	server, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client := listen(t)
	out := New(0)
	for range 3 {
		out.Add(at(client), true, func([]byte) []byte { return []byte("a") })
	}
	from := ipv4.ControlMessage{Src: net.IPv4(127, 0, 0, 7)}
	Write(server, out, from.Marshal(), func(i int, err error) { t.Errorf("packet %d: %v", i, err) })
	for range 3 {
		if _, got, err := client.ReadFromUDPAddrPort(make([]byte, 8)); err != nil || got.Addr() != netip.MustParseAddr("127.0.0.7") {
			t.Errorf("it comes from %s, %v", got, err)
		}
	}
	// The next batch has none.
	out.Add(at(client), true, func([]byte) []byte { return []byte("a") })
	Write(server, out, nil, func(i int, err error) { t.Errorf("packet %d: %v", i, err) })
	if _, got, err := client.ReadFromUDPAddrPort(make([]byte, 8)); err != nil || got.Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("without a control message it comes from %s, %v", got, err)
	}
}

func TestAddressesSurviveTheKernelsForm(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		from string
		four bool
		want string
	}{
		{"10.0.0.7:2070", true, "10.0.0.7:2070"},
		{"[::ffff:10.0.0.7]:2070", true, "10.0.0.7:2070"},
		{"10.0.0.7:2070", false, "10.0.0.7:2070"}, // on a socket of both
		{"[fd00::7]:65535", false, "[fd00::7]:65535"},
		{"[fe80::7%3]:1", false, "[fe80::7%3]:1"},
		{"[fe80::7%no-such-interface]:1", false, "[fe80::7]:1"},
	} {
		p := New(8)
		p.Add(Canonical(netip.MustParseAddrPort(c.from)), c.four, func(b []byte) []byte { return append(b, 1) })
		if got := p.Peer(0).String(); got != c.want {
			t.Errorf("%s: got %s, want %s", c.from, got, c.want)
		}
	}
}
