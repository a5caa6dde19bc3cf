package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var errSilent = errors.New("no answer")

// world is an etcd and some machines, in the time of testing/synctest.
type world struct {
	mu       sync.Mutex
	random   *rand.Rand
	queue    []*entry
	machines []*machine
	// agents are all that there ever were.
	agents []*process
	over   chan struct{}
	log    []string
	began  time.Time
}

// entry is a key with its lease.
type entry struct {
	machine *machine
	system  int
	lease   int
	ends    time.Time
}

// machine is a kernel, an API server and an agent.
type machine struct {
	*world
	name string
	// ends is when the kernel forgets the address; the zero time when it has not got it.
	ends time.Time
	// ready is the API server, off the power; cut the network.
	ready, off, cut bool
	boots           int
	// agent is the newest; stopped is not nil while it is stopped.
	agent   *process
	stopped chan struct{}
}

// process is an agent: its Link, its Place and its Keeper.
type process struct {
	*machine
	killed bool
	stop   func()
	ended  chan struct{}
	lease  int
	keeper *Keeper
	system int
}

// step is what happens to a process at a system call: it is stopped, or dies.
func (p *process) step() {
	p.mu.Lock()
	gate := p.stopped
	killed := p.killed
	p.mu.Unlock()
	if gate != nil && !killed {
		select {
		case <-gate:
			p.step()
		case <-p.over:
		}
		return
	}
	if killed {
		<-p.over
	}
}

func (p *process) Hold(_ netip.Addr, _ []netip.Addr, life time.Duration) error {
	p.step()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killed {
		return errSilent
	}
	p.ends = time.Now().Add(life + time.Duration(p.random.Int64N(int64(kernelLag))))
	return nil
}

func (p *process) Drop([]netip.Addr) error {
	p.step()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.killed {
		p.ends = time.Time{}
	}
	return nil
}

func (p *process) Announce(netip.Addr, []netip.Addr) error {
	p.step()
	return nil
}

// call is a way to etcd and back.
func (p *process) call(ctx context.Context, do func() (Standing, error)) (Standing, error) {
	p.step()
	pause := func(up int64) error {
		p.mu.Lock()
		d := time.Duration(p.random.Int64N(up)) * time.Millisecond
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
	if err := pause(150); err != nil {
		return Standing{}, err
	}
	p.mu.Lock()
	if p.killed || p.cut || p.off {
		p.mu.Unlock()
		<-ctx.Done()
		return Standing{}, errSilent
	}
	p.expire()
	s, err := do()
	p.mu.Unlock()
	if err := pause(300); err != nil {
		return Standing{}, err // etcd has done it, and nobody heard
	}
	p.step()
	return s, err
}

// expire: etcd looks for leases that have ended twice a second.
func (w *world) expire() {
	now := time.Now()
	w.queue = slices.DeleteFunc(w.queue, func(e *entry) bool { return !now.Before(e.ends) })
}

func (p *process) Ask(ctx context.Context) (Standing, error) {
	p.step()
	sent := time.Now()
	return p.call(ctx, func() (Standing, error) { return p.stand(sent), nil })
}

func (p *process) stand(sent time.Time) Standing {
	s := Standing{Others: len(p.queue), Until: sent.Add(TTL)}
	for i, e := range p.queue {
		if e.lease == p.lease {
			s.In, s.First = true, i == 0
			s.Others--
			e.ends = time.Now().Add(TTL + time.Duration(p.random.Int64N(500))*time.Millisecond)
		}
	}
	return s
}

func (p *process) Enter(ctx context.Context, _ string) (Standing, error) {
	p.step()
	sent := time.Now()
	return p.call(ctx, func() (Standing, error) {
		for i, e := range p.queue {
			switch {
			case e.machine != p.machine || e.lease == p.lease:
			case e.system != p.system:
				return Standing{}, errors.New("another system")
			default:
				p.queue = slices.Delete(p.queue, i, i+1)
			}
			if e.machine == p.machine {
				break
			}
		}
		if !slices.ContainsFunc(p.queue, func(e *entry) bool { return e.lease == p.lease }) {
			p.lease = p.random.Int()
			p.queue = append(p.queue, &entry{machine: p.machine, system: p.system, lease: p.lease})
		}
		return p.stand(sent), nil
	})
}

func (p *process) Leave(ctx context.Context) error {
	_, err := p.call(ctx, func() (Standing, error) {
		p.queue = slices.DeleteFunc(p.queue, func(e *entry) bool { return e.lease == p.lease })
		p.lease = 0
		return Standing{}, nil
	})
	return err
}

func (p *process) Close() error { return nil }

// start starts an agent.
func (m *machine) start() {
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{machine: m, stop: cancel, ended: make(chan struct{}), system: m.boots}
	p.keeper = &Keeper{Log: slog.New(slog.DiscardHandler), Link: p, Place: p, Task: func() Task {
		p.step()
		m.mu.Lock()
		defer m.mu.Unlock()
		return Task{Machine: m.name, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.100")}, Ready: m.ready}
	}}
	m.mu.Lock()
	m.agent, m.agents = p, append(m.agents, p)
	m.mu.Unlock()
	go func() {
		defer close(p.ended)
		p.keeper.Run(ctx)
	}()
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%8.3fs ", time.Since(w.began).Seconds())+fmt.Sprintf(format, args...))
}

// kill ends an agent as the kernel would.
func (m *machine) kill() {
	m.mu.Lock()
	m.agent.killed = true
	m.mu.Unlock()
	m.agent.stop()
	m.wake()
}

// holders are the machines whose kernels have the address now.
func (w *world) holders() (names []string) {
	synctest.Wait() // who has just been woken lets go in no time
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.machines {
		if time.Now().Before(m.ends) {
			names = append(names, m.name)
		}
	}
	return names
}

func newWorld(seed uint64, n int) *world {
	w := &world{random: rand.New(rand.NewPCG(seed, 1)), over: make(chan struct{}), began: time.Now()}
	for i := range n {
		w.machines = append(w.machines, &machine{world: w, name: fmt.Sprintf("cp%d", i+1), ready: true})
	}
	for _, m := range w.machines {
		m.start()
	}
	return w
}

func (w *world) end() {
	for _, m := range w.machines {
		m.agent.stop()
	}
	close(w.over)
	for _, p := range w.agents {
		<-p.ended
	}
}

// watch looks at all kernels every 20 ms for a while, and returns how long nobody had the
// address.
func (w *world) watch(t *testing.T, d time.Duration) (gap time.Duration) {
	const tick = 20 * time.Millisecond
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(tick) {
		switch h := w.holders(); {
		case len(h) > 1:
			t.Fatalf("%v have the address at once:\n%s", h, strings.Join(w.log, "\n"))
		case len(h) == 0:
			gap += tick
		}
	}
	return gap
}

// change does one thing to a machine.
func (w *world) change(m *machine) {
	w.mu.Lock()
	roll := w.random.IntN(7)
	w.mu.Unlock()
	switch {
	case roll == 0 && m.stopped == nil:
		w.note("%s: the agent is stopped", m.name)
		w.mu.Lock()
		m.stopped = make(chan struct{})
		w.mu.Unlock()
	case roll == 1:
		w.note("%s: cut off: %v", m.name, !m.cut)
		w.mu.Lock()
		m.cut = !m.cut
		w.mu.Unlock()
	case roll == 2:
		w.note("%s: API server ready: %v", m.name, !m.ready)
		w.mu.Lock()
		m.ready = !m.ready
		w.mu.Unlock()
	case roll == 3:
		w.note("%s: the agent is killed", m.name)
		m.kill()
		time.Sleep(200 * time.Millisecond)
		m.start()
	case roll == 4:
		w.note("%s: power off and on", m.name)
		m.kill()
		w.mu.Lock()
		m.ends = time.Time{}
		m.boots++
		w.mu.Unlock()
		time.Sleep(time.Second)
		m.start()
	default:
		m.wake()
	}
}

// wake has a stopped agent go on.
func (m *machine) wake() {
	if m.stopped != nil {
		m.note("%s: the agent goes on", m.name)
		m.mu.Lock()
		close(m.stopped)
		m.stopped = nil
		m.mu.Unlock()
	}
}

// Whatever happens to machines, agents and the network: never do two kernels have the
// address, and when all is well again somebody has it.
func TestNeverTwoHaveTheAddress(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(seed, 3)
				defer w.end()
				w.watch(t, 5*time.Second)
				for range 40 {
					m := w.machines[w.random.IntN(3)]
					w.change(m)
					w.watch(t, time.Duration(w.random.IntN(5000))*time.Millisecond)
				}
				w.note("all is well")
				for _, m := range w.machines {
					m.wake()
					w.mu.Lock()
					m.cut, m.ready = false, true
					w.mu.Unlock()
				}
				w.watch(t, 8*time.Second)
				if gap := w.watch(t, 20*time.Second); gap > 0 {
					t.Errorf("for %v of the last 20 s nobody had it:\n%s", gap, strings.Join(w.log, "\n"))
				}
			})
		})
	}
}

// How long nobody has the address after one thing that happens to its holder.
func TestTheAddressMoves(t *testing.T) {
	for _, tc := range []struct {
		name string
		what func(*world, *machine)
		most time.Duration
	}{
		{"the API server is not ready", func(w *world, m *machine) { m.ready = false }, 4 * time.Second},
		{"no power", func(w *world, m *machine) { m.agent.killed, m.ends = true, time.Time{} }, 7 * time.Second},
		{"cut off", func(w *world, m *machine) { m.cut = true }, 4 * time.Second},
		{"the agent is stopped", func(w *world, m *machine) { m.stopped = make(chan struct{}) }, 4 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(1, 3)
				defer w.end()
				w.watch(t, 5*time.Second)
				first := w.holders()
				if len(first) != 1 {
					t.Fatalf("%v have it", first)
				}
				i := slices.IndexFunc(w.machines, func(m *machine) bool { return m.name == first[0] })
				w.mu.Lock()
				tc.what(w, w.machines[i])
				w.mu.Unlock()
				gap := w.watch(t, 20*time.Second)
				if now := w.holders(); len(now) != 1 || now[0] == first[0] || gap > tc.most {
					t.Errorf("from %v to %v, nobody had it for %v; want another one, within %v", first, now, gap, tc.most)
				}
				t.Logf("nobody had it for %v", gap)
			})
		})
	}
}

// Kept by a machine whose API server is not ready, when there is no other one, and handed
// over in order by one that stops.
func TestTheLastOneKeepsItAndAnOrderlyEndHandsItOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2, 2)
		defer w.end()
		w.watch(t, 5*time.Second)
		before := w.holders()
		for _, m := range w.machines {
			if !slices.Contains(before, m.name) {
				w.mu.Lock()
				m.ready = false
				w.mu.Unlock()
			}
		}
		w.watch(t, 5*time.Second) // it leaves the queue
		w.mu.Lock()
		for _, m := range w.machines {
			m.ready = false
		}
		w.mu.Unlock()
		if gap := w.watch(t, 30*time.Second); gap > 0 {
			t.Errorf("with no API server ready nobody had it for %v", gap)
		}
		w.mu.Lock()
		for _, m := range w.machines {
			m.ready = true
		}
		w.mu.Unlock()
		w.watch(t, 5*time.Second)
		holder := w.machines[0]
		if h := w.holders(); len(h) != 1 {
			t.Fatalf("before %v, now %v", before, h)
		} else if h[0] != holder.name {
			holder = w.machines[1]
		}
		holder.agent.stop()
		if gap := w.watch(t, 5*time.Second); gap > 2500*time.Millisecond {
			t.Errorf("after an orderly end nobody had it for %v", gap)
		}
		if h := w.holders(); len(h) != 1 || h[0] == holder.name || len(holder.agent.keeper.Holding()) != 0 {
			t.Errorf("%v have it after %s ended", h, holder.name)
		}
	})
}
