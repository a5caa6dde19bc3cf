package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/pxe/datagram"
)

// What happens in a story: four bytes each, this, whose turn it is, and a number.
const (
	storyAsk   byte = iota // the request with that number
	storyLoad              // acknowledge what has come, and so on, that many times
	storyAck               // acknowledge that block, whatever has come
	storyError             // an error with that code
	storyOther             // a packet of that operation, or shorter than any
	storyTick              // that many ticks pass
	storyKinds             // how many there are
)

// storyRequests are what is asked for. The files differ in every block.
func storyRequests() []string {
	return []string{
		read("one", "octet"), read("two", "octet", "blksize", "8"), read("three", "octet", "tsize", "0", "blksize", "1468"), read(`C:\Three`, "netascii"),
		read("empty", "octet", "tsize", "0"), read("block", "octet"), read("nowhere", "octet"), read("one", "netascii", "tsize", "0", "blksize", "700"),
	}
}

func storyFiles() map[string][]byte {
	lines := func(word string, n int) []byte {
		var b []byte
		for i := 0; len(b) < n; i++ {
			b = fmt.Appendf(b, "%s %d\n", word, i)
		}
		return b[:n]
	}
	return map[string][]byte{"one": lines("one", 1300), "two": lines("zwei", 200), "three": lines("trois", 4000), "empty": {}, "block": lines("block", 512)}
}

// reader is a client in a story, with all that it was sent.
type reader struct {
	*socket
	name netip.AddrPort
	// asked is its last request, want what has to come, in blocks of size, and got what
	// has come, the last of it as block.
	asked Request
	want  []byte
	size  int
	got   []byte
	block int
	// acked is the block that it acknowledges now, -1 for none. options: they were answered.
	acked   int
	options bool
	// runs: its transfer has begun and has not ended.
	runs bool
}

func newReader(f *testing.F, host byte) *reader {
	f.Helper()
	s, err := newSocket(&net.UDPAddr{IP: net.IPv4(127, 0, 0, host)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.close() })
	at, err := unix.Getsockname(s.fd)
	own, ok := at.(*unix.SockaddrInet4)
	if !ok {
		f.Fatalf("it is bound to %+v, %v", at, err)
	}
	return &reader{socket: s, name: netip.AddrPortFrom(netip.AddrFrom4(own.Addr), uint16(own.Port))}
}

// drain takes what has come: on the loopback all that was sent is there.
func (r *reader) drain(t *testing.T, take func([]byte)) {
	t.Helper()
	for buf := make([]byte, 2048); ; {
		n, _, err := unix.Recvfrom(r.fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EINTR):
		case err != nil:
			t.Fatal(err)
		default:
			take(buf[:n])
		}
	}
}

// begins is told when a transfer of what it asked for last begins.
func (r *reader) begins(files map[string][]byte) {
	r.options = false
	r.runs, r.got, r.block, r.want, r.size = true, nil, 0, files[r.asked.File()], r.asked.BlockSize(1500-overhead4)
	if r.asked.Mode == "netascii" {
		r.want = []byte(strings.ReplaceAll(string(r.want), "\n", "\r\n"))
	}
}

// take takes a packet as a client that believes nothing.
func (r *reader) take(t *testing.T, p []byte) {
	if len(p) < 4 || p[0] != 0 {
		t.Fatalf("%s was sent %q", r.name, p)
	}
	switch number := int(binary.BigEndian.Uint16(p[2:])); p[1] {
	case opError:
		r.runs = false
	case opOAck:
		if size := fmt.Appendf(nil, "tsize\x00%d\x00", len(r.want)); !r.runs || r.block != 0 || bytes.Contains(p, []byte("tsize")) && !bytes.Contains(p, size) {
			t.Errorf("%s, who has %d blocks of %d bytes, was sent %q", r.name, r.block, len(r.want), p)
		}
		r.options = true
	case opData:
		if number != r.block && number != r.block+1 || number == 0 || !r.runs {
			t.Fatalf("%s was sent block %d; it has %d, its transfer runs: %v", r.name, number, r.block, r.runs)
		}
		from := min((number-1)*r.size, len(r.want))
		if want := r.want[from:min(from+r.size, len(r.want))]; !bytes.Equal(p[4:], want) {
			t.Fatalf("%s was sent as block %d of %s %q, want %q", r.name, number, r.asked.Name, p[4:], want)
		}
		if number > r.block {
			if (number > 1 || r.options) && r.acked != r.block {
				t.Errorf("%s acknowledged %d, and was sent block %d after %d", r.name, r.acked, number, r.block)
			}
			r.block, r.got = number, append(r.got, p[4:]...)
		}
	default:
		t.Errorf("%s was sent %q", r.name, p)
	}
}

// tally is a meter that counts.
type tally struct{ begun, ended int }

func (m *tally) Begun()                    { m.begun++ }
func (m *tally) Ended(string, int64, bool) { m.ended++ }

// Whatever three clients say in whatever order, each is sent the blocks of what it asked
// for and nobody else's, has the whole file when its transfer counts as whole, is sent
// nothing after the end, and no transfer is left over.
func FuzzTransfers(f *testing.F) {
	readers := []*reader{newReader(f, 10), newReader(f, 11), newReader(f, 12)}
	own, err := newSocket(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { own.close() })
	for _, story := range [][]byte{
		{storyAsk, 0, 0, 0, storyLoad, 0, 0, 9}, // to its end
		{storyAsk, 0, 0, 1, storyAsk, 1, 0, 2, storyAsk, 2, 0, 3, storyLoad, 1, 0, 2, storyLoad, 0, 0, 60, storyLoad, 2, 0, 9},        // one of three waits
		{storyAsk, 0, 0, 4, storyLoad, 0, 0, 1, storyAck, 0, 0, 0, storyAck, 1, 0, 1, storyAck, 0, 0, 1},                              // of an empty file
		{storyAsk, 0, 0, 2, storyError, 0, 0, 8, storyAsk, 0, 0, 2, storyLoad, 0, 0, 9},                                               // the size first
		{storyAsk, 0, 0, 0, storyLoad, 0, 0, 1, storyTick, 0, 0, 6, storyAsk, 0, 0, 2, storyLoad, 0, 0, 5},                            // begun again
		{storyAsk, 0, 0, 6, storyAsk, 1, 0, 5, storyOther, 1, 0, 3, storyOther, 1, 9, 9, storyAck, 1, 255, 255, storyTick, 0, 0, 255}, // gone
		{storyAsk, 0, 0, 7, storyLoad, 0, 0, 9, storyAck, 0, 0, 3, storyAsk, 0, 0, 0, storyAck, 0, 0, 2},                              // late acknowledgements
		{storyAsk, 0, 0, 2, storyLoad, 0, 0, 1, storyAck, 0, 0, 0, storyAck, 0, 0, 1, storyLoad, 0, 0, 9},                             // of blocks before
	} {
		f.Add(story)
	}
	requests, files := storyRequests(), storyFiles()
	f.Fuzz(func(t *testing.T, story []byte) {
		now := time.Unix(1_800_000_000, 0)
		of := func(a netip.Addr) *reader {
			return readers[slices.IndexFunc(readers, func(r *reader) bool { return r.name.Addr() == a })]
		}
		var meter tally
		cfg := Config{Files: files, Sessions: 1, Meter: &meter,
			Started: func(client netip.Addr, name string) {
				r := of(client)
				if r.runs {
					t.Errorf("a second transfer to %s begins", client)
				}
				if name != r.asked.File() {
					t.Errorf("%s asked for %s, and %s begins", client, r.asked.File(), name)
				}
				r.begins(files)
			},
			Loaded: func(client netip.Addr, name string) {
				if r := of(client); !r.runs || name != r.asked.File() || r.acked != r.block || !bytes.Equal(r.got, r.want) {
					t.Errorf("%s is said to have %s, and has %d bytes of %d", client, name, len(r.got), len(r.want))
				}
			}}
		s := newServer(cfg.complete(), overhead4, func() time.Time { return now }, own)
		l := s.lanes[0]
		for _, r := range readers {
			r.drain(t, func([]byte) {}) // of a story that failed
			r.runs, r.acked = false, -1
		}
		settle := func() {
			running := 0
			for _, r := range readers {
				_, ours := l.transfers[r.name]
				if r.drain(t, func(p []byte) { r.take(t, p) }); r.runs != ours {
					if r.runs = ours; ours {
						t.Errorf("%s was told of an end, and its transfer goes on", r.name)
					}
				}
				if ours {
					running++
				}
			}
			if meter.begun-meter.ended != running {
				t.Fatalf("%d began, %d ended, and %d run", meter.begun, meter.ended, running)
			}
		}
		answers := func(r *reader, p []byte) {
			if len(p) == 4 && p[1] == opAck {
				r.acked = int(binary.BigEndian.Uint16(p[2:]))
			}
			in := datagram.New(64)
			in.Add(r.name, true, func(buf []byte) []byte { return append(buf, p...) })
			l.take(in)
			settle()
			r.acked = -1
		}
		for i := 0; i+4 <= len(story) && i < 4*64; i += 4 {
			r, number := readers[int(story[i+1])%len(readers)], binary.BigEndian.Uint16(story[i+2:])
			switch story[i] % storyKinds {
			case storyAsk:
				request, err := ParseRequest([]byte(requests[int(number)%len(requests)]))
				if err != nil {
					t.Fatal(err)
				}
				before, running := r.asked, r.runs
				if r.asked = request; running && !l.transfers[r.name].stuck() {
					r.asked = before // which goes on
				} else {
					r.runs = false
				}
				s.arrive(r.name, request)
				settle()
			case storyLoad:
				for range number%64 + 1 {
					answers(r, binary.BigEndian.AppendUint16([]byte{0, opAck}, uint16(r.block)))
				}
			case storyAck:
				answers(r, binary.BigEndian.AppendUint16([]byte{0, opAck}, number))
			case storyError:
				answers(r, failure(number, "story\x07"))
			case storyOther:
				answers(r, []byte{0, byte(number), 0, 1}[:number>>8%5])
			case storyTick:
				for range number%256 + 1 {
					now = now.Add(tick)
					l.tick()
					settle()
				}
			}
		}
		l.stop()
		if settle(); l.busy() != 0 || meter.begun != meter.ended {
			t.Errorf("at the end %d run; %d began and %d ended", l.busy(), meter.begun, meter.ended)
		}
	})
}
