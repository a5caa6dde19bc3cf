package etcd

import (
	"math"
	"testing"
	"time"
)

func TestTend(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	quota := int64(QuotaBytes)
	member := func(id uint64, name string, size, used int64, alarms ...Alarm) Peer {
		p := voter(id, name, true)
		p.Follows, p.Alarms, p.Storage = true, alarms, Storage{size, used, quota}
		return p
	}
	full := Alarm{NoSpace, 2}
	small, holes := member(2, "cp2", 90*mib, 10*mib), member(1, "cp1", 400*mib, 100*mib)
	silent := member(2, "cp2", 90*mib, 10*mib)
	silent.Follows = false
	for _, tc := range []struct {
		name    string
		tending Tending
		members []Peer
		want    Decision
	}{
		{"small", Tending{}, []Peer{member(1, "cp1", 99*mib, mib), small}, Decision{DoNothing, 1, "1 MiB of 99 MiB are in use, and it may grow to 8192 MiB"}},
		{"large and half in use", Tending{}, []Peer{member(1, "cp1", 400*mib, 200*mib), small}, Decision{DoNothing, 1, "200 MiB of 400 MiB are in use, and it may grow to 8192 MiB"}},
		{"large with holes", Tending{}, []Peer{holes, small}, Decision{DoDefragment, 1, "100 MiB of 400 MiB are in use"}},
		{"and done", Tending{Defragmented: true}, []Peer{holes, small}, Decision{DoNothing, 1, "100 MiB of 400 MiB are in use, and it may grow to 8192 MiB"}},
		{"asked for", Tending{Asked: true}, []Peer{member(1, "cp1", 99*mib, mib), small}, Decision{DoDefragment, 1, "an operator asked for it; 1 MiB of 99 MiB are in use"}},
		{"asked for and done", Tending{Asked: true, Defragmented: true}, []Peer{member(1, "cp1", mib, mib), small}, Decision{DoNothing, 1, "1 MiB of 1 MiB are in use, and it may grow to 8192 MiB"}},
		{"another is not well", Tending{Asked: true}, []Peer{holes, silent}, Decision{DoWait, 1, "cp2 (2) is not well, and a member that is tended answers nobody meanwhile"}},
		{"another joins", Tending{}, []Peer{holes, learner(small)}, Decision{DoWait, 1, "cp2 (2) is being added; one thing at a time"}},
		{"it is a learner", Tending{}, []Peer{learner(holes), small}, Decision{DoWait, 1, "this machine's etcd member has no vote"}},
		{"it is none", Tending{}, []Peer{small}, Decision{DoWait, 1, "this machine's etcd member has no vote"}},
		{"corrupt", Tending{}, []Peer{member(1, "cp1", 400*mib, 100*mib, Alarm{Corrupt, 2}), small}, Decision{DoWait, 1, "etcd has raised CORRUPT for cp2 (2): nothing is done before a person has looked"}},
		{"full", Tending{}, []Peer{member(1, "cp1", quota, quota, full), small}, Decision{DoCompact, 1, "etcd is full: 8192 MiB of 8192 MiB"}},
		{"compacted", Tending{Compacted: true}, []Peer{member(1, "cp1", quota, 5000*mib, full), small}, Decision{DoDefragment, 1, "etcd is full: 8192 MiB of 8192 MiB, and compacted"}},
		{"in vain", Tending{Compacted: true, Defragmented: true}, []Peer{member(1, "cp1", quota, 7000*mib, full), small},
			Decision{DoNothing, 1, "there is no room to be made: 7000 MiB of 8192 MiB are in use; delete objects that nobody needs"}},
		{"all have room", Tending{Compacted: true, Defragmented: true}, []Peer{member(1, "cp1", 5000*mib, 5000*mib, full), small}, Decision{DoDisarm, 1, "every member has room again"}},
		{"another has none yet", Tending{Compacted: true, Defragmented: true}, []Peer{member(1, "cp1", 5000*mib, 5000*mib, full), member(2, "cp2", quota, 5000*mib)},
			Decision{DoNothing, 1, "5000 MiB of 5000 MiB are in use, and it may grow to 8192 MiB"}},
		{"all had room when it began", Tending{}, []Peer{member(1, "cp1", 5000*mib, 5000*mib, full), small}, Decision{DoDisarm, 1, "every member has room again"}},
	} {
		if got := Tend(1, tc.tending, tc.members); got != tc.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}

func TestP99(t *testing.T) {
	t.Parallel()
	// etcd's own bounds (ExponentialBuckets(0.001, 2, 14)), the first few.
	bounds := []float64{0.001, 0.002, 0.004, 0.008, 0.016, 0.032, math.Inf(1)}
	counts := func(n ...uint64) []Bucket {
		var out []Bucket
		for i, c := range n {
			out = append(out, Bucket{bounds[i], c})
		}
		return out
	}
	for _, tc := range []struct {
		name          string
		before, after []Bucket
		want          time.Duration
	}{
		{"nothing", nil, nil, 0},
		{"too few", nil, counts(99, 99, 99, 99, 99, 99, 99), 0},
		{"all fast", nil, counts(1000, 1000, 1000, 1000, 1000, 1000, 1000), 990 * time.Microsecond},
		{"one of a hundred is slow", nil, counts(0, 900, 990, 990, 1000, 1000, 1000), 4 * time.Millisecond},
		{"two of a hundred are", nil, counts(0, 900, 980, 980, 1000, 1000, 1000), 12 * time.Millisecond},
		{"since the last look only", counts(0, 0, 0, 0, 0, 5000, 5000), counts(1000, 1000, 1000, 1000, 1000, 6000, 6000), 990 * time.Microsecond},
		{"beyond the last bound", nil, counts(0, 0, 0, 0, 0, 0, 1000), 32 * time.Millisecond},
		{"started anew", counts(0, 0, 0, 0, 0, 5000, 5000), counts(1000, 1000, 1000, 1000, 1000, 1000, 1000), 0},
	} {
		if got := P99(tc.before, tc.after); (got - tc.want).Abs() > time.Microsecond {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestAlarmsIn(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Alarm{
		"memberID:9372538179322589801 alarm:NOSPACE ":                {NoSpace, 9372538179322589801},
		"memberID:1  alarm:CORRUPT":                                  {Corrupt, 1},
		"etcdserver: no leader":                                      {},
		"memberID:99999999999999999999999999999999999 alarm:NOSPACE": {},
	} {
		var got Alarm
		if all := alarmsIn([]string{in}); len(all) > 0 {
			got = all[0]
		}
		if got != want {
			t.Errorf("%q: %+v, want %+v", in, got, want)
		}
	}
}
