package leases

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/pxe/dhcp6"
)

func open6(t *testing.T, on Rows) *Leases[dhcp6.Lease] {
	t.Helper()
	l, err := Open6(t.Context(), on, func() error { return nil }, func() time.Time { return noon })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func lease6(client string, iaid uint32, last byte, minutes int) dhcp6.Lease {
	a := netip.MustParseAddr("fd00::").As16()
	a[15] = last
	return dhcp6.Lease{Key: dhcp6.Key{Client: client, IAID: iaid}, Addr: netip.AddrFrom16(a), Until: noon.Add(time.Duration(minutes) * time.Minute)}
}

func TestOneIPv6AddressGoesToOneMachine(t *testing.T) {
	t.Parallel()
	on := newEtcd()
	a, b := open6(t, on), open6(t, on)
	if err := a.Append([]dhcp6.Lease{lease6("c1", 1, 1, 10), lease6("c2", 1, 2, -1), lease6("c3", 1, 3, 10), lease6("c4", 1, 4, 10)}); err != nil {
		t.Fatal(err)
	}
	// b has not heard of any of this.
	moved := lease6("c4", 1, 5, 10)
	err := b.Append([]dhcp6.Lease{lease6("c9", 1, 1, 10), lease6("c8", 1, 2, 10), lease6("c3", 2, 3, 20)})
	var taken *dhcp6.TakenError
	if !errors.As(err, &taken) || len(taken.Lost) != 1 || !taken.Lost[0] || len(taken.Now) != 1 || taken.Now[0] != lease6("c1", 1, 1, 10) {
		t.Fatalf("got %+v, want that c1 has the first address", err)
	}
	if err := open6(t, on).Append([]dhcp6.Lease{moved}); err != nil {
		t.Fatal(err)
	}
	got, err := open6(t, on).Load()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b dhcp6.Lease) int { return a.Addr.Compare(b.Addr) })
	// One that had ended is another's, a client's own goes to its new association, and
	// one that gets a second address keeps the first.
	want := []dhcp6.Lease{lease6("c1", 1, 1, 10), lease6("c8", 1, 2, 10), lease6("c3", 2, 3, 20), lease6("c4", 1, 4, 10), moved}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestADeclinedIPv6AddressRests(t *testing.T) {
	t.Parallel()
	on := newEtcd()
	declined := lease6("c1", 1, 1, 10)
	declined.State = dhcp6.Declined
	if err := open6(t, on).Append([]dhcp6.Lease{declined}); err != nil {
		t.Fatal(err)
	}
	var taken *dhcp6.TakenError
	if err := open6(t, on).Append([]dhcp6.Lease{lease6("c1", 1, 1, 10)}); !errors.As(err, &taken) {
		t.Errorf("the client that declined it gets it again elsewhere: %v", err)
	}
}

func TestRowsThatAreNoLeasesStopTheServer(t *testing.T) {
	t.Parallel()
	for _, row := range []store.Row{
		{Key: "fd00::1", Value: []byte(`{"client":"","until":"2026-01-01T00:00:00Z"}`)},
		{Key: "10.0.0.1", Value: []byte(`{"client":"c","until":"2026-01-01T00:00:00Z"}`)},
		{Key: "fd00::1", Value: []byte(`{`)},
		{Key: "nowhere", Value: []byte(`{"client":"c","until":"2026-01-01T00:00:00Z"}`)},
	} {
		on := newEtcd()
		if _, _, err := on.Swap(context.Background(), []store.Row{row}); err != nil {
			t.Fatal(err)
		}
		if _, err := Open6(t.Context(), on, nil, time.Now); err == nil {
			t.Errorf("%s: %s was believed", row.Key, row.Value)
		}
	}
}
