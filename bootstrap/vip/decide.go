package vip

import "time"

const (
	// TTL is the lease's. After a holder without power comes what is left of it, or all of
	// it and etcd's election (1 to 2 s) and its extension (1 s) where that was etcd's leader.
	// etcd gives no less than 2 s (1.5 times its election timeout of 1 s, rounded up).
	TTL = 4 * time.Second
	// margin is how long before the lease's end this process lets go.
	margin = 500 * time.Millisecond
	// kernelLag is how late the kernel may be with an address whose lifetime ends:
	// ADDRCONF_TIMER_FUZZ of net/ipv4/devinet.c and net/ipv6/addrconf.c, HZ/4.
	kernelLag = 250 * time.Millisecond
	// Beat is between two questions to etcd, and CallTime bounds one.
	Beat     = time.Second
	CallTime = time.Second
	// again is the pause after a question without an answer.
	again = 250 * time.Millisecond
	// patience is for how long an API server has to be ready, or not ready, to count so.
	patience = time.Second
	// rest is for how long a machine whose kernel refuses the address stays out.
	rest = 10 * time.Second
)

// Standing is where this control plane stands in the queue. The zero value is outside.
type Standing struct {
	// In: its key is there. First: and is the oldest.
	In, First bool
	// Others are how many other keys there are.
	Others int
	// Until is when the lease may end at the earliest, by this process's monotonic clock.
	Until time.Time
}

// View is all that a decision follows from.
type View struct {
	// Wanted: there is an address to keep, and this control plane may.
	Wanted bool
	// Ready: its API server has been ready for a while.
	Ready bool
	// Stopping: the process is about to end.
	Stopping bool
	// Holding: the kernel may have the address.
	Holding  bool
	Standing Standing
}

// Decision is what to do now: Drop first, and Leave only when that has worked.
type Decision struct {
	// Drop takes the address away, Hold puts it there or keeps it.
	Drop, Hold bool
	// Enter and Leave are about the queue.
	Enter, Leave bool
	// Why is a sentence for Drop.
	Why string
}

// Decide says what to do at a moment. The address is held by the first of the queue only,
// and before its lease can have ended only. An API server that is not ready gives it away
// when there is somebody to take it: otherwise nothing is gained.
func Decide(v View, now time.Time) Decision {
	s := v.Standing
	var d Decision
	var may bool
	switch {
	case v.Stopping:
		d.Why = "the agent stops"
	case !v.Wanted:
		d.Why = "cluster.yaml does not have it for this machine any more"
	case !s.In || !s.First:
		d.Why = "another control plane is first in etcd's queue"
	case !now.Before(s.Until.Add(-margin)):
		d.Why = "etcd has not renewed the lease in time"
	case !v.Ready && s.Others > 0:
		d.Why = "the API server is not ready, and another one is"
	default:
		may = v.Ready || v.Holding
		d.Why = "the API server is not ready"
	}
	d.Hold, d.Drop = may, v.Holding && !may
	if !d.Drop {
		d.Why = ""
	}
	out := v.Stopping || !v.Wanted || !v.Ready && !may
	d.Leave, d.Enter = s.In && out, !s.In && !out
	return d
}

// lifetime is what the kernel is given with the address; 0 when that is not worth it. It
// counts whole seconds, and may be late.
func lifetime(until, now time.Time) time.Duration {
	return max(0, until.Sub(now)-kernelLag).Truncate(time.Second)
}

// announcement returns when the next one is due after n of them. Three are 2 s apart (RFC
// 5227 section 1.1 has two, ANNOUNCE_INTERVAL 2 s; RFC 4861 section 7.2.6 up to three, a
// second apart at least). Neither asks for those that follow, one in ten seconds: frames
// get lost, and switches forget.
func announcement(n int) time.Duration {
	if n < 3 {
		return 2 * time.Second
	}
	return 10 * time.Second
}

// steady is a word that counts when it has been the same for a while. The zero value has
// heard nothing, which is no.
type steady struct {
	counts, said bool
	since        time.Time
}

func (s *steady) hear(said bool, now time.Time) bool {
	if said != s.said || s.since.IsZero() {
		s.said, s.since = said, now
	}
	if now.Sub(s.since) >= patience {
		s.counts = s.said
	}
	return s.counts
}
