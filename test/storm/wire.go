package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// faults are what the wire does to a frame: chances from 0 to 1.
type faults struct {
	loss, double, late float64
}

// latest is how long a frame that comes late is held back at most: longer than
// its successors need to overtake it.
const latest = 20 * time.Millisecond

// wire carries frames between the server's end and the machines' end, both tap
// devices: the kernel here has no netem, so faults are made in between, on all
// that passes, TCP and ARP included.
type wire struct {
	server, machines *os.File
	// heard takes the frames that the machines themselves read, and says whether the
	// kernel is not to see them.
	heard func(frame []byte) bool

	down, up pipe
}

// pipe is one direction.
type pipe struct {
	to   *os.File
	mu   sync.Mutex
	rand *rand.Rand
	faults
	frames, lost, doubled, delayed atomic.Int64
}

// newWire makes the devices rack and probe in this network namespace.
func newWire(heard func([]byte) bool) (*wire, error) {
	w := &wire{heard: heard}
	var err error
	if w.server, err = tap("rack"); err != nil {
		return nil, err
	}
	if w.machines, err = tap("probe"); err != nil {
		return nil, errors.Join(err, w.server.Close())
	}
	w.up.to, w.down.to = w.server, w.machines
	return w, nil
}

func tap(name string) (*os.File, error) {
	fail := func(err error) error { return fmt.Errorf("making the tap device %s: %w", name, err) }
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fail(err)
	}
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err != nil {
		return nil, errors.Join(fail(err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// set begins a storm: the same seed makes the same faults, as far as the frames
// come in the same order.
func (w *wire) set(f faults, seed uint64) {
	for i, p := range []*pipe{&w.up, &w.down} {
		p.mu.Lock()
		p.faults, p.rand = f, rand.New(rand.NewPCG(seed, uint64(i)))
		p.mu.Unlock()
		p.frames.Store(0)
		p.lost.Store(0)
		p.doubled.Store(0)
		p.delayed.Store(0)
	}
}

// run carries frames until the devices are closed.
func (w *wire) run() {
	var both sync.WaitGroup
	both.Go(func() { w.carry(w.machines, &w.up, nil) })
	both.Go(func() { w.carry(w.server, &w.down, w.heard) })
	both.Wait()
}

func (w *wire) carry(from *os.File, p *pipe, heard func([]byte) bool) {
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.pass(buf[:n], heard)
	}
}

// send puts a frame of a machine's own onto the wire. The frame is not kept.
func (w *wire) send(frame []byte) { w.up.pass(frame, nil) }

func (p *pipe) pass(frame []byte, heard func([]byte) bool) {
	deliver := func(f []byte) {
		if heard == nil || !heard(f) {
			// A device that is down or full loses frames, as a wire does.
			_, _ = p.to.Write(f)
		}
	}
	p.frames.Add(1)
	p.mu.Lock()
	lost, doubled, late := p.hit(p.loss), p.hit(p.double), p.hit(p.late)
	var wait time.Duration
	if late {
		wait = time.Duration(1 + p.rand.Int64N(int64(latest)))
	}
	p.mu.Unlock()
	if lost {
		p.lost.Add(1)
		return
	}
	if doubled {
		p.doubled.Add(1)
		deliver(frame)
	}
	if late {
		p.delayed.Add(1)
		kept := append([]byte(nil), frame...)
		time.AfterFunc(wait, func() { deliver(kept) })
		return
	}
	deliver(frame)
}

func (p *pipe) hit(chance float64) bool { return chance > 0 && p.rand.Float64() < chance }

func (w *wire) close() { _ = errors.Join(w.server.Close(), w.machines.Close()) }
