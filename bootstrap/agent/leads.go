package agent

import (
	"slices"
	"time"
)

const (
	leadsWindow = time.Hour
	// leadsMost is how many leaders within leadsWindow are no news: one for each member that is
	// started anew, which five take, and one that died.
	leadsMost = 6
)

// leads are the leaders of etcd that this node's member has seen come. The zero value is none; it
// is not safe for concurrent use.
type leads struct {
	looks bool
	// count is what etcd said last, which it counts from its start.
	count uint64
	came  []leadCame
}

type leadCame struct {
	at time.Time
	n  uint64
}

// looked takes what etcd counts. Of an etcd that has started anew in between, nothing counts: its
// first leader may be the one of before.
func (l *leads) looked(now time.Time, count uint64) {
	if l.looks && count > l.count {
		l.came = append(l.came, leadCame{now, count - l.count})
	}
	l.looks, l.count = true, count
	l.came = slices.DeleteFunc(l.came, func(c leadCame) bool { return now.Sub(c.at).Abs() >= leadsWindow })
}

// tooMany is how many came within the last hour, where that is too often; 0 where it is not.
func (l *leads) tooMany(now time.Time) uint32 {
	var n uint64
	for _, c := range l.came {
		if now.Sub(c.at).Abs() < leadsWindow {
			n += c.n
		}
	}
	if n <= leadsMost {
		return 0
	}
	return uint32(n)
}
