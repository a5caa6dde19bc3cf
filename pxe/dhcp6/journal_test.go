package dhcp6

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

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
	path := filepath.Join(t.TempDir(), "leases6")
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	a, b := lease("a", 1, "fd00::1", Bound), lease("a", 2, "fd00::2", Bound)
	moved, declined := lease("a", 2, "fd00::3", Bound), lease("b", 1, "fd00::4", Declined)
	for _, l := range []Lease{a, b, moved, declined} {
		if err := j.Append([]Lease{l}); err != nil {
			t.Fatal(err)
		}
	}
	j.Close()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(reopen(t, path), []Lease{a, moved, declined}, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("got (-), want (+):\n%s", diff)
	}
	// A crash may tear off any number of bytes: what was synced before stays.
	lines := strings.SplitAfter(string(content), "\n")
	whole := len(lines[0])
	for cut := range len(lines[1]) {
		if err := os.WriteFile(path, content[:whole+cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(reopen(t, path), []Lease{a}, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Fatalf("torn after %d bytes, got (-), want (+):\n%s", cut, diff)
		}
	}
}

func TestDamagedLeasesAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases6")
	for content, want := range map[string]string{
		"{\n": ":1: unexpected end of JSON input (to start without leases, move the file away",
		`{"client":"a","iaid":1,"addr":"10.0.0.1","until":"2026-11-21T12:00:00Z"}` + "\n": `:1: "a" with 10.0.0.1 is not a client with its IPv6 address`,
		`{"iaid":1,"addr":"fd00::1","until":"2026-11-21T12:00:00Z"}` + "\n":               `:1: "" with fd00::1 is not a client`,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenJournal(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", content, err, want)
		}
	}
}

func TestJournalStaysSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases6")
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	var many []Lease
	for i := range 100 {
		l := lease("a", 1, "fd00::1", Bound)
		l.Until = start.Add(time.Duration(i) * time.Second)
		many = append(many, l)
	}
	for range 42 {
		if err := j.Append(many); err != nil {
			t.Fatal(err)
		}
	}
	if j.lines > 200 {
		t.Errorf("the file has %d lines for one lease", j.lines)
	}
	if got := reopen(t, path); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

// A write that fails leaves the file as it was.
func TestFailedAppend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases6")
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append([]Lease{lease("a", 1, "fd00::1", Bound)}); err != nil {
		t.Fatal(err)
	}
	j.Close()
	if err := j.Append([]Lease{lease("a", 1, "fd00::2", Bound)}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if got := reopen(t, path); len(got) != 1 || got[0].Addr != netip.MustParseAddr("fd00::1") {
		t.Errorf("got %v", got)
	}
}
