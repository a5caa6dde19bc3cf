package dhcp

import (
	"errors"
	"net"

	"github.com/imagectl/imagectl/pxe/datagram"
)

// outgoing is answers that leave together. One goroutine at a time has it.
type outgoing struct {
	*Server
	conn  net.PacketConn
	batch *datagram.Batch
}

func (s *Server) outgoing() *outgoing { return &outgoing{Server: s, batch: datagram.New(0)} }

// send lets an answer leave with the next flush, or when its client is ready for it.
func (o *outgoing) send(p pending) {
	if p.delay == 0 || !o.waiting.add(p) {
		o.add(p)
	}
}

func (o *outgoing) add(p pending) {
	if o.conn != p.conn || o.batch.Full() {
		o.flush()
	}
	o.conn = p.conn
	o.batch.Add(p.to, true, func([]byte) []byte { return p.reply })
}

// flush lets what was put together leave.
func (o *outgoing) flush() {
	sent, bytes := o.batch.Len(), 0
	if sent == 0 {
		return
	}
	for i := range sent {
		bytes += len(o.batch.Data(i))
	}
	datagram.Of(o.conn).WriteBatch(o.batch, func(i int, err error) {
		sent, bytes = sent-1, bytes-len(o.batch.Data(i))
		if !errors.Is(err, net.ErrClosed) {
			o.Log.Warn("reply not sent", "to", o.batch.Peer(i), "error", err)
		}
	})
	o.Meter.Sent(sent, bytes)
}

// helper lets answers leave while the one who made them goes on.
type helper struct {
	full, free chan *outgoing
	done       chan struct{}
}

// helper starts one. The caller stops it.
func (s *Server) helper() helper {
	const spare = 2
	h := helper{full: make(chan *outgoing, spare), free: make(chan *outgoing, spare), done: make(chan struct{})}
	for range spare {
		h.free <- s.outgoing()
	}
	go func() {
		defer close(h.done)
		for o := range h.full {
			o.flush()
			h.free <- o
		}
	}()
	return h
}

// flush lets answers leave, at once if the helper is behind, and returns where the next ones go.
func (h helper) flush(o *outgoing) *outgoing {
	select {
	case next := <-h.free:
		h.full <- o
		return next
	default:
		o.flush()
		return o
	}
}

// stop returns when all has left.
func (h helper) stop() {
	close(h.full)
	<-h.done
}
