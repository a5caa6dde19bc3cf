package tftp

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"time"

	"github.com/pin/tftp/v3/netascii"
)

// Operations (RFC 1350 section 5, RFC 2347).
const (
	opData  = 3
	opAck   = 4
	opError = 5
	opOAck  = 6
)

const (
	// tick is how often transfers are looked at that have come to a halt.
	tick = 100 * time.Millisecond
	// A packet without an answer is sent again after firstWait ticks, then each time
	// moreWait later, and retries times at most: a transfer ends when its client was
	// silent for 16 s. In lock-step every lost packet costs the whole first wait, so it is
	// short; a packet too many does no harm, since repeated acknowledgements are ignored.
	firstWait, moreWait = 5, 2
	retries             = 10
	// haltedAfter ticks without an answer a transfer has halted: its packet or the answer
	// was lost, or its client has gone. Others are answered within a few milliseconds.
	haltedAfter = 2
	// longest is how many ticks a transfer may take: 10 minutes, which no boot program
	// needs, and one more for so many bytes. A client that goes on very slowly must not
	// keep its place.
	longest = int(10 * time.Minute / tick)
	slowest = 4 << 10
)

// transfer is a file on its way to a client, block by block. It knows no socket and no
// clock.
type transfer struct {
	request Request
	client  netip.AddrPort
	name    string
	began   time.Time
	// found says that it is none of Config's Files.
	found bool

	file    io.Closer
	content io.Reader
	// size is that of the file, and sent how much was read of it, in bytes; blocks and
	// acked count what was read and what has arrived.
	size, sent    int64
	blocks, acked int64
	// oack answers the options; nil when there is none, or the client has it.
	oack []byte
	// block is the number of the packet that waits for its acknowledgement, and data what
	// is in it, as much as fits but for the last one.
	block uint16
	data  []byte
	// silent counts ticks since the packet was sent last, tries how often it was sent
	// again, age all ticks, of which there may be most.
	silent, tries, age, most int
	// answered: the client has acknowledged something.
	answered bool
}

func newTransfer(r Request, client netip.AddrPort, now time.Time) *transfer {
	return &transfer{request: r, client: client, name: r.File(), began: now, most: longest}
}

// open makes the first packet. A block has at most limit bytes. The file is closed by
// close, also after an error.
func (t *transfer) open(file io.ReadSeekCloser, limit int) error {
	t.file, t.content = file, file
	size, err := file.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	t.size = size
	t.most += int(size / slowest)
	if t.request.Mode == "netascii" {
		t.content = netascii.ToReader(file)
	}
	t.data = make([]byte, 0, t.request.BlockSize(limit))
	if t.oack = t.request.acknowledge(limit, size); t.oack != nil {
		return nil
	}
	return t.read()
}

// read goes on to the next block.
func (t *transfer) read() error {
	n, err := io.ReadFull(t.content, t.data[:cap(t.data)])
	t.block++
	t.blocks++
	t.data = t.data[:n]
	t.sent += int64(n)
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// close is for the end of a transfer.
func (t *transfer) close() {
	if t.file != nil {
		_ = t.file.Close() // it was only read
	}
}

// packet appends what the client has to acknowledge.
func (t *transfer) packet(buf []byte) []byte {
	if t.oack != nil {
		return append(buf, t.oack...)
	}
	return append(binary.BigEndian.AppendUint16(append(buf, 0, opData), t.block), t.data...)
}

// acknowledged takes an acknowledgement in. It says whether the next packet is to be
// sent, and whether all of the file has arrived.
func (t *transfer) acknowledged(block uint16) (next, whole bool, err error) {
	if block != t.block {
		return false, false, nil // of a packet that was repeated
	}
	if t.oack == nil {
		t.acked++
	}
	if t.oack == nil && len(t.data) < cap(t.data) {
		return false, true, nil
	}
	t.oack = nil
	t.silent, t.tries = 0, 0
	t.answered = true
	return true, false, t.read()
}

// stuck says that the client had begun to load, and has left a repeated packet without an
// answer. When it asks once more then, it has begun again: ROMs that were reset ask from
// the same port. A request that was only doubled on the way comes earlier.
func (t *transfer) stuck() bool { return t.answered && t.tries > 0 }

// halt is what is to be done about a transfer that does not go on.
type halt int

const (
	wait halt = iota
	repeat
	giveUp
)

// tick says what to do after another tick.
func (t *transfer) tick() halt {
	t.silent++
	t.age++
	switch {
	case t.tooSlow():
		return giveUp
	case t.silent < firstWait+moreWait*t.tries:
		return wait
	case t.tries == retries:
		return giveUp
	}
	t.silent = 0
	t.tries++
	return repeat
}

// tooSlow says that it takes longer than any program needs.
func (t *transfer) tooSlow() bool { return t.age > t.most }

// halted says that nothing is to be done for it now, since no answer comes.
func (t *transfer) halted() bool { return t.silent >= haltedAfter || t.tries > 0 }

// failure is an error packet.
func failure(code uint16, text string) []byte {
	return append(append(binary.BigEndian.AppendUint16([]byte{0, opError}, code), text...), 0)
}
