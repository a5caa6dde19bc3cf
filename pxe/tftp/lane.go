package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/imagectl/imagectl/pxe/datagram"
)

// lane is a socket with the transfers that run on it. One goroutine runs it; its other
// methods are safe for concurrent use.
type lane struct {
	log *slog.Logger
	now func() time.Time
	// ended is told about each transfer that came to its end, with a nil error when the
	// client has the file.
	ended func(*transfer, error)
	// halt is told when transfers have halted, at every tick.
	halt func()

	mu        sync.Mutex
	socket    *socket
	transfers map[netip.AddrPort]*transfer
	// still is how many had halted at the last tick.
	still int
	// out is what leaves next.
	out     *datagram.Batch
	stopped bool
	// first has a token when a transfer has begun.
	first chan struct{}
}

// newLane has transfers with blocks of at most so many bytes.
func newLane(s *socket, block int, log *slog.Logger, now func() time.Time, ended func(*transfer, error), halt func()) *lane {
	return &lane{log: log, now: now, ended: ended, halt: halt, socket: s, transfers: map[netip.AddrPort]*transfer{},
		out: datagram.New(4 + block), first: make(chan struct{}, 1)}
}

// busy is how many transfers run here.
func (l *lane) busy() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.transfers)
}

// halted is how many transfers wait for an answer that does not come. It may be a tick old.
func (l *lane) halted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return min(l.still, len(l.transfers))
}

// begin sends the first packet of a transfer.
func (l *lane) begin(t *transfer) {
	l.mu.Lock()
	stopped := l.stopped
	if !stopped {
		l.transfers[t.client] = t
		l.send(t)
		l.flush()
	}
	l.mu.Unlock()
	if stopped {
		l.ended(t, errStopping)
		return
	}
	select {
	case l.first <- struct{}{}:
	default:
	}
}

// refuse answers a request that becomes no transfer.
func (l *lane) refuse(client netip.AddrPort, code uint16, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.say(client, failure(code, text))
	l.flush()
}

// send sends what a client has to acknowledge next, with the next flush.
func (l *lane) send(t *transfer) { l.put(t.client, t.packet) }

func (l *lane) say(client netip.AddrPort, packet []byte) {
	l.put(client, func(buf []byte) []byte { return append(buf, packet...) })
}

func (l *lane) put(client netip.AddrPort, packet func([]byte) []byte) {
	l.out.Add(client, l.socket.four, packet)
	if l.out.Full() {
		l.flush()
	}
}

// flush lets what is put together leave. What does not is sent again like what was lost
// on the way.
func (l *lane) flush() {
	if err := l.socket.send(l.out); err != nil {
		l.log.Debug("packets not sent", "error", err)
	}
}

// run takes in what clients answer, until ctx ends or the socket fails. It has a thread of its
// own: else, whenever it wakes, the runtime may let another thread go on with it, which has to
// be woken first.
func (l *lane) run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	in := datagram.New(512)
	looked := l.now()
	for l.runs(ctx) {
		if err := l.socket.receive(in); err != nil {
			return fmt.Errorf("reading TFTP acknowledgements: %w", err)
		}
		l.take(in)
		if now := l.now(); now.Sub(looked) >= tick {
			looked = now
			l.tick()
		}
	}
	return nil
}

// runs waits until a transfer runs; it is false when ctx has ended.
func (l *lane) runs(ctx context.Context) bool {
	for ctx.Err() == nil {
		if l.busy() > 0 {
			return true
		}
		select {
		case <-ctx.Done():
		case <-l.first:
		}
	}
	return false
}

// end is a transfer that came to its end.
type end struct {
	*transfer
	err error
}

// take takes packets in.
func (l *lane) take(in *datagram.Batch) {
	var ends []end
	l.mu.Lock()
	for i := range in.Len() {
		if e, ok := l.answered(in.Peer(i), in.Data(i)); ok {
			ends = append(ends, e)
		}
	}
	l.flush()
	l.mu.Unlock()
	for _, e := range ends {
		l.ended(e.transfer, e.err)
	}
}

// answered takes a packet in, and says whether its transfer ends with it.
func (l *lane) answered(client netip.AddrPort, packet []byte) (end, bool) {
	t := l.transfers[client]
	if t == nil || len(packet) < 4 {
		return end{}, false
	}
	number := binary.BigEndian.Uint16(packet[2:])
	switch binary.BigEndian.Uint16(packet) {
	case opAck:
		next, whole, err := t.acknowledged(number)
		switch {
		case err != nil:
			l.say(client, failure(0, errUnreadable.Error()))
		case next:
			l.send(t)
			return end{}, false
		case !whole:
			return end{}, false
		}
		delete(l.transfers, client)
		return end{t, err}, true
	case opError:
		text, _, _ := bytes.Cut(packet[4:], []byte{0})
		delete(l.transfers, client)
		return end{t, &brokenOff{number, printable(string(text))}}, true
	}
	return end{}, false
}

// tick repeats what was lost, and gives up transfers whose client has gone.
func (l *lane) tick() {
	var gone []end
	l.mu.Lock()
	l.still = 0
	for client, t := range l.transfers {
		switch t.tick() {
		case wait:
		case repeat:
			l.send(t)
		case giveUp:
			err := errSilent
			if t.tooSlow() {
				err = errSlow
			}
			l.say(client, failure(0, err.Error()))
			delete(l.transfers, client)
			gone = append(gone, end{t, err})
			continue
		}
		if t.halted() {
			l.still++
		}
	}
	still := l.still
	l.flush()
	l.mu.Unlock()
	for _, e := range gone {
		l.ended(e.transfer, e.err)
	}
	if still > 0 {
		l.halt()
	}
}

// abandon ends the transfer of a client that asks anew, unless it may still go on.
func (l *lane) abandon(client netip.AddrPort) bool {
	l.mu.Lock()
	t := l.transfers[client]
	if t == nil || !t.stuck() {
		l.mu.Unlock()
		return false
	}
	delete(l.transfers, client)
	l.mu.Unlock()
	l.ended(t, errAnew)
	return true
}

// stop breaks all transfers off; none begins any more.
func (l *lane) stop() {
	var all []*transfer
	l.mu.Lock()
	l.stopped = true
	for client, t := range l.transfers {
		l.say(client, failure(0, errStopping.Error()))
		delete(l.transfers, client)
		all = append(all, t)
	}
	l.flush()
	l.mu.Unlock()
	for _, t := range all {
		l.ended(t, errStopping)
	}
}

// errAnew ends a transfer whose client needs no more of it.
var errAnew = errors.New("the client asks anew")

// Clients are told these as they are.
var (
	errSilent     = errors.New("no answer")
	errSlow       = errors.New("it takes too long")
	errStopping   = errors.New("the server is stopping")
	errUnreadable = errors.New("the server cannot read the file")
)

// brokenOff is a client's error.
type brokenOff struct {
	code uint16
	text string
}

func (e *brokenOff) Error() string { return fmt.Sprintf("the client says %d: %s", e.code, e.text) }
