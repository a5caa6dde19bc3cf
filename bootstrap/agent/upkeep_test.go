package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
)

// database is an etcd cluster as data, of which this node runs the member 1. Only one goroutine
// uses it.
type database struct {
	*members // what is about membership is not called
	peers    []etcd.Peer
	// live is how much of the databases is no garbage, in bytes.
	live     int64
	did      []string
	fails    error
	snapshot string
	// during is called while something is done.
	during func()
}

const mib = 1 << 20

func (d *database) Close() error { return nil }

func (d *database) Members(context.Context) ([]etcd.Peer, error) { return slices.Clone(d.peers), nil }

func (d *database) deed(what string) error {
	d.did = append(d.did, what)
	if d.during != nil {
		d.during()
	}
	return d.fails
}

func (d *database) Compact(context.Context) error {
	for i := range d.peers {
		d.peers[i].Storage.Used = d.live
	}
	return d.deed("compact")
}

func (d *database) Defragment(_ context.Context, endpoint string) error {
	if d.fails == nil {
		d.peers[0].Storage.Size = d.peers[0].Storage.Used
	}
	return d.deed("defragment " + endpoint)
}

func (d *database) MoveLeader(_ context.Context, to uint64) error {
	for i := range d.peers {
		if d.fails == nil {
			d.peers[i].Leader = d.peers[i].ID == to
		}
	}
	return d.deed(fmt.Sprintf("let %x lead", to))
}

func (d *database) Disarm(context.Context) error {
	for i := range d.peers {
		d.peers[i].Alarms = nil
	}
	return d.deed("disarm")
}

func (d *database) Revision(context.Context) (int64, uint64, error) { return 4711, 0xabc, d.fails }

func (d *database) Snapshot(context.Context) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(d.snapshot)), d.fails
}

// keeper is a node whose member has so many MiB, with so many in use, and one more.
func (l *lab) keeper(size, used int64, alarms ...etcd.Alarm) (*node, *database) {
	l.t.Helper()
	own, other := peer(1, "cp1", "127.0.0.1"), peer(2, "cp2", "10.0.0.2")
	own.Follows, own.Alarms, own.Storage = true, alarms, etcd.Storage{Size: size * mib, Used: used * mib, Quota: 1000 * mib}
	other.Follows, other.Storage = true, etcd.Storage{Size: 10 * mib, Used: 10 * mib, Quota: 1000 * mib}
	d := &database{peers: []etcd.Peer{own, other}, live: 50 * mib}
	n := l.newNode()
	n.openEtcd = func(context.Context, []string, *tls.Config) (etcdCluster, error) { return d, nil }
	n.askEtcd = func(context.Context, string, *tls.Config) (etcd.Status, error) {
		p := d.peers[0]
		return etcd.Status{MemberID: "1", Healthy: len(p.Alarms) == 0, Follows: p.Follows, Leader: p.Leader, Alarms: p.Alarms, Storage: p.Storage}, nil
	}
	return n, d
}

func tendRun(l *lab, asked bool) *api.Run {
	run := joinRun(l)
	run.Etcd.Action, run.Etcd.Tend, run.Etcd.TendAsked = api.EtcdWanted_ACTION_RUN, true, asked
	return run
}

func TestAMemberIsTended(t *testing.T) {
	t.Parallel()
	full := etcd.Alarm{Kind: etcd.NoSpace, Member: 1}
	for _, tc := range []struct {
		name       string
		size, used int64
		alarms     []etcd.Alarm
		asked      bool
		change     func(*database)
		did        string
		waits      string
		upkeep     string
	}{
		{name: "holes", size: 400, used: 100, did: "defragment https://127.0.0.1:2379", upkeep: "defragmented: it had 400 MiB; 100 MiB of 100 MiB are in use, and it may grow to 1000 MiB"},
		{name: "nothing to do any more", size: 90, used: 10, upkeep: "10 MiB of 90 MiB are in use, and it may grow to 1000 MiB"},
		{name: "asked for", size: 90, used: 10, asked: true, did: "defragment https://127.0.0.1:2379", upkeep: "defragmented: it had 90 MiB; 10 MiB of 10 MiB are in use, and it may grow to 1000 MiB"},
		{name: "full", size: 1000, used: 1000, alarms: []etcd.Alarm{full}, did: "compact, defragment https://127.0.0.1:2379, disarm",
			upkeep: "defragmented: it had 1000 MiB; 50 MiB of 50 MiB are in use, and it may grow to 1000 MiB"},
		{name: "full, and so is another", size: 1000, used: 1000, alarms: []etcd.Alarm{full}, change: func(d *database) { d.peers[1].Storage.Size = 1000 * mib },
			did: "compact, defragment https://127.0.0.1:2379", upkeep: "defragmented: it had 1000 MiB; 50 MiB of 50 MiB are in use, and it may grow to 1000 MiB"},
		{name: "full of what is needed", size: 1000, used: 1000, alarms: []etcd.Alarm{full}, change: func(d *database) { d.live = 900 * mib },
			did: "compact, defragment https://127.0.0.1:2379", upkeep: "defragmented: it had 1000 MiB; there is no room to be made: 900 MiB of 1000 MiB are in use; delete objects that nobody needs"},
		{name: "corrupt", size: 400, used: 100, alarms: []etcd.Alarm{{Kind: etcd.Corrupt, Member: 2}}, waits: "etcd has raised CORRUPT for cp2 (2): nothing is done before a person has looked"},
		{name: "another is not well", size: 400, used: 100, change: func(d *database) { d.peers[1].Follows = false },
			waits: "cp2 (2) is not well, and a member that is tended answers nobody meanwhile"},
		{name: "it fails", size: 400, used: 100, change: func(d *database) { d.fails = errors.New("no space left on device") },
			did: "defragment https://127.0.0.1:2379", upkeep: "it failed: no space left on device"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			n, d := l.keeper(tc.size, tc.used, tc.alarms...)
			if err := n.issueAll(t.Context(), etcdBundles()); err != nil {
				t.Fatal(err)
			}
			if tc.change != nil {
				tc.change(d)
			}
			d.during = func() {
				if !n.news().etcd.GetTending() {
					t.Error("the server is not told that the member answers nobody")
				}
			}
			run := tendRun(l, tc.asked)
			step := func() outcome {
				out := runSteps(t.Context(), n.Log, []Step{n.etcdUpkeep(run)}, nil, false, func([]*api.StepStatus) {})
				n.publish(n.observe(t.Context(), run, out))
				return out
			}
			out := step()
			if got := strings.Join(d.did, ", "); got != tc.did {
				t.Errorf("it did %q, want %q", got, tc.did)
			}
			e := n.news().etcd
			if e.GetUpkeep() != tc.upkeep || e.GetTended() != (tc.upkeep != "") || e.GetTending() {
				t.Errorf("it says %v", e)
			}
			if got := out.steps[0].GetDetail(); got != tc.waits {
				t.Errorf("it waits for %q, want %q", got, tc.waits)
			}
			// A second turn within ten minutes does nothing; later one looks again.
			if d.did = nil; tc.waits == "" {
				if out := step(); !out.done || len(d.did) > 0 {
					t.Errorf("a second time: %v %v", out.steps, d.did)
				}
				l.set(func() { l.now = tendPause + time.Minute })
				if step(); n.keeping.lately(n.Now()) != true {
					t.Error("ten minutes later it does not look again")
				}
			}
		})
	}
}

// What the server is told changes only when it matters.
func TestSizesAreToldWhenTheyChangeALot(t *testing.T) {
	t.Parallel()
	var k keeping
	now := time.Unix(1_800_000_000, 0)
	said := func(size, used int64) string {
		o := &api.EtcdObserved{}
		k.observed(now, etcd.Status{Follows: true, Storage: etcd.Storage{Size: size * mib, Used: used * mib, Quota: 8192 * mib}}, o)
		return fmt.Sprintf("%d/%d %v %v", o.GetSize()/mib, o.GetUsed()/mib, o.GetWorth(), o.GetRoom())
	}
	for _, tc := range []struct {
		size, used int64
		want       string
	}{
		{10, 10, "10/10 false true"}, {13, 12, "10/10 false true"}, {20, 14, "20/14 false true"}, {400, 100, "400/100 true true"},
		{420, 105, "400/100 true true"}, {420, 230, "420/230 false true"}, {7000, 230, "7000/230 true false"},
	} {
		if got := said(tc.size, tc.used); got != tc.want {
			t.Errorf("%d/%d: told %s, want %s", tc.size, tc.used, got, tc.want)
		}
	}
}

func TestASlowDiskIsSaid(t *testing.T) {
	t.Parallel()
	var k keeping
	now := time.Unix(1_800_000_000, 0)
	at := func(n uint64, slow bool) etcd.Disk {
		b := []etcd.Bucket{{Bound: 0.001, Count: n}, {Bound: 0.032, Count: n}, {Bound: 0.064, Count: n}}
		if slow {
			b[0].Count, b[1].Count = 0, 0
		}
		return etcd.Disk{Fsync: b, Commit: b}
	}
	look := func(after time.Duration, d etcd.Disk, want ...string) {
		t.Helper()
		now = now.Add(after)
		if k.measured(now, d); !slices.Equal(k.warnings(), want) {
			t.Errorf("it says %q, want %q", k.warnings(), want)
		}
	}
	fsync := "the disk is slow for etcd: one of a hundred syncs of its log takes 64 ms and more, 10 ms are good; where it stays so, leaders need longer times: etcd.heartbeatInterval and etcd.electionTimeout in cluster.yaml"
	commit := "the disk is slow for etcd: one of a hundred commits of its database takes 64 ms and more, 25 ms are good"
	look(0, at(1000, true))
	look(time.Minute, at(1050, true)) // too few since
	look(time.Minute, at(2000, true), fsync, commit)
	good := etcd.Disk{Fsync: []etcd.Bucket{{Bound: 0.001, Count: 5000}, {Bound: 0.032, Count: 5000}, {Bound: 0.064, Count: 7000}}}
	good.Commit = good.Fsync
	look(20*time.Minute, good)
}

// A node that waits looks every other second; etcd is asked for all its metrics less often.
func TestTheDiskIsAskedAboutNowAndThen(t *testing.T) {
	t.Parallel()
	var k keeping
	now := time.Unix(1_800_000_000, 0)
	asked := 0
	for range 60 {
		if k.mayAskDisk(now) {
			asked++
		}
		now = now.Add(2 * time.Second)
	}
	if asked != 4 {
		t.Errorf("in two minutes of looking every other second etcd is asked %d times, want 4", asked)
	}
	// A clock that was set back does not end it.
	if now = now.Add(-24 * time.Hour); !k.mayAskDisk(now) {
		t.Error("not asked after the clock went back a day")
	}
}

// An order is obeyed once, and never while etcd needs the node.
func TestAnOrderIsObeyedOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n, d := l.keeper(10, 10)
	if err := n.issueAll(t.Context(), etcdBundles()); err != nil {
		t.Fatal(err)
	}
	l.put(wal, "1")
	n.use(tendRun(l, false))
	reboots := func() (out []string) {
		for _, line := range l.node.Ran() {
			if strings.HasPrefix(line, "systemctl") {
				out = append(out, line)
			}
		}
		return out
	}
	o := &api.Order{Id: "o1", Kind: api.Order_KIND_REBOOT, By: "imagectl://lab/operator/ada", Serial: "17", Reason: "new kernel"}
	n.obey(t.Context(), o)
	const why = "1 of the other 1 etcd voters are well, quorum is 2 of 2: while this one is away nothing can be written; wait for the others, or say --force"
	if r := n.news().order; r.GetId() != "o1" || r.GetObeyed() || r.GetDetail() != why || len(reboots()) > 0 {
		t.Errorf("of two: %v", r)
	}
	third := peer(3, "cp3", "10.0.0.3")
	third.Follows = true
	d.peers = append(d.peers, third)
	n.obey(t.Context(), o) // it was refused, and stays so
	o.Id = "o2"
	n.obey(t.Context(), o)
	n.obey(t.Context(), o)
	if r := n.news().order; r.GetId() != "o2" || !r.GetObeyed() {
		t.Errorf("of three: %v", r)
	}
	if got := reboots(); !slices.Equal(got, []string{"systemctl reboot"}) {
		t.Errorf("it ran %q", got)
	}
	if log := l.read(recordPath); strings.Count(log, `"action":"reboot"`) != 1 || !strings.Contains(log, "imagectl://lab/operator/ada") || !strings.Contains(log, "new kernel") {
		t.Errorf("its log: %s", log)
	}
	// The next agent knows.
	again, _ := l.keeper(10, 10)
	if err := again.loadOrder(); err != nil {
		t.Fatal(err)
	}
	again.use(tendRun(l, false))
	again.obey(t.Context(), o)
	if got := reboots(); len(got) > 0 || !again.news().order.GetObeyed() {
		t.Errorf("a new agent ran %q", got)
	}
	again.obey(t.Context(), &api.Order{Id: "o3", Kind: api.Order_KIND_SHUTDOWN, Force: true})
	if got := reboots(); !slices.Equal(got, []string{"systemctl poweroff"}) {
		t.Errorf("forced, it ran %q", got)
	}
	again.obey(t.Context(), &api.Order{Id: "o4", Kind: 99, Force: true})
	if got := reboots(); len(got) > 0 || again.news().order.GetDetail() != "99 is no order that this agent knows" {
		t.Errorf("what nobody knows: %q %v", got, again.news().order)
	}
}
