package cluster

import (
	"strconv"
	"strings"
	"time"
)

// leastEtcd35 is the first patch level of etcd 3.5 that kubeadm's preflight does not refuse
// (MinExternalEtcdVersion in cmd/kubeadm/app/constants of v1.34.4, v1.35.4 and v1.36.3).
const leastEtcd35 = 24

// What etcd does where nothing is said, and what it refuses (server/embed/config.go of v3.6.10 and
// v3.7.3: NewConfig, Validate, maxElectionMs).
const (
	etcdHeartbeat      = 100 * time.Millisecond
	etcdElection       = time.Second
	etcdLeastElection  = 5 // heartbeats
	etcdLongestElected = 50 * time.Second
	// etcdLeastHeartbeat is ours: members that beat more often than that do little else.
	etcdLeastHeartbeat = 10 * time.Millisecond
)

func (c *checker) etcd(raw rawEtcd, arch string) Etcd {
	out := Etcd{
		Component: c.component(rawComponent{raw.place, raw.Version, raw.Source}, arch, etcdDefault, `3\.(5|6|7)\.\d+`, "v3.6.5"),
		Heartbeat: raw.HeartbeatInterval.V, Election: raw.ElectionTimeout.V,
	}
	patch, is35 := strings.CutPrefix(out.Version, "v3.5.")
	if n, err := strconv.Atoi(patch); is35 && err == nil && n < leastEtcd35 {
		c.add(raw.Version.Pos, raw.Version.Path, "version: v3.6.5", "kubeadm refuses to start on etcd %s: it wants 3.5.%d or newer", out.Version, leastEtcd35)
	}
	c.etcdTimes(raw)
	return out
}

// etcdTimes finds what etcd would refuse to start with. What is not said counts as etcd has it, so
// that one key alone is held against the other's default.
func (c *checker) etcdTimes(raw rawEtcd) {
	beat, election := raw.HeartbeatInterval, raw.ElectionTimeout
	heartbeat, timeout := beat.or(etcdHeartbeat), election.or(etcdElection)
	whole := true
	for _, f := range []rawDuration{beat, election} {
		if f.Set && f.V%time.Millisecond != 0 {
			c.add(f.Pos, f.Path, "", "%s is no whole number of milliseconds, and etcd counts in those", f.V)
			whole = false
		}
	}
	switch {
	case !whole:
	case heartbeat < etcdLeastHeartbeat:
		c.add(beat.Pos, beat.Path, "heartbeatInterval: 100ms", "%s is less than the %s below which members do little but beat; it is to be about the round trip between them", heartbeat, etcdLeastHeartbeat)
	case timeout > etcdLongestElected:
		c.add(election.Pos, election.Path, "electionTimeout: 5s", "etcd refuses %s: it takes %s at most", timeout, etcdLongestElected)
	case timeout < etcdLeastElection*heartbeat:
		at, hint := election, "electionTimeout: "+(10*heartbeat).String()
		if !election.Set {
			at = beat
		}
		if 10*heartbeat > etcdLongestElected {
			hint = "heartbeatInterval: 500ms"
		}
		c.add(at.Pos, at.Path, hint, "etcd refuses an election timeout of %s with a heartbeat of %s: it wants %d heartbeats at least, and ten are good", timeout, heartbeat, etcdLeastElection)
	}
}
