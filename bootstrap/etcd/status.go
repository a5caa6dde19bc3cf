package etcd

import (
	"context"
	"crypto/tls"
	"fmt"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Status is what a member says about itself.
type Status struct {
	// MemberID in hexadecimal as etcdctl prints it.
	MemberID string
	Learner  bool
	// Healthy: it follows a leader and has raised no alarm.
	Healthy bool
	// Reason is why it is not healthy; one sentence.
	Reason string
	// Members is the list as this member knows it; empty from a learner, which does
	// not tell. Nobody was asked how they are.
	Members []Peer
}

// Ask asks the member at endpoint, not the cluster: it works for a learner and
// without a quorum. ctx bounds it.
func Ask(ctx context.Context, endpoint string, conf *tls.Config) (Status, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: conf, Context: ctx, Logger: zap.NewNop()})
	if err != nil {
		return Status{}, fmt.Errorf("asking etcd at %s: %w", endpoint, err)
	}
	defer c.Close()
	r, err := c.Status(ctx, endpoint)
	if err != nil {
		return Status{}, fmt.Errorf("asking etcd at %s: %w", endpoint, err)
	}
	s := Status{MemberID: strconv.FormatUint(r.Header.GetMemberId(), 16), Learner: r.IsLearner}
	switch {
	case r.Leader == 0:
		s.Reason = "it sees no leader"
	case len(r.Errors) > 0:
		s.Reason = fmt.Sprintf("it raised %q", r.Errors)
	default:
		s.Healthy = true
	}
	if !s.Learner {
		if r, err := c.MemberList(ctx, clientv3.WithSerializable()); err == nil {
			s.Members = peers(r)
		}
	}
	return s, nil
}
