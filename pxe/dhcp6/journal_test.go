package dhcp6

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/imagectl/imagectl/pxe/journal"
	"github.com/imagectl/imagectl/pxe/journal/journaltest"
)

func TestNoLeaseIsLostWhereverThePowerGoes(t *testing.T) {
	t.Parallel()
	journaltest.PowerLoss(t, journaltest.Case[Lease]{
		Kind: leases(),
		Live: func() journal.Live[Lease] { return live{} },
		Random: func(r *rand.Rand) Lease {
			return Lease{Key: Key{string(rune('a' + r.IntN(4))), uint32(r.IntN(3))}, Addr: netip.AddrFrom16([16]byte{0xfd, 15: byte(r.IntN(12))}),
				Until: start.Add(time.Duration(r.IntN(1e6)) * time.Second), State: []State{Bound, Bound, Declined}[r.IntN(3)]}
		},
		Same: func(a, b Lease) bool {
			return a.Key == b.Key && a.Addr == b.Addr && a.State == b.State && a.Until.Equal(b.Until)
		},
		Rivals: func(a, b Lease) bool { return a.Addr == b.Addr },
	})
}

func lease(client string, iaid uint32, address string, state State) Lease {
	return Lease{Key: Key{client, iaid}, Addr: netip.MustParseAddr(address), Until: start, State: state}
}

func reopen(t *testing.T, path string) []Lease {
	t.Helper()
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	leases, err := j.Load()
	if err != nil {
		t.Fatal(err)
	}
	return leases
}

func TestLeasesSurvive(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases6")
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	a, b := lease("a", 1, "fd00::1", Bound), lease("a", 2, "fd00::2", Bound)
	moved, declined := lease("a", 2, "fd00::3", Bound), lease("b", 1, "fd00::4", Declined)
	before := lease("a", 1, "fd00::9", Declined) // by who has fd00::1 now
	for _, l := range []Lease{before, a, b, moved, declined} {
		if err := j.Append([]Lease{l}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if diff := cmp.Diff(reopen(t, path), []Lease{a, b, moved, declined, before}, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("got (-), want (+):\n%s", diff)
		}
	}
}

func TestDamagedLeasesAreRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases6")
	const later = `{"client":"b","iaid":1,"addr":"fd00::2","until":"2026-11-21T12:00:00Z","from":99}` + "\n"
	for content, want := range map[string]string{
		"{\n" + later: ":1: unexpected end of JSON input (to start without leases, move the file away",
		`{"client":"a","iaid":1,"addr":"10.0.0.1","until":"2026-11-21T12:00:00Z"}` + "\n" + later: `:1: "a" with 10.0.0.1 is not a client with its IPv6 address`,
		`{"iaid":1,"addr":"fd00::1","until":"2026-11-21T12:00:00Z"}` + "\n" + later:               `:1: "" with fd00::1 is not a client`,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenJournal(path); err == nil || !strings.HasPrefix(err.Error(), "reading DHCPv6 leases: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", content, err, want)
		}
	}
}
