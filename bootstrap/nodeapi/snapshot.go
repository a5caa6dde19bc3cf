package nodeapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
)

const (
	// SnapshotMax bounds a snapshot of etcd that a node takes, in bytes: twice the quota that our
	// members have (etcd.QuotaBytes), for a database may be larger than its quota for a moment.
	SnapshotMax = 16 << 30
	// putsMax snapshots come at a time; one may take putTime, at 10 MB/s 8 GiB take a quarter of
	// an hour.
	putsMax, putTime = 1, time.Hour
)

var sha256RE = regexp.MustCompile("^[0-9a-f]{64}$")

// ErrNotArmed says that the server has not told the node to begin anew out of a file. Whoever has
// it may ask again.
var ErrNotArmed = errors.New("the server has not told this node to begin anew out of this snapshot")

// PutEtcdSnapshot implements apiconnect.NodeServiceHandler. That somebody sends one is in the
// node's log before anything of it is kept; the node takes the one that the server told it of.
func (s *service) PutEtcdSnapshot(ctx context.Context, in *connect.ClientStream[api.PutEtcdSnapshotRequest]) (*connect.Response[api.PutEtcdSnapshotResponse], error) {
	leave, err := enter(s.gates.puts, "send a snapshot")
	if err != nil {
		return nil, err
	}
	defer leave()
	if !in.Receive() {
		return nil, connect.NewError(connect.CodeInvalidArgument, cmp.Or(in.Err(), errors.New("the first message does not say which snapshot it is")))
	}
	sum := in.Msg().GetSha256()
	if !sha256RE.MatchString(sum) {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("the snapshot's SHA-256 is not 64 hexadecimal digits"))
	}
	out, err := s.node.TakeEtcdSnapshot(sum)
	switch {
	case errors.Is(err, ErrNotArmed):
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	case err != nil:
		return nil, connect.NewError(connect.CodeInternal, err)
	case out == nil:
		return connect.NewResponse(&api.PutEtcdSnapshotResponse{There: true}), nil
	}
	defer out.Close()
	if err := s.record(ctx, "etcd-snapshot-taken", "SHA-256 "+sum); err != nil {
		return nil, err
	}
	for in.Receive() {
		if ctx.Err() != nil {
			return nil, ended(ctx, context.Cause(ctx))
		}
		if _, err := out.Write(in.Msg().GetChunk()); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("keeping the snapshot: %w", err))
		}
	}
	if err := in.Err(); err != nil {
		return nil, ended(ctx, fmt.Errorf("the snapshot broke off: %w", err))
	}
	if err := out.Keep(); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("keeping the snapshot: %w", err))
	}
	return connect.NewResponse(&api.PutEtcdSnapshotResponse{}), nil
}

// Incoming is a file that comes.
type Incoming interface {
	// Write refuses more than was announced.
	io.Writer
	// Keep has what was written kept, if it is what was announced.
	Keep() error
	// Close forgets what was not kept.
	Close() error
}
