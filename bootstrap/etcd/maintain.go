package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Compact forgets all but the newest revision of each key, and returns when the member that
// was asked has deleted them. Watches that are behind begin again, as after each compaction of
// kube-apiserver.
func (c *Cluster) Compact(ctx context.Context) error {
	// A read that a quorum confirms: the newest revision there is.
	r, err := c.client.Get(ctx, "imagectl", clientv3.WithCountOnly())
	if err == nil {
		_, err = c.client.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compacting etcd: %w", err)
	}
	return nil
}

// Defragment rewrites the database of the member at endpoint. That member answers nobody
// until this returns; when ctx ends before, it goes on.
func (c *Cluster) Defragment(ctx context.Context, endpoint string) error {
	if _, err := c.client.Defragment(ctx, endpoint); err != nil {
		return fmt.Errorf("defragmenting etcd at %s: %w", endpoint, err)
	}
	return nil
}

// MoveLeader lets another member lead. The client must have been opened for the one that leads
// only.
func (c *Cluster) MoveLeader(ctx context.Context, to uint64) error {
	if _, err := c.client.MoveLeader(ctx, to); err != nil {
		return fmt.Errorf("letting etcd member %x lead: %w", to, err)
	}
	return nil
}

// Disarm takes NOSPACE back for every member that raised it, and no other alarm.
func (c *Cluster) Disarm(ctx context.Context) error {
	r, err := c.client.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("listing etcd's alarms: %w", err)
	}
	for _, a := range r.Alarms {
		if a.Alarm != pb.AlarmType_NOSPACE {
			continue
		}
		if _, err := c.client.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: a.MemberID, Alarm: a.Alarm}); err != nil {
			return fmt.Errorf("disarming %s of etcd member %x: %w", NoSpace, a.MemberID, err)
		}
	}
	return nil
}

// Revision is one up to which the member that is asked has everything, and that member's ID. A quorum
// confirms it: whatever was acknowledged to anybody before the call is in it. Without a quorum it
// fails when ctx ends.
func (c *Cluster) Revision(ctx context.Context) (revision int64, member uint64, err error) {
	// A read that is linearizable: the member asks the leader, and waits until it has caught up.
	r, err := c.client.Get(ctx, "imagectl", clientv3.WithCountOnly())
	if err != nil {
		return 0, 0, fmt.Errorf("asking etcd for its revision: %w", err)
	}
	return r.Header.Revision, r.Header.MemberId, nil
}

// Snapshot streams the database of one of the endpoints that this client was opened for; the
// caller closes it. Its last 32 bytes are the SHA-256 of all before them.
func (c *Cluster) Snapshot(ctx context.Context) (io.ReadCloser, error) {
	r, err := c.client.SnapshotWithVersion(ctx)
	if err != nil {
		return nil, fmt.Errorf("taking a snapshot of etcd: %w", err)
	}
	return r.Snapshot, nil
}
