package vip

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Task is what a Keeper is to do. The zero value is nothing.
type Task struct {
	// Machine is its name in the queue.
	Machine string
	// Addresses are kept together, by whoever is first.
	Addresses []netip.Addr
	// Node is the machine's own address, which says on which link they belong.
	Node netip.Addr
	// Ready: the machine's API server takes requests.
	Ready bool
}

// Link is the kernel's side; Kernel is one.
type Link interface {
	// Hold puts addresses on the link that has node, or keeps them there, for a lifetime
	// in whole seconds from now.
	Hold(node netip.Addr, addresses []netip.Addr, life time.Duration) error
	// Drop takes them away from wherever they are. That they are nowhere is no error.
	Drop(addresses []netip.Addr) error
	// Announce tells everybody on that link where they are.
	Announce(node netip.Addr, addresses []netip.Addr) error
}

// Place is a place in the queue; Queue is one. It is used by one goroutine at a time, and
// calls end with ctx.
type Place interface {
	// Ask renews the lease and says where this control plane stands.
	Ask(ctx context.Context) (Standing, error)
	// Enter asks for a place at the end, by the machine's name. Whoever calls it has not
	// got the address.
	Enter(ctx context.Context, name string) (Standing, error)
	// Leave gives the place up, if there is one, and with it the lease.
	Leave(ctx context.Context) error
	// Close ends connections. What was not left ends with its lease.
	Close() error
}

// Keeper keeps the address while it is this control plane's. All fields but Changed are
// needed.
type Keeper struct {
	Log   *slog.Logger
	Link  Link
	Place Place
	// Task is asked at every turn; it must not block.
	Task func() Task
	// Changed is called when Holding has changed; it must not block.
	Changed func()

	mu      sync.Mutex
	holding []netip.Addr

	// The rest is Run's.
	task     Task
	ready    steady
	standing Standing
	// asks: a question is on its way, leaving: to give the place up; answers has what came
	// of it.
	asks, leaving bool
	answers       chan answer
	nextAsk       time.Time
	// fails are questions in a row without an answer.
	fails int
	// cautious: a predecessor of this process may have left the address in the kernel.
	cautious bool
	// outUntil is when a machine whose kernel refused the address may try again.
	outUntil time.Time
	// announced is how often it was since it came, announce when it is next.
	announced int
	announce  time.Time
	// complaint is what was complained of last.
	complaint string
}

type answer struct {
	standing Standing
	err      error
}

// Holding are the addresses that this control plane has now. It may be called at any
// time.
func (k *Keeper) Holding() []netip.Addr {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.holding)
}

// Run works until ctx ends; then the address is taken away, and the place given up.
func (k *Keeper) Run(ctx context.Context) {
	k.answers, k.cautious = make(chan answer, 1), true
	for {
		now := time.Now()
		k.look()
		d := k.decide(ctx.Err() != nil, now)
		k.act(d, now)
		if ctx.Err() != nil {
			k.end()
			return
		}
		k.ask(ctx, d, now)
		t := time.NewTimer(k.pause(time.Now()))
		select {
		case <-ctx.Done():
		case a := <-k.answers:
			k.hear(a, time.Now())
		case <-t.C:
		}
		t.Stop()
	}
}

// look takes in what is to be done. What is no more to be kept is dropped; so is, at
// first, what a predecessor may have left.
func (k *Keeper) look() {
	former := k.task.Addresses
	k.task = k.Task()
	gone := slices.DeleteFunc(slices.Clone(former), func(a netip.Addr) bool { return slices.Contains(k.task.Addresses, a) })
	if k.cautious {
		gone = append(gone, k.task.Addresses...)
	}
	if len(gone) == 0 {
		return
	}
	if err := k.Link.Drop(gone); err != nil {
		k.complain("taking away an address of the API that is not this machine's", err)
		return
	}
	k.cautious = false
	k.set(slices.DeleteFunc(k.Holding(), func(a netip.Addr) bool { return slices.Contains(gone, a) }))
}

func (k *Keeper) decide(stopping bool, now time.Time) Decision {
	return Decide(View{
		Wanted: len(k.task.Addresses) > 0 && !k.cautious && !now.Before(k.outUntil),
		Ready:  k.ready.hear(k.task.Ready, now), Stopping: stopping,
		Holding: len(k.Holding()) > 0, Standing: k.standing,
	}, now)
}

func (k *Keeper) act(d Decision, now time.Time) {
	switch {
	case d.Drop:
		addresses := k.Holding()
		if err := k.Link.Drop(addresses); err != nil {
			// The kernel does it, before the lease can have ended.
			k.complain("taking the API's address away", err)
			return
		}
		k.Log.Info("the API's address is not here any more", "addresses", addresses, "because", d.Why)
		k.set(nil)
	case d.Hold && len(k.Holding()) > 0 && !now.Before(k.announce):
		if err := k.Link.Announce(k.task.Node, k.task.Addresses); err != nil {
			k.complain("announcing the API's address", err)
		}
		k.announced++
		k.announce = now.Add(announcement(k.announced))
	}
}

// hold puts the address into the kernel, for as long as the lease is good.
func (k *Keeper) hold(now time.Time) {
	life := lifetime(k.standing.Until, now)
	if life <= 0 {
		return
	}
	err := k.Link.Hold(k.task.Node, k.task.Addresses, life)
	// Stopped in between, this process gave it to the kernel too late.
	if late := !time.Now().Before(k.standing.Until.Add(-margin)); err != nil || late {
		if gone := k.Link.Drop(k.task.Addresses); gone != nil {
			k.complain("taking the API's address away", gone)
		}
		k.set(nil)
		if err != nil {
			k.complain("taking the API's address", err)
			k.outUntil = now.Add(rest)
		}
		return
	}
	if len(k.Holding()) == 0 {
		k.Log.Info("the API's address is here", "addresses", k.task.Addresses)
		k.announced, k.announce = 0, now
	}
	k.set(k.task.Addresses)
}

// ask sends the next question on its way, when it is time for one. Nothing is given up, or
// asked for anew, while the kernel may have the address.
func (k *Keeper) ask(ctx context.Context, d Decision, now time.Time) {
	without := len(k.Holding()) == 0
	call := k.Place.Ask
	switch {
	case k.asks:
		return
	case d.Leave && without:
		// At once: somebody waits.
		call = func(ctx context.Context) (Standing, error) { return Standing{}, k.Place.Leave(ctx) }
		k.standing = Standing{}
	case now.Before(k.nextAsk):
		return
	case d.Enter && without:
		name := k.task.Machine
		call = func(ctx context.Context) (Standing, error) { return k.Place.Enter(ctx, name) }
	case !k.standing.In:
		return
	}
	k.asks, k.leaving = true, d.Leave && without
	go func() {
		ctx, cancel := context.WithTimeout(ctx, CallTime)
		defer cancel()
		s, err := call(ctx)
		k.answers <- answer{s, err}
	}()
}

// hear takes an answer in. Without one, what is held stands in Until.
func (k *Keeper) hear(a answer, now time.Time) {
	k.asks, k.nextAsk = false, now.Add(Beat)
	if a.err != nil {
		k.nextAsk = now.Add(again)
		if k.fails++; k.fails > 1 {
			k.complain("asking etcd who has the API's address", a.err)
		}
		return
	}
	k.fails, k.complaint = 0, ""
	if k.leaving {
		return
	}
	k.standing = a.standing
	if k.decide(false, now).Hold {
		k.hold(now)
	}
}

// end gives the place up, so that another one need not wait for the lease's end.
func (k *Keeper) end() {
	if k.asks {
		<-k.answers // its context has ended
	}
	ctx, cancel := context.WithTimeout(context.Background(), CallTime)
	defer cancel()
	if err := k.Place.Leave(ctx); err != nil {
		k.Log.Warn("giving the API's address to another control plane failed: it comes with the lease's end", "err", err)
	}
	if err := k.Place.Close(); err != nil {
		k.Log.Debug("closing the connection to etcd failed", "err", err)
	}
}

// pause is how long nothing can become due.
func (k *Keeper) pause(now time.Time) time.Duration {
	next := now.Add(Beat / 2) // readiness is looked at
	if !k.asks && k.nextAsk.After(now) && k.nextAsk.Before(next) {
		next = k.nextAsk
	}
	if len(k.Holding()) > 0 {
		for _, t := range []time.Time{k.standing.Until.Add(-margin), k.announce} {
			if t.Before(next) {
				next = t
			}
		}
	}
	return max(next.Sub(now), time.Millisecond)
}

func (k *Keeper) set(holding []netip.Addr) {
	k.mu.Lock()
	same := slices.Equal(k.holding, holding)
	k.holding = slices.Clone(holding)
	k.mu.Unlock()
	if !same && k.Changed != nil {
		k.Changed()
	}
}

// complain says a thing once, not at every turn.
func (k *Keeper) complain(what string, err error) {
	if text := what + ": " + err.Error(); text != k.complaint {
		k.complaint = text
		k.Log.Warn(what+" failed", "err", err)
	}
}
