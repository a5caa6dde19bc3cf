package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// answerTime bounds the question to one member how it is.
const answerTime = 2 * time.Second

// Cluster talks to the members that have a vote. Close it.
type Cluster struct {
	client *clientv3.Client
	tls    *tls.Config
}

// Open returns a client of the members at endpoints. Nothing is dialled yet.
func Open(ctx context.Context, endpoints []string, conf *tls.Config) (*Cluster, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, TLS: conf, Context: ctx, Logger: zap.NewNop(),
		DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("opening etcd at %s: %w", strings.Join(endpoints, ","), err)
	}
	return &Cluster{c, conf}, nil
}

// Close ends its connections.
func (c *Cluster) Close() error { return c.client.Close() }

// Members returns the list that a quorum has confirmed, in order of their IDs, and
// asks each member how it is. Without a quorum it fails when ctx ends.
func (c *Cluster) Members(ctx context.Context) ([]Peer, error) {
	r, err := c.client.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing etcd's members: %w", err)
	}
	out := peers(r)
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() { c.ask(ctx, &out[i]) })
	}
	wg.Wait()
	return out, nil
}

func peers(r *clientv3.MemberListResponse) []Peer {
	out := make([]Peer, len(r.Members))
	for i, m := range r.Members {
		out[i] = Peer{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.IsLearner}
	}
	slices.SortFunc(out, func(a, b Peer) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// ask fills in how a member is.
func (c *Cluster) ask(ctx context.Context, m *Peer) {
	for _, u := range m.ClientURLs {
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		s, err := Ask(ctx, u, c.tls)
		cancel()
		if err == nil && s.MemberID == strconv.FormatUint(m.ID, 16) {
			m.Answers, m.Healthy, m.Follows, m.Leader, m.Alarms, m.Storage = true, s.Healthy, s.Follows, s.Leader, s.Alarms, s.Storage
			return
		}
	}
}

// ErrUnsettled is why a member cannot be added yet: etcd wants all voters connected
// for five seconds first.
var ErrUnsettled = errors.New("not every voter has been connected for five seconds yet")

// AddLearner puts a machine on the list, without a vote. It fails with ErrUnsettled
// while that is too early.
func (c *Cluster) AddLearner(ctx context.Context, peerURL string) (uint64, error) {
	r, err := c.client.MemberAddAsLearner(ctx, []string{peerURL})
	if errors.Is(err, rpctypes.ErrUnhealthy) {
		err = ErrUnsettled
	}
	if err != nil {
		return 0, fmt.Errorf("adding %s to etcd: %w", peerURL, err)
	}
	return r.Member.ID, nil
}

// Remove takes a member off the list.
func (c *Cluster) Remove(ctx context.Context, id uint64) error {
	if _, err := c.client.MemberRemove(ctx, id); err != nil {
		return fmt.Errorf("removing etcd member %x: %w", id, err)
	}
	return nil
}

// ErrNotInSync is why a learner cannot have its vote yet.
var ErrNotInSync = errors.New("it is not in sync with the leader yet")

// Promote gives a learner its vote. It fails with ErrNotInSync while that is too
// early.
func (c *Cluster) Promote(ctx context.Context, id uint64) error {
	_, err := c.client.MemberPromote(ctx, id)
	if errors.Is(err, rpctypes.ErrMemberLearnerNotReady) {
		err = ErrNotInSync
	}
	if err != nil {
		return fmt.Errorf("promoting etcd member %x: %w", id, err)
	}
	return nil
}
