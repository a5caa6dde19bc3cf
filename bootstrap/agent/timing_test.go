package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
)

// A member takes other times when it is its turn, by one start; until then its file stays as it is,
// so that it says what the member runs with.
func TestAMemberTakesOtherTimesInItsTurn(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	c := newCALab(t)
	n := c.node1()
	once(n, c.run)
	before := c.read(etcd.ConfigPath)
	stale := func(when string, want bool) {
		t.Helper()
		if got := n.observe(t.Context(), c.run, outcome{}).etcd.GetTimingStale(); got != want {
			t.Errorf("%s: other times %v, want %v", when, got, want)
		}
	}
	stale("as it was", false)
	if out := once(n, c.run); !out.done || len(out.changed) > 0 {
		t.Fatalf("as it was: %s", states(out))
	}

	c.run.Etcd.HeartbeatMs, c.run.Etcd.ElectionMs = 500, 5000
	if out := once(n, c.run); !out.done || len(out.changed) > 0 || c.read(etcd.ConfigPath) != before || c.starts+c.kills > 0 {
		t.Errorf("before its turn: %s; etcd was started %d times", states(out), c.starts)
	}
	stale("before its turn", true)

	c.run.Etcd.Restart = true
	c.database.peers[1].Follows = false
	if out := once(n, c.run); detailOf(out, "etcd-restarted") != "cp2 is not well, and a member that is started anew answers nobody meanwhile" || c.starts+c.kills > 0 {
		t.Errorf("another is not well: %s; etcd was started %d times", states(out), c.starts)
	}
	c.database.peers[1].Follows = true
	if out := once(n, c.run); !out.done || !slices.Equal(out.changed, []string{"etcd-restarted"}) || c.starts != 1 || c.kills != 1 {
		t.Errorf("its turn: %s; etcd was started %d times", states(out), c.starts)
	}
	if want := (etcd.Timing{Heartbeat: 500 * ms, Election: 5000 * ms}); c.timing != want {
		t.Errorf("it runs with %s, want %s", c.timing, want)
	}
	stale("with other times", false)
	if out := once(n, c.run); !out.done || len(out.changed) > 0 || c.starts != 1 {
		t.Errorf("with other times: %s; etcd was started %d times", states(out), c.starts)
	}

	// Back to etcd's own; and etcd's own, written out, is no change.
	c.run.Etcd.HeartbeatMs, c.run.Etcd.ElectionMs = 0, 0
	if out := once(n, c.run); !out.done || c.starts != 2 || c.read(etcd.ConfigPath) != before {
		t.Errorf("back: %s; etcd was started %d times, its file is\n%s", states(out), c.starts, c.read(etcd.ConfigPath))
	}
	c.run.Etcd.HeartbeatMs, c.run.Etcd.ElectionMs = 100, 1000
	stale("etcd's own, written out", false)
	if out := once(n, c.run); !out.done || c.starts != 2 {
		t.Errorf("etcd's own, written out: %s; etcd was started %d times", states(out), c.starts)
	}

	// A file that nobody can read is written anew, as ever.
	c.put(etcd.ConfigPath, "{")
	if out := once(n, c.run); !out.done || !slices.Equal(out.changed, []string{"etcd-configuration"}) {
		t.Errorf("a broken file: %s", states(out))
	}
}

// A member that sees no leader asks nobody: there may be none before its times are others.
func TestAMemberWithoutALeaderTakesOtherTimes(t *testing.T) {
	t.Parallel()
	c := newCALab(t)
	n := c.node1()
	once(n, c.run)
	c.leaderless = true
	c.database.peers[1].Follows = false
	// Its steps stop before Kubernetes, and the last ones are done all the same.
	last := func() {
		runSteps(t.Context(), n.Log, n.last(c.run), nil, false, func([]*api.StepStatus) {})
	}
	c.run.Etcd.HeartbeatMs, c.run.Etcd.ElectionMs, c.run.Etcd.Restart = 500, 5000, true
	last()
	if c.starts != 1 || c.timing.Election != 5*time.Second || len(c.database.did) > 0 {
		t.Errorf("etcd was started %d times and runs with %s; it did %q", c.starts, c.timing, c.database.did)
	}
	if o := n.observe(t.Context(), c.run, outcome{}).etcd; !o.GetLeaderless() || o.GetTimingStale() {
		t.Errorf("it says %v", o)
	}
	// For other CAs it waits.
	c.tell(1, c.old, c.new)
	c.run.Etcd.Restart = true
	once(n, c.run) // it takes them
	if last(); c.starts != 1 {
		t.Error("it was started anew for other CAs")
	}
}

// Whoever starts or joins an etcd has the times from its first start on.
func TestTheFirstStartHasTheTimes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	run := initRun(l)
	run.Etcd.HeartbeatMs, run.Etcd.ElectionMs = 200, 2000
	n := l.newNode()
	for _, action := range []api.EtcdWanted_Action{api.EtcdWanted_ACTION_BOOTSTRAP, api.EtcdWanted_ACTION_JOIN} {
		run.Etcd.Action, n.initialCluster = action, run.Etcd.GetInitialCluster()
		s := n.etcdConfiguration(run)
		if err := s.Act(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, err := n.etcdTiming(); err != nil || got != timingOf(run) {
			t.Errorf("%s: %s, %v", action, got, err)
		}
		run.Etcd.ElectionMs++
	}
}

func TestLeadersThatDoNotStayAreSaid(t *testing.T) {
	t.Parallel()
	var l leads
	now := time.Unix(1_800_000_000, 0)
	look := func(after time.Duration, count uint64, want uint32) {
		t.Helper()
		now = now.Add(after)
		l.looked(now, count)
		if got := l.tooMany(now); got != want {
			t.Errorf("%d of etcd's count: %d, want %d", count, got, want)
		}
	}
	look(0, 90, 0) // before this agent
	look(time.Minute, 96, 0)
	look(time.Minute, 97, 7)
	look(time.Minute, 1, 7) // etcd was started anew
	look(time.Minute, 4, 10)
	look(56*time.Minute+59*time.Second, 4, 10)
	look(time.Second, 4, 0) // the six of the first minute are an hour old
	look(2*time.Minute, 5, 0)
	look(-24*time.Hour, 5, 0) // a clock that was set back
}

// Killed wherever it touches its member, it runs with other times in the end, and its file never says
// what it does not run with.
func TestAMemberThatTakesOtherTimesIsKilled(t *testing.T) {
	t.Parallel()
	for at := 0; ; at++ {
		c := newCALab(t)
		count := 0
		c.die = func() {
			if count++; count == at+1 {
				panic(killed{})
			}
		}
		c.run.Etcd.HeartbeatMs, c.run.Etcd.ElectionMs, c.run.Etcd.Restart = 500, 5000, true
		died := dies(func() { once(c.node1(), c.run) })
		out := once(c.node1(), c.run)
		if !out.done || c.timing != timingOf(c.run) || c.node.Units()[etcd.Unit] != "active" {
			t.Errorf("killed at %d: it runs with %s and is %s: %s", at, c.timing, c.node.Units()[etcd.Unit], states(out))
		}
		if !died {
			if at < 5 {
				t.Errorf("only %d places to be killed at", at)
			}
			return
		}
	}
}
