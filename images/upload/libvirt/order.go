package libvirt

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/digitalocean/go-libvirt/socket"
)

const (
	// messageHeader of a message in bytes, its length included; src/rpc/virnetprotocol.x has
	// the order: length, program, version, procedure, type, serial, status.
	messageHeader = 28
	// messageMax is more than any message has (VIR_NET_MESSAGE_MAX is 32 MiB).
	messageMax = 64 << 20
)

// ordered gives the messages of a connection's other end with each call's reply before its
// stream. libvirtd has the two sent by different threads, and a busy one sends a stream's
// first bytes before the reply now and then; its own clients tell them apart, and the library
// takes for the reply whatever comes first, so the bytes were lost.
type ordered struct {
	net.Conn
	// ready is what Read gives next; held are the streams' messages that wait for the
	// reply, by serial number; replied are those that have had it.
	ready   [][]byte
	held    map[uint32][][]byte
	replied map[uint32]bool
}

func inOrder(c net.Conn) *ordered {
	return &ordered{Conn: c, held: map[uint32][][]byte{}, replied: map[uint32]bool{}}
}

// Read implements io.Reader.
func (o *ordered) Read(p []byte) (int, error) {
	for len(o.ready) == 0 {
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, o.ready[0])
	if o.ready[0] = o.ready[0][n:]; len(o.ready[0]) == 0 {
		o.ready = o.ready[1:]
	}
	return n, nil
}

// next reads one message.
func (o *ordered) next() error {
	var length [4]byte
	if _, err := io.ReadFull(o.Conn, length[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(length[:])
	if size < messageHeader || size > messageMax {
		return fmt.Errorf("libvirt's message of %d bytes: want %d to %d", size, messageHeader, messageMax)
	}
	m := make([]byte, size)
	copy(m, length[:])
	if _, err := io.ReadFull(o.Conn, m[len(length):]); err != nil {
		return err
	}
	kind, serial := binary.BigEndian.Uint32(m[16:]), binary.BigEndian.Uint32(m[20:])
	switch {
	case kind == socket.Stream && !o.replied[serial]:
		o.held[serial] = append(o.held[serial], m)
		return nil
	case kind == socket.Reply:
		o.replied[serial] = true
	}
	o.ready = append(append(o.ready, m), o.held[serial]...)
	delete(o.held, serial)
	return nil
}
