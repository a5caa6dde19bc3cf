package vip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// prefix is where the queue is in etcd; Kubernetes keeps to /registry.
const prefix = "imagectl/api-address/"

// reopen is after how many questions in a row without an answer the connection is made
// anew: with certificates of now, which its owner renews.
const reopen = 3

// Queue is a control plane's place in etcd's queue for the address. It is not safe for
// concurrent use.
type Queue struct {
	// System names the running kernel (its boot ID). A key from the same one is of a
	// process before this, whose address is gone from that kernel: it is taken over. One from
	// another is left to its lease, for there may be two machines of a name.
	System string
	// Open connects with etcd, as a client that Queue closes.
	Open func(ctx context.Context) (*clientv3.Client, error)

	// ttl is TTL but in tests.
	ttl    time.Duration
	client *clientv3.Client
	lease  clientv3.LeaseID
	fails  int
}

// Ask implements Place.
func (q *Queue) Ask(ctx context.Context) (s Standing, err error) {
	defer func() { q.count(err) }()
	c, err := q.connect(ctx)
	if err != nil || q.lease == 0 {
		return Standing{}, err
	}
	// Before the question: etcd counts from some time after it.
	sent := time.Now()
	ttl, err := renew(ctx, c, q.lease)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		q.lease = 0
		return Standing{}, nil
	} else if err != nil {
		return Standing{}, fmt.Errorf("renewing the lease: %w", err)
	}
	r, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil {
		return Standing{}, fmt.Errorf("reading the queue: %w", err)
	}
	s = Standing{Others: len(r.Kvs), Until: sent.Add(ttl)}
	for i, kv := range r.Kvs {
		if clientv3.LeaseID(kv.Lease) == q.lease {
			s.In, s.First = true, i == 0
			s.Others--
		}
	}
	return s, nil
}

// renew renews a lease once. The client's own KeepAliveOnce asks again without a pause
// while nobody answers (client/v3 3.7, lease.go).
func renew(ctx context.Context, c *clientv3.Client, id clientv3.LeaseID) (time.Duration, error) {
	stream, err := etcdserverpb.NewLeaseClient(c.ActiveConnection()).LeaseKeepAlive(ctx)
	if err != nil {
		return 0, err
	}
	if err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
		return 0, err
	}
	r, err := stream.Recv()
	if err != nil {
		return 0, err
	}
	if r.GetTTL() <= 0 {
		return 0, rpctypes.ErrLeaseNotFound
	}
	return time.Duration(r.GetTTL()) * time.Second, nil
}

// Enter implements Place.
func (q *Queue) Enter(ctx context.Context, name string) (s Standing, err error) {
	defer func() { q.count(err) }()
	c, err := q.connect(ctx)
	if err != nil {
		return Standing{}, err
	}
	if q.lease == 0 {
		r, err := c.Grant(ctx, int64(cmp.Or(q.ttl, TTL)/time.Second))
		if err != nil {
			return Standing{}, fmt.Errorf("asking for a lease: %w", err)
		}
		q.lease = r.ID
	}
	key := prefix + name
	for range 2 {
		r, err := c.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, q.System, clientv3.WithLease(q.lease))).
			Else(clientv3.OpGet(key)).Commit()
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			q.lease = 0
		}
		if err != nil {
			return Standing{}, fmt.Errorf("asking for a place in the queue: %w", err)
		}
		if r.Succeeded {
			break
		}
		have := r.Responses[0].GetResponseRange().Kvs[0]
		if clientv3.LeaseID(have.Lease) == q.lease {
			break // the answer was lost
		}
		if string(have.Value) != q.System {
			return Standing{}, fmt.Errorf("another system of the name %s is in the queue: waiting for the end of its lease", name)
		}
		if _, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", have.ModRevision)).Then(clientv3.OpDelete(key)).Commit(); err != nil {
			return Standing{}, fmt.Errorf("taking a former process out of the queue: %w", err)
		}
	}
	return q.Ask(ctx)
}

// Leave implements Place.
func (q *Queue) Leave(ctx context.Context) (err error) {
	defer func() { q.count(err) }()
	if q.lease == 0 {
		return nil
	}
	c, err := q.connect(ctx)
	if err != nil {
		return err
	}
	id := q.lease
	q.lease = 0 // whatever comes of it: it is never used again, and ends by itself
	if _, err = c.Revoke(ctx, id); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("giving the lease back: %w", err)
	}
	return nil
}

// Close implements Place.
func (q *Queue) Close() error {
	if q.client == nil {
		return nil
	}
	c := q.client
	q.client = nil
	return c.Close()
}

func (q *Queue) connect(ctx context.Context) (*clientv3.Client, error) {
	if q.client != nil {
		return q.client, nil
	}
	c, err := q.Open(ctx)
	if err != nil {
		return nil, err
	}
	q.client = c
	return c, nil
}

func (q *Queue) count(err error) {
	if q.fails++; err == nil {
		q.fails = 0
	}
	if q.fails >= reopen {
		q.fails = 0
		_ = q.Close()
	}
}
