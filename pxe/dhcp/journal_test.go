package dhcp

import (
	"encoding/json"
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
			return Lease{MAC: MAC{2, 0, 0, 0, 0, byte(r.IntN(12))}, Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(12))}),
				Until: noon.Add(time.Duration(r.IntN(1e6)) * time.Second), State: []State{Bound, Bound, Declined}[r.IntN(3)]}
		},
		Same: func(a, b Lease) bool {
			return a.MAC == b.MAC && a.Addr == b.Addr && a.State == b.State && a.Until.Equal(b.Until) && a.Machine == b.Machine
		},
		Rivals: func(a, b Lease) bool { return a.Addr == b.Addr },
	})
}

func reopen(t *testing.T, path string) []Lease {
	t.Helper()
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	got, err := j.Load()
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestJournalSurvives(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases")
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	a := Lease{MAC: node1, Addr: netip.MustParseAddr("10.0.0.11"), Machine: "node1", Until: noon.Add(time.Hour)}
	b := Lease{MAC: laptop, Addr: netip.MustParseAddr("10.0.0.100"), Until: noon.Add(2 * time.Hour)}
	moved := b
	moved.Addr, moved.Until = netip.MustParseAddr("10.0.0.102"), noon
	declined := Lease{MAC: laptop, Addr: netip.MustParseAddr("10.0.0.103"), Until: noon, State: Declined}
	for _, l := range [][]Lease{{a, b}, {moved}, {declined}} {
		if err := j.Append(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if diff := cmp.Diff(reopen(t, path), []Lease{a, b, moved, declined}, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("got (-), want (+):\n%s", diff)
		}
	}
}

func TestLinesAreAsTheLibraryWritesThem(t *testing.T) {
	t.Parallel()
	for _, l := range []Lease{
		{MAC: node1, Addr: netip.MustParseAddr("10.0.0.11"), Machine: "node1", Until: noon},
		{MAC: laptop, Addr: netip.MustParseAddr("255.0.0.1"), Machine: "a \"name\"\n<of> \xff", Until: noon.Add(time.Nanosecond)},
		{MAC: MAC{255, 254, 253, 0, 1, 2}, Addr: netip.MustParseAddr("0.0.0.0"), Until: noon.In(time.FixedZone("", 3600)), State: Declined},
		{Addr: netip.MustParseAddr("10.0.0.1"), Until: time.Time{}, State: Seen},
	} {
		want, err := json.Marshal(line{MAC: l.MAC.String(), Addr: l.Addr, Machine: l.Machine, Until: l.Until.UTC(), State: l.State})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := encodeLease(l); err != nil || string(got) != string(want) {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}

func TestDamagedLeasesAreRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases")
	const later = `{"mac":"02:00:00:00:00:02","addr":"10.0.0.2","until":"2026-11-21T12:00:00Z","from":99}` + "\n"
	for content, want := range map[string]string{
		"garbage\n" + later: ":1: invalid character",
		`{"mac":"02:00:00:00:00:01","addr":"fd00::1"}` + "\n" + later:        `:1: "02:00:00:00:00:01" with fd00::1 is not a card with its IPv4 address (to start without leases, move the file away; running machines renew theirs)`,
		`{"mac":"02:00:00:00:00:00:00:01","addr":"10.0.0.1"}` + "\n" + later: ":1: \"02:00:00:00:00:00:00:01\" with 10.0.0.1 is not a card",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenJournal(path); err == nil || !strings.HasPrefix(err.Error(), "reading leases: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", content, err, want)
		}
	}
}
