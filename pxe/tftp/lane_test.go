package tftp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pin/tftp/v3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/pxe/datagram"
)

// More clients than run at once or fit into one system call, on all lanes. Theirs is
// another's protocol, which also repeats what it has sent.
func TestManyClientsGetTheirFilesAtOnce(t *testing.T) {
	t.Parallel()
	files := map[string][]byte{}
	for i := range 7 {
		files[fmt.Sprint("file-", i)] = program(20_000 + i*97)
	}
	at := serve(t, Config{Files: files})
	var all errgroup.Group
	for i := range 90 {
		all.Go(func() error {
			c, err := tftp.NewClient(at.String())
			if err != nil {
				return err
			}
			c.SetBlockSize(512 + 16*(i%60))
			c.RequestTSize(i%2 == 0)
			c.SetRetries(20)
			name := fmt.Sprint("file-", i%7)
			from, err := c.Receive(name, "octet")
			if err != nil {
				return fmt.Errorf("asking for %s: %w", name, err)
			}
			var got bytes.Buffer
			if _, err := from.WriteTo(&got); err != nil {
				return fmt.Errorf("receiving %s: %w", name, err)
			}
			if !bytes.Equal(got.Bytes(), files[name]) {
				return fmt.Errorf("%s has %d bytes, want %d, or they differ", name, got.Len(), len(files[name]))
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
}

func TestClientsAreToldThatTheServerStops(t *testing.T) {
	t.Parallel()
	meter := make(events, 16)
	s, client := lonely(t, Config{Files: map[string][]byte{"a": program(5000)}, Meter: meter})
	s.arrive(client.name, mustParse(t, read("a", "octet")))
	meter.expect(t, "begun")
	if got, _ := answer(t, client.UDPConn, time.Minute); len(got) != 516 {
		t.Fatalf("got %q", got)
	}
	s.lanes[0].stop()
	meter.expect(t, "ended a 512 false")
	if got, _ := answer(t, client.UDPConn, time.Minute); got != "\x00\x05\x00\x00the server is stopping\x00" {
		t.Errorf("got %q", got)
	}
	s.arrive(client.name, mustParse(t, read("a", "octet")))
	if n := s.lanes[0].busy(); n != 0 {
		t.Errorf("%d transfers began since", n)
	}
}

func TestWhoDoesNotAnswerLosesItsPlace(t *testing.T) {
	t.Parallel()
	meter := make(events, 16)
	s, client := lonely(t, Config{Files: map[string][]byte{"a": program(5000), "b": program(10)}, Sessions: 1, Meter: meter})
	s.arrive(client.name, mustParse(t, read("a", "octet")))
	other := netip.AddrPortFrom(client.name.Addr(), 9)
	s.arrive(other, mustParse(t, read("b", "octet")))
	meter.expect(t, "begun")
	for range 164 {
		s.lanes[0].tick()
	}
	if len(meter) != 0 {
		t.Fatalf("after 16.4 s: %s", <-meter)
	}
	s.lanes[0].tick()
	meter.expect(t, "ended a 512 false", "begun")
	for i := range 1 + retries {
		if got, _ := answer(t, client.UDPConn, time.Minute); len(got) != 516 {
			t.Fatalf("packet %d: got %q", i, got)
		}
	}
	if got, _ := answer(t, client.UDPConn, time.Minute); got != "\x00\x05\x00\x00no answer\x00" {
		t.Errorf("at last: got %q", got)
	}
}

// ROMs that were reset begin with the port of before, and would wait for the end of what
// nobody loads any more.
func TestWhoBeginsAgainIsServedAtOnce(t *testing.T) {
	t.Parallel()
	meter := make(events, 16)
	s, client := lonely(t, Config{Files: map[string][]byte{"a": program(5000)}, Meter: meter})
	got := func(block byte) {
		t.Helper()
		if got, _ := answer(t, client.UDPConn, time.Minute); len(got) != 516 || got[3] != block {
			t.Fatalf("got %.4q, want block %d", got, block)
		}
	}
	ask := func() { s.arrive(client.name, mustParse(t, read("a", "octet"))) }
	ask()
	meter.expect(t, "begun")
	got(1)
	for range firstWait {
		s.lanes[0].tick()
	}
	got(1)
	ask() // the first packet was lost: it is on its way again
	ack := datagram.New(8)
	ack.Add(client.name, true, func(b []byte) []byte { return append(b, 0, opAck, 0, 1) })
	s.lanes[0].take(ack)
	got(2)
	ask() // a request that came twice
	for range firstWait {
		s.lanes[0].tick()
	}
	got(2)
	if len(meter) != 0 {
		t.Fatalf("before it began again: %s", <-meter)
	}
	ask()
	got(1)
	meter.expect(t, "ended a 1024 false", "begun")
}

func TestWhoWaitsGetsWhatItAskedForLast(t *testing.T) {
	t.Parallel()
	meter := make(events, 16)
	s, client := lonely(t, Config{Files: map[string][]byte{"a": program(10), "b": program(20)}, Sessions: 1, Meter: meter})
	other := netip.AddrPortFrom(client.name.Addr(), 9)
	for _, ask := range []struct {
		from netip.AddrPort
		file string
	}{{other, "a"}, {client.name, "a"}, {client.name, "b"}} {
		s.arrive(ask.from, mustParse(t, read(ask.file, "octet")))
	}
	meter.expect(t, "begun")
	gone := datagram.New(16)
	gone.Add(other, true, func(b []byte) []byte { return append(b, failure(0, "bye")...) })
	s.lanes[0].take(gone)
	if got, _ := answer(t, client.UDPConn, time.Minute); len(got) != 4+20 {
		t.Errorf("got %q, want what it asked for last", got)
	}
}

// A client that does not answer keeps what it has, but nobody waits for it.
func TestOthersBeginWhileAClientDoesNotAnswer(t *testing.T) {
	t.Parallel()
	meter := make(events, 16)
	s, client := lonely(t, Config{Files: map[string][]byte{"a": program(600)}, Sessions: 1, Meter: meter})
	s.arrive(client.name, mustParse(t, read("a", "octet")))
	meter.expect(t, "begun")
	for host := byte(2); host < 10; host++ {
		s.arrive(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, host}), 9), mustParse(t, read("a", "octet")))
	}
	for n := 1; n <= 1+spareTimes; n++ { // each of those that begin halts, too
		for range haltedAfter - 1 {
			s.lanes[0].tick()
		}
		if len(meter) != 0 {
			t.Fatalf("after %d have halted: %s", n-1, <-meter)
		}
		s.lanes[0].tick()
		if n <= spareTimes {
			meter.expect(t, "begun")
		}
	}
	if got := s.lanes[0].busy(); got != 1+spareTimes || len(meter) != 0 {
		t.Fatalf("%d run, want %d", got, 1+spareTimes)
	}
	// The first one goes on where it was.
	for block := range byte(2) {
		ack := datagram.New(8)
		ack.Add(client.name, true, func(b []byte) []byte { return append(b, 0, opAck, 0, 1+block) })
		s.lanes[0].take(ack)
	}
	meter.expect(t, "ended a 600 true", "begun")
}

// peer is a client's socket.
type peer struct {
	*net.UDPConn
	name netip.AddrPort
}

// lonely is a server with one lane, which nobody runs, and a client of it.
func lonely(t *testing.T, cfg Config) (*server, peer) {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	socket, err := newSocket(conn.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.close() })
	return newServer(cfg.complete(), overhead4, func() time.Time { return time.Time{} }, socket), peer{conn, conn.LocalAddr().(*net.UDPAddr).AddrPort()}
}

func mustParse(t *testing.T, packet string) Request {
	t.Helper()
	r, err := ParseRequest([]byte(packet))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Quirk 24: the DF bit confuses ROMs. And answers come from the address that was asked.
func TestTransfersLeaveFromTheServersAddressWithoutTheDFBit(t *testing.T) {
	t.Parallel()
	s, err := newSocket(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 7), Port: 69})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if got, err := unix.GetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER); err != nil || got != unix.IP_PMTUDISC_DONT {
		t.Errorf("IP_MTU_DISCOVER is %d, %v", got, err)
	}
	at, err := unix.Getsockname(s.fd)
	if own, ok := at.(*unix.SockaddrInet4); !ok || own.Addr != [4]byte{127, 0, 0, 7} {
		t.Errorf("it is bound to %+v, %v", at, err)
	}
}

// torn is a file whose end cannot be read.
type torn struct {
	*bytes.Reader
	closed chan string
}

func (f torn) Read(p []byte) (int, error) {
	if f.Len() < 1000 {
		return 0, errors.New("input/output error")
	}
	return f.Reader.Read(p)
}

func (f torn) Close() error { f.closed <- "closed"; return nil }

func TestAFileThatCannotBeReadEndsItsTransfer(t *testing.T) {
	t.Parallel()
	meter := make(events, 16)
	at := serve(t, Config{Meter: meter, Find: func(netip.Addr, string) (io.ReadSeekCloser, bool) {
		return torn{bytes.NewReader(program(1200)), meter}, true
	}})
	_, conn, from := ask(t, at, read("a", "octet"))
	if _, err := conn.WriteToUDP([]byte("\x00\x04\x00\x01"), from); err != nil {
		t.Fatal(err)
	}
	for {
		got, _ := answer(t, conn, time.Minute)
		if len(got) == 516 {
			continue // the first block once more: this test is slow
		}
		if got != "\x00\x05\x00\x00the server cannot read the file\x00" {
			t.Errorf("got %q", got)
		}
		break
	}
	meter.expect(t, "begun", "closed", "ended a 512 false")
}
