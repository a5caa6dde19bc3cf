package libvirt

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/digitalocean/go-libvirt/socket"
)

// message is one of libvirt's, of a type and with a call's serial number.
func message(kind, serial uint32, payload string) []byte {
	m := binary.BigEndian.AppendUint32(nil, uint32(messageHeader+len(payload)))
	for _, field := range []uint32{0x20008086, 1, 94, kind, serial, 0} {
		m = binary.BigEndian.AppendUint32(m, field)
	}
	return append(m, payload...)
}

func TestRepliesComeBeforeStreams(t *testing.T) {
	t.Parallel()
	reply, stream := func(n uint32) []byte { return message(socket.Reply, n, "") }, func(n uint32, s string) []byte { return message(socket.Stream, n, s) }
	event := message(socket.Message, 0, "an event")
	for name, tt := range map[string]struct{ come, want [][]byte }{
		"as they should":       {[][]byte{reply(7), stream(7, "a"), stream(7, "b")}, [][]byte{reply(7), stream(7, "a"), stream(7, "b")}},
		"a stream too soon":    {[][]byte{stream(7, "a"), stream(7, "b"), reply(7), stream(7, "c")}, [][]byte{reply(7), stream(7, "a"), stream(7, "b"), stream(7, "c")}},
		"another call between": {[][]byte{stream(7, "a"), event, reply(8), stream(8, "x"), reply(7)}, [][]byte{event, reply(8), stream(8, "x"), reply(7), stream(7, "a")}},
		"two too soon":         {[][]byte{stream(7, "a"), stream(8, "x"), reply(8), reply(7)}, [][]byte{reply(8), stream(8, "x"), reply(7), stream(7, "a")}},
		"never a reply":        {[][]byte{stream(7, "a"), event}, [][]byte{event}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				for piece := range slices.Chunk(slices.Concat(tt.come...), 5) {
					_, _ = theirs.Write(piece)
				}
			}()
			got, err := io.ReadAll(inOrder(ours))
			if want := slices.Concat(tt.want...); err != nil || !bytes.Equal(got, want) {
				t.Errorf("got  %q, %v\nwant %q", got, err, want)
			}
		})
	}
}

func TestWhatIsNoMessageIsRefused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ come, want string }{
		"too short": {"\x00\x00\x00\x05hello", "message of 5 bytes: want 28"},
		"too long":  {"HTTP/1.1 400 Bad Request", "message of 1213486160 bytes"},
		"cut off":   {string(message(socket.Reply, 1, "abc")[:30]), "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				_, _ = io.WriteString(theirs, tt.come)
			}()
			if _, err := io.ReadAll(inOrder(ours)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			ours.Close()
		})
	}
}
