package leases

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/pxe/dhcp"
)

// etcd is rows in memory with etcd's rules.
type etcd struct {
	mu       sync.Mutex
	revision int64
	rows     map[string]store.Row
	news     []store.Row
	changed  chan struct{}
	// lose loses the answers of some writings that were made.
	lose *rand.Rand
}

func newEtcd() *etcd { return &etcd{rows: map[string]store.Row{}, changed: make(chan struct{})} }

var errLost = errors.New("the answer was lost")

func (e *etcd) Load(context.Context) ([]store.Row, int64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []store.Row
	for _, r := range e.rows {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b store.Row) int { return int(a.Revision - b.Revision) })
	return out, e.revision, nil
}

func (e *etcd) Swap(_ context.Context, rows []store.Row) (int64, []store.Row, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var other []store.Row
	for _, r := range rows {
		if now := e.rows[r.Key]; now.Revision != r.Revision {
			now.Key = r.Key
			other = append(other, now)
		}
	}
	if len(other) > 0 {
		return 0, other, nil
	}
	e.revision++
	for _, r := range rows {
		r.Revision = e.revision
		if e.rows[r.Key] = r; r.Value == nil {
			delete(e.rows, r.Key)
		}
		e.news = append(e.news, r)
	}
	close(e.changed)
	e.changed = make(chan struct{})
	if e.lose != nil && e.lose.IntN(4) == 0 {
		return 0, nil, errLost
	}
	return e.revision, nil, nil
}

func (e *etcd) Follow(ctx context.Context, revision int64, changed func([]store.Row), _ func() []string) error {
	for at := 0; ; {
		e.mu.Lock()
		news, more := e.news[at:], e.changed
		e.mu.Unlock()
		for _, r := range news {
			if r.Revision > revision {
				changed([]store.Row{r})
			}
		}
		at += len(news)
		if len(news) > 0 {
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, on Rows) *Leases[dhcp.Lease] {
	t.Helper()
	l, err := Open(t.Context(), on, func() error { return nil }, func() time.Time { return noon })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func lease(card byte, last byte, minutes int) dhcp.Lease {
	return dhcp.Lease{MAC: dhcp.MAC{2, 0, 0, 0, 0, card}, Addr: netip.AddrFrom4([4]byte{10, 0, 0, last}), Until: noon.Add(time.Duration(minutes) * time.Minute)}
}

func TestOneAddressGoesToOneMachine(t *testing.T) {
	t.Parallel()
	on := newEtcd()
	a, b := open(t, on), open(t, on)
	if err := a.Append([]dhcp.Lease{lease(1, 1, 10), lease(2, 2, -1), lease(3, 3, 10)}); err != nil {
		t.Fatal(err)
	}
	// b has not heard of any of this.
	err := b.Append([]dhcp.Lease{lease(9, 1, 10), lease(8, 2, 10), lease(3, 3, 20), lease(7, 4, 10)})
	var taken *dhcp.TakenError
	if !errors.As(err, &taken) || len(taken.Lost) != 1 || !taken.Lost[0] || len(taken.Now) != 1 || taken.Now[0] != lease(1, 1, 10) {
		t.Fatalf("got %+v, want that card 1 has the first address", err)
	}
	got, err := open(t, on).Load()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b dhcp.Lease) int { return a.Addr.Compare(b.Addr) })
	// One that had ended is another's now, and who renews elsewhere keeps its own.
	if want := []dhcp.Lease{lease(1, 1, 10), lease(8, 2, 10), lease(3, 3, 20), lease(7, 4, 10)}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// It has learnt now.
	if err := b.Append([]dhcp.Lease{lease(1, 1, 30)}); err != nil {
		t.Errorf("renewing at the other server: %v", err)
	}
}

func TestADeclinedAddressRests(t *testing.T) {
	t.Parallel()
	on := newEtcd()
	a, b := open(t, on), open(t, on)
	declined := lease(1, 1, 10)
	declined.State = dhcp.Declined
	if err := a.Append([]dhcp.Lease{declined}); err != nil {
		t.Fatal(err)
	}
	var taken *dhcp.TakenError
	if err := b.Append([]dhcp.Lease{lease(1, 1, 10)}); !errors.As(err, &taken) {
		t.Errorf("the card that declined it gets it again elsewhere: %v", err)
	}
}

// A card that is in two networks has an address in each: neither server may give one of
// them away because the card got the other.
func TestACardKeepsWhatItHasWhenItGetsAnotherAddress(t *testing.T) {
	t.Parallel()
	on := newEtcd()
	a := open(t, on)
	if err := a.Append([]dhcp.Lease{lease(1, 1, 10), lease(2, 2, -1)}); err != nil {
		t.Fatal(err)
	}
	b := open(t, on)
	if err := b.Append([]dhcp.Lease{lease(1, 4, 10), lease(2, 5, 10)}); err != nil {
		t.Fatal(err)
	}
	var taken *dhcp.TakenError
	if err := b.Append([]dhcp.Lease{lease(3, 1, 10)}); !errors.As(err, &taken) {
		t.Errorf("card 3 gets what card 1 has: %v", err)
	}
	if err := a.Append([]dhcp.Lease{lease(3, 2, 10)}); err != nil {
		t.Errorf("what has ended is not given: %v", err)
	}
	got, err := open(t, on).Load()
	if err != nil || len(got) != 4 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestTheReservationOfAMachineGoesToItsOtherCard(t *testing.T) {
	t.Parallel()
	on := newEtcd()
	first, second := lease(1, 1, 10), lease(2, 1, 10)
	first.Machine, second.Machine = "w1", "w1"
	if err := open(t, on).Append([]dhcp.Lease{first}); err != nil {
		t.Fatal(err)
	}
	if err := open(t, on).Append([]dhcp.Lease{second}); err != nil {
		t.Errorf("the card that netboots now: %v", err)
	}
}

// What another server wrote between a decision and its writing counts, also when this
// server has heard of it by then.
func TestAnAddressThatWentAwayBeforeItWasWrittenIsLost(t *testing.T) {
	t.Parallel()
	on := newEtcd()
	a, b := open(t, on), open(t, on)
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan struct{})
	var following sync.WaitGroup
	following.Go(func() {
		b.Follow(ctx, func(l []dhcp.Lease) { close(heard) })
	})
	if err := a.Append([]dhcp.Lease{lease(1, 1, 10)}); err != nil {
		t.Fatal(err)
	}
	<-heard
	var taken *dhcp.TakenError
	if err := b.Append([]dhcp.Lease{lease(2, 1, 10)}); !errors.As(err, &taken) {
		t.Errorf("got %v, want that the address is taken", err)
	}
	cancel()
	following.Wait()
}

func TestTheLastWordOfABatchCounts(t *testing.T) {
	t.Parallel()
	on := newEtcd()
	if err := open(t, on).Append([]dhcp.Lease{lease(1, 1, 10), lease(1, 1, 0), lease(2, 1, 20)}); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, on).Load()
	if err != nil || len(got) != 1 || got[0] != lease(2, 1, 20) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestAWritingWhoseAnswerWasLostIsDoneAgain(t *testing.T) {
	t.Parallel()
	on := newEtcd()
	on.lose = rand.New(rand.NewPCG(1, 2))
	l := open(t, on)
	lost := 0
	for i := range byte(100) {
		for {
			err := l.Append([]dhcp.Lease{lease(i, i, 10)})
			if err == nil {
				break
			}
			if !errors.Is(err, errLost) {
				t.Fatal(err)
			}
			lost++
		}
	}
	if lost == 0 {
		t.Error("no answer was lost")
	}
}

// Three servers give out a small pool to many machines at once, each by what it knows.
// Whoever was answered must be the only one who has its address.
func TestServersGiveNoAddressTwice(t *testing.T) {
	t.Parallel()
	const servers, machines, pool = 3, 60, 80
	on := newEtcd()
	first, last := netip.AddrFrom4([4]byte{10, 0, 0, 1}), netip.AddrFrom4([4]byte{10, 0, 0, pool})
	var mu sync.Mutex
	owner, conflicts := map[netip.Addr]string{}, 0
	ctx, cancel := context.WithCancel(t.Context())
	var following, asking sync.WaitGroup
	for s := range servers {
		l := open(t, on)
		table := dhcp.NewTable(nil)
		var tableMu, appending sync.Mutex
		learn := func(changed []dhcp.Lease) {
			tableMu.Lock()
			defer tableMu.Unlock()
			table.Learn(changed)
		}
		following.Go(func() {
			if err := l.Follow(ctx, learn); err != nil {
				t.Error(err)
			}
		})
		for m := range machines / servers {
			card := byte(s*machines/servers + m)
			asking.Go(func() {
				for {
					tableMu.Lock()
					// No shares: all of them run for the same addresses.
					want := lease(card, 0, 10)
					a, ok := table.Free(first, last, dhcp.Share{}, func(netip.Addr) bool { return false }, noon)
					want.Addr = a
					table.Learn([]dhcp.Lease{want}) // as a server does when it decides
					tableMu.Unlock()
					if !ok {
						t.Errorf("card %d finds no address", card)
						return
					}
					appending.Lock()
					err := l.Append([]dhcp.Lease{want})
					appending.Unlock()
					var taken *dhcp.TakenError
					if errors.As(err, &taken) {
						learn(taken.Now)
						mu.Lock()
						conflicts++
						mu.Unlock()
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if other := owner[a]; other != "" {
						t.Errorf("%s was given to %s and to card %d", a, other, card)
					}
					owner[a] = fmt.Sprint("card ", card)
					return
				}
			})
		}
	}
	asking.Wait()
	cancel()
	following.Wait()
	if len(owner) != machines {
		t.Errorf("%d addresses were given to %d machines", len(owner), machines)
	}
	t.Logf("%d times another server was first", conflicts)
}
