package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// defaultSession is how long after its last sign of life a server is taken for dead,
// and another one may coordinate.
const defaultSession = 10 * time.Second

// ErrNotLeading says that another server coordinates the cluster, or none.
var ErrNotLeading = errors.New("this server does not coordinate the cluster now")

// session is one server's presence on an etcd cluster: a lease, kept alive. The server
// whose session made the lock coordinates.
//
// Two things keep a server that has lost its session from acting. It stops by its own
// clock at the latest when the lease can have ended; and its transactions are conditional
// on the lock being the one that it made, so that they fail whatever its clock says.
type session struct {
	client *clientv3.Client
	kv     clientv3.KV
	// keys is the prefix of what is no part of the state; id names this process there.
	keys, id string
	// name is what other servers call this one.
	name string
	ttl  time.Duration
	// home is the revision of the state's home.
	home int64

	mu sync.Mutex
	// until is when the lease may end, by this machine's clock; zero for no lease.
	until time.Time
	// term is the value of the lock that this session made; empty for none.
	term string
	// leader is the name of who coordinates, as far as known.
	leader string
	// why is the newest reason why the lease could not be renewed; empty for none.
	why   string
	moved bool
	// told is what changed was last closed for.
	told    told
	changed chan struct{}
}

// told is what others may wait for.
type told struct {
	alive, leads, moved bool
	leader              string
}

func newSession(client *clientv3.Client, kv clientv3.KV, c Config) *session {
	x := &session{client: client, kv: kv, keys: runtimePrefix(c.Cluster), id: newID(), name: c.Name, ttl: c.Session, changed: make(chan struct{})}
	if x.ttl == 0 {
		x.ttl = defaultSession
	}
	return x
}

// runtimePrefix is for what servers say to each other, beside the state.
func runtimePrefix(cluster string) string { return "/imagectl-servers/" + cluster + "/" }

func (x *session) lock() string { return x.keys + "coordinator" }

// run keeps a session until ctx ends, and gives it up then.
func (x *session) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := x.once(ctx)
		x.update(func() {
			x.until, x.term = time.Time{}, ""
			if err != nil {
				x.why, x.moved = plain(err), errors.Is(err, ErrMoved)
			}
		})
		select {
		case <-time.After(x.ttl / 20):
		case <-ctx.Done():
		}
	}
}

// once has one lease from its making to its loss.
func (x *session) once(ctx context.Context) error {
	lease, err := x.grant(ctx)
	if lease != 0 {
		// Who waits for the lock, or for this server to be gone, need not wait for the
		// lease's end.
		defer x.revoke(ctx, lease)
	}
	if err != nil {
		return err
	}
	campaigning, stop := context.WithCancel(ctx)
	var campaign sync.WaitGroup
	campaign.Go(func() { x.campaign(campaigning, lease) })
	err = x.keep(ctx, lease)
	stop()
	campaign.Wait()
	return err
}

func (x *session) revoke(ctx context.Context, lease clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.ttl/5)
	defer cancel()
	x.client.Revoke(ctx, lease) // else it ends by itself
}

// grant makes a lease and says with it that this server is there. A lease that comes with
// an error was made, and is of no use.
func (x *session) grant(ctx context.Context) (clientv3.LeaseID, error) {
	ctx, cancel := context.WithTimeout(ctx, x.ttl/2)
	defer cancel()
	begin := time.Now()
	lease, err := x.client.Grant(ctx, int64(x.ttl/time.Second))
	if err != nil {
		return 0, err
	}
	r, err := x.kv.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(x.keys+"home"), "=", x.home)).
		Then(clientv3.OpPut(x.keys+"present/"+x.id, x.name, clientv3.WithLease(lease.ID))).Commit()
	if err != nil {
		return lease.ID, err
	}
	if !r.Succeeded {
		return lease.ID, ErrMoved
	}
	x.update(func() { x.until, x.why = begin.Add(x.ttl), "" })
	return lease.ID, nil
}

// keep renews the lease until it is lost.
func (x *session) keep(ctx context.Context, lease clientv3.LeaseID) error {
	for {
		select {
		case <-time.After(x.ttl / 5):
		case <-ctx.Done():
			return nil
		}
		attempt, cancel := context.WithTimeout(ctx, x.ttl/4)
		begin := time.Now()
		_, err := x.client.KeepAliveOnce(attempt, lease)
		cancel()
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			return err
		case err != nil:
			why := plain(err)
			x.update(func() { x.why = why })
		default:
			x.update(func() { x.until, x.why = begin.Add(x.ttl), "" })
		}
	}
}

// campaign makes the lock as soon as nobody has it.
func (x *session) campaign(ctx context.Context, lease clientv3.LeaseID) {
	term := x.name + " " + x.id + " " + strconv.FormatInt(int64(lease), 16)
	for ctx.Err() == nil {
		holder, revision, err := x.take(ctx, lease, term)
		if err == nil {
			x.update(func() {
				x.leader, x.term = holder, ""
				if holder == term {
					x.term = term
				}
			})
			err = x.released(ctx, revision)
		}
		if err != nil {
			select {
			case <-time.After(x.ttl / 20):
			case <-ctx.Done():
			}
		}
	}
}

// take makes the lock or says who has it, as of which revision.
func (x *session) take(ctx context.Context, lease clientv3.LeaseID, term string) (holder string, revision int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, x.ttl/2)
	defer cancel()
	r, err := x.kv.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(x.lock()), "=", 0)).
		Then(clientv3.OpPut(x.lock(), term, clientv3.WithLease(lease))).
		Else(clientv3.OpGet(x.lock())).Commit()
	if err != nil {
		return "", 0, err
	}
	if r.Succeeded {
		return term, r.Header.Revision, nil
	}
	return string(r.Responses[0].GetResponseRange().Kvs[0].Value), r.Header.Revision, nil
}

// released returns when somebody has changed or removed the lock, or the watch of it
// ended.
func (x *session) released(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for r := range x.client.Watch(ctx, x.lock(), clientv3.WithRev(revision+1)) {
		if err := r.Err(); err != nil {
			return err
		}
		if len(r.Events) > 0 {
			return nil
		}
	}
	return errors.New("the watch ended")
}

// update changes what is known, and wakes those who wait for it.
func (x *session) update(f func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f()
	now := told{x.alive(), x.leads(), x.moved, x.leader}
	if now != x.told {
		x.told = now
		close(x.changed)
		x.changed = make(chan struct{})
	}
}

// alive and leads are by the clock; mu is held.
func (x *session) alive() bool { return time.Now().Before(x.until) }
func (x *session) leads() bool { return x.term != "" && x.alive() }

// Shared says whether other servers may use the same state.
func (s *Store) Shared() bool { return s.session != nil }

// Term names the time in which this server coordinates the cluster; empty when it does
// not. Another term means that others may have coordinated in between.
func (s *Store) Term() string {
	if s.session == nil {
		return "only"
	}
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	if !s.session.leads() {
		return ""
	}
	return s.session.term
}

// Leader is the name of the server that coordinates; empty when none is known.
func (s *Store) Leader() string {
	if s.session == nil {
		return ""
	}
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	var name string
	fmt.Sscan(s.session.leader, &name) // an empty one stays empty
	return name
}

// Healthy is nil while this server is in touch with what keeps its state; otherwise it
// says why not, for people.
func (s *Store) Healthy() error {
	if s.session == nil {
		return s.Err()
	}
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	if s.session.alive() {
		return nil
	}
	if s.session.moved {
		return ErrMoved
	}
	if s.session.why == "" {
		return errors.New("etcd has not answered yet")
	}
	return fmt.Errorf("etcd does not answer: %s; a majority of its members must run and be reached from here", s.session.why)
}

// TermChanged returns a channel that is closed when Term, Leader or Healthy may say
// something else. What ends by the clock alone is told within half of the session's time.
func (s *Store) TermChanged() <-chan struct{} {
	if s.session == nil {
		return nil
	}
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	return s.session.changed
}

// Lead makes the transaction fail with ErrNotLeading unless this server coordinates the
// cluster when it commits.
func (t *Tx) Lead() error {
	if t.store.session == nil {
		return nil
	}
	now, err := t.attempt.get(t.ctx, t.store.session.lock())
	if err != nil {
		return fmt.Errorf("reading who coordinates: %w", err)
	}
	if term := t.store.Term(); term == "" || now == nil || *now != term {
		return ErrNotLeading
	}
	return nil
}
