package agent

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
)

const (
	// tendPause is for how long nothing is tried again on a member: what failed, or gave
	// nothing, would stop the member each time.
	tendPause = 10 * time.Minute
	// tendTime bounds a compaction and a defragmentation. 8 GiB, the quota, are read and
	// written once.
	tendTime = 10 * time.Minute
	// diskWindow is the time over which the disk is judged; fewer operations than a hundred
	// in it say nothing.
	diskWindow = 5 * time.Minute
	// diskPause is how often etcd is asked for what it has measured: it writes all its metrics
	// for that, and a node that waits for something looks every other second.
	diskPause = 30 * time.Second
)

// keeping is what this node knows of its member's upkeep. The zero value is nothing; it is safe
// for concurrent use.
type keeping struct {
	mu sync.Mutex
	// tendedAt is when the member was last tended, or that was tried, and upkeep what came
	// of it.
	tendedAt time.Time
	upkeep   string
	// told is the size that the server was last told.
	told etcd.Storage
	// disk are looks at what etcd has measured, oldest first, diskAsked the last attempt.
	disk      []diskLook
	diskAsked time.Time
	// fsync and commit are 0 while they are good or not known.
	fsync, commit time.Duration
	leads         leads
}

type diskLook struct {
	at   time.Time
	disk etcd.Disk
}

// tended ends an attempt.
func (k *keeping) tended(now time.Time, outcome string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tendedAt, k.upkeep = now, outcome
}

// lately says whether the member was tended so lately that nothing is tried again.
func (k *keeping) lately(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.tendedAt.IsZero() && now.Sub(k.tendedAt).Abs() < tendPause
}

// mayAskDisk says whether it is time to look at the disk, and notes it.
func (k *keeping) mayAskDisk(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.diskAsked.IsZero() && now.Sub(k.diskAsked).Abs() < diskPause {
		return false
	}
	k.diskAsked = now
	return true
}

// measured takes a new look at the disk.
func (k *keeping) measured(now time.Time, d etcd.Disk) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.disk = append(k.disk, diskLook{now, d})
	k.leads.looked(now, d.LeaderChanges)
	// The oldest stays that is a whole window old.
	for len(k.disk) > 2 && now.Sub(k.disk[1].at).Abs() >= diskWindow {
		k.disk = k.disk[1:]
	}
	k.fsync, k.commit = 0, 0
	if first := k.disk[0].disk; len(k.disk) > 1 {
		if p := etcd.P99(first.Fsync, d.Fsync); p > etcd.SlowFsync {
			k.fsync = p
		}
		if p := etcd.P99(first.Commit, d.Commit); p > etcd.SlowCommit {
			k.commit = p
		}
	}
}

// observed adds to a report how the member is. Sizes change all the time: the server is told
// when one has changed by a sixteenth and by 4 MiB, so that it is no news every time.
func (k *keeping) observed(now time.Time, s etcd.Status, o *api.EtcdObserved) {
	o.Follows, o.Leader, o.Leaderless = s.Follows, s.Leader, s.Leaderless
	for _, a := range s.Alarms {
		if !slices.Contains(o.Alarms, a.Kind) {
			o.Alarms = append(o.Alarms, a.Kind)
		}
	}
	slices.Sort(o.Alarms)
	o.Worth, o.Room = s.Storage.Worth(), s.Storage.Room()
	o.Tended = k.lately(now)
	k.mu.Lock()
	defer k.mu.Unlock()
	if near := func(a, b int64) bool { d := max(a-b, b-a); return d < 4<<20 || d < b/16 }; k.told.Quota != s.Storage.Quota ||
		!near(s.Storage.Size, k.told.Size) || !near(s.Storage.Used, k.told.Used) {
		k.told = s.Storage
	}
	o.Size, o.Used, o.Quota = uint64(k.told.Size), uint64(k.told.Used), uint64(k.told.Quota)
	o.Upkeep = k.upkeep
	o.FsyncP99Ms, o.CommitP99Ms = milliseconds(k.fsync), milliseconds(k.commit)
	o.LeaderChanges = k.leads.tooMany(now)
}

// milliseconds rounds up to two digits, so that the same disk says the same.
func milliseconds(d time.Duration) uint32 {
	ms := (d + time.Millisecond - 1) / time.Millisecond
	if ms > 100 {
		ms = (ms + 9) / 10 * 10
	}
	return uint32(ms)
}

// warnings are sentences about this node's etcd.
func (k *keeping) warnings() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	if k.fsync > 0 {
		out = append(out, fmt.Sprintf("the disk is slow for etcd: one of a hundred syncs of its log takes %d ms and more, %d ms are good; where it stays so, leaders need longer times: etcd.heartbeatInterval and etcd.electionTimeout in cluster.yaml", milliseconds(k.fsync), etcd.SlowFsync.Milliseconds()))
	}
	if k.commit > 0 {
		out = append(out, fmt.Sprintf("the disk is slow for etcd: one of a hundred commits of its database takes %d ms and more, %d ms are good", milliseconds(k.commit), etcd.SlowCommit.Milliseconds()))
	}
	return out
}

// lookAtDisk asks etcd how fast its disk is. That it does not say is no news: whoever cannot
// be asked is not well in other ways.
func (n *node) lookAtDisk(ctx context.Context) {
	if !n.keeping.mayAskDisk(n.Now()) {
		return
	}
	conf, err := n.etcdTLS()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if d, err := n.askDisk(ctx, etcd.LocalEndpoint, conf); err == nil {
		n.keeping.measured(n.Now(), d)
	}
}

// etcdUpkeep compacts and defragments this node's member when the server says that it is its
// turn. It looks for itself whether the others are well before each change. However it ends, its
// turn is over then; only while another member is not well it waits.
func (n *node) etcdUpkeep(run *api.Run) Step {
	return Step{
		Name: "etcd-upkeep",
		Observe: func(context.Context) (bool, string, error) {
			return n.keeping.lately(n.Now()), "the server has given this node the turn", nil
		},
		Act: func(ctx context.Context) error {
			return n.withMembers(ctx, run, func(c etcdCluster) error { return n.tend(ctx, run, c) })
		},
	}
}

func (n *node) tend(ctx context.Context, run *api.Run, c etcdCluster) error {
	t := etcd.Tending{Asked: run.GetEtcd().GetTendAsked()}
	var before etcd.Storage
	// Compacting, defragmenting, disarming: more there is not.
	for range 4 {
		members, own, err := n.membersNow(ctx, c)
		if err != nil {
			return err
		}
		if before == (etcd.Storage{}) {
			before = own.Storage
		}
		d := etcd.Tend(own.ID, t, members)
		n.Log.Info("etcd upkeep", "do", d.Do, "because", d.Reason)
		switch d.Do {
		case etcd.DoWait:
			return waiting(d.Reason)
		case etcd.DoNothing:
			if t.Defragmented {
				d.Reason = fmt.Sprintf("defragmented: it had %d MiB; %s", before.Size>>20, d.Reason)
			}
			n.keeping.tended(n.Now(), d.Reason)
			return nil
		}
		n.publishTending(true)
		err = n.tendOnce(ctx, c, d.Do)
		n.publishTending(false)
		if err != nil {
			n.Log.Error("tending the etcd member failed", "do", d.Do, "err", err)
			n.keeping.tended(n.Now(), "it failed: "+err.Error())
			return nil
		}
		t.Compacted = t.Compacted || d.Do == etcd.DoCompact
		t.Defragmented = t.Defragmented || d.Do == etcd.DoDefragment
	}
	n.keeping.tended(n.Now(), "etcd has an alarm again right after it was disarmed")
	return nil
}

func (n *node) tendOnce(ctx context.Context, c etcdCluster, do etcd.Do) error {
	ctx, cancel := context.WithTimeout(ctx, tendTime)
	defer cancel()
	switch do {
	case etcd.DoCompact:
		return c.Compact(ctx)
	case etcd.DoDefragment:
		return c.Defragment(ctx, etcd.LocalEndpoint)
	case etcd.DoDisarm:
		return c.Disarm(ctx)
	}
	return fmt.Errorf("tending etcd: %q is no part of it", do)
}

// membersNow are the members as a quorum and each of them says, and this node's own.
func (n *node) membersNow(ctx context.Context, c etcdCluster) ([]etcd.Peer, etcd.Peer, error) {
	ctx, cancel := context.WithTimeout(ctx, askCluster)
	defer cancel()
	s, err := n.etcdStatus(ctx)
	if err != nil {
		return nil, etcd.Peer{}, waiting("etcd on this node does not answer: " + err.Error())
	}
	members, err := c.Members(ctx)
	if err != nil {
		return nil, etcd.Peer{}, waiting("the etcd members do not answer with a quorum: " + err.Error())
	}
	for _, m := range members {
		if strconv.FormatUint(m.ID, 16) == s.MemberID {
			return members, m, nil
		}
	}
	return nil, etcd.Peer{}, waiting("etcd does not list this node's member")
}

// publishTending tells the server that the member answers nobody for now.
func (n *node) publishTending(busy bool) {
	n.mu.Lock()
	r := n.report
	n.mu.Unlock()
	r.etcd = proto.CloneOf(r.etcd)
	if r.etcd == nil {
		r.etcd = &api.EtcdObserved{}
	}
	r.etcd.Tending = busy
	n.publish(r)
}
