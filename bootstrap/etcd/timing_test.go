package etcd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// Where nothing is said of times, etcd's file says nothing of them either, and what is said is read
// again.
func TestTimesAreInTheFile(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for _, tc := range []struct {
		timing Timing
		want   string
	}{
		{Timing{}, ""},
		{Timing{Heartbeat: 200 * ms}, "heartbeat-interval: 200\n"},
		{Timing{Election: 5000 * ms}, "election-timeout: 5000\n"},
		{Timing{Heartbeat: 500 * ms, Election: 5000 * ms}, "election-timeout: 5000\nheartbeat-interval: 500\n"},
	} {
		m := first()
		m.Timing = tc.timing
		b, err := m.Config()
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "heartbeat") || strings.HasPrefix(line, "election") {
				got += line
			}
		}
		if got != tc.want {
			t.Errorf("%s: the file has %q, want %q", tc.timing, got, tc.want)
		}
		if read, err := ReadTiming(b); err != nil || read != tc.timing {
			t.Errorf("%s: read as %v, %v", tc.timing, read, err)
		}
	}
	if _, err := ReadTiming([]byte("{")); err == nil {
		t.Error("what is no file of etcd's was read")
	}
}

// What is etcd's own is the same whether it is said or not.
func TestTimesAreCompared(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for _, tc := range []struct {
		a, b Timing
		want bool
	}{
		{Timing{}, Timing{100 * ms, 1000 * ms}, true},
		{Timing{Election: 1000 * ms}, Timing{Heartbeat: 100 * ms}, true},
		{Timing{}, Timing{Heartbeat: 200 * ms}, false},
		{Timing{500 * ms, 5000 * ms}, Timing{500 * ms, 4000 * ms}, false},
	} {
		if got := tc.a.Equal(tc.b); got != tc.want || tc.b.Equal(tc.a) != got {
			t.Errorf("%s and %s: alike %v, want %v", tc.a, tc.b, got, tc.want)
		}
	}
	// embed is the etcd that this program has inside, of another version than that of nodes; a judge
	// asks that one.
	if c := embed.NewConfig(); time.Duration(c.TickMs)*ms != ownHeartbeat || time.Duration(c.ElectionMs)*ms != ownElection {
		t.Errorf("etcd's own are %d ms and %d ms", c.TickMs, c.ElectionMs)
	}
}

// etcd reads them, and refuses what butane/cluster refuses.
func TestEtcdTakesItsTimesFromTheFile(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for _, tc := range []struct {
		timing Timing
		want   string
	}{
		{Timing{10 * ms, 50 * ms}, ""},
		{Timing{500 * ms, 5000 * ms}, ""},
		{Timing{10_000 * ms, 50_000 * ms}, ""},
		{Timing{500 * ms, 2499 * ms}, "should be at least as 5 times"},
		{Timing{1000 * ms, 50_001 * ms}, "is too long"},
	} {
		m := first()
		m.Timing = tc.timing
		b, err := m.Config()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "etcd.yaml")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := embed.ConfigFromFile(path)
		switch {
		case tc.want != "":
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v, want that it %s", tc.timing, err, tc.want)
			}
		case err != nil:
			t.Errorf("%s: %v", tc.timing, err)
		case time.Duration(c.TickMs)*ms != tc.timing.Heartbeat || time.Duration(c.ElectionMs)*ms != tc.timing.Election:
			t.Errorf("%s: etcd reads %d ms and %d ms", tc.timing, c.TickMs, c.ElectionMs)
		}
	}
}
