package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Acting is what the API does to a node, and what it gives out of its etcd.
type Acting interface {
	// EtcdStatus asks the members that the node knows how they are.
	EtcdStatus(context.Context) (*api.EtcdStatusResponse, error)
	// EtcdRevision is one up to which the node's member has everything, as a quorum confirms, and
	// the member's ID, hexadecimal.
	EtcdRevision(context.Context) (revision int64, member string, err error)
	// EtcdSnapshot opens the database of the node's member; the caller closes it.
	EtcdSnapshot(context.Context) (io.ReadCloser, error)
	// TakeEtcdSnapshot opens a place for the snapshot with that SHA-256, which the server must have
	// told the node of (ErrNotArmed); nil when it is there already. The caller closes it.
	TakeEtcdSnapshot(sha256 string) (Incoming, error)
	// MayAct says why the node must not be rebooted or switched off now; nil if it may.
	MayAct(ctx context.Context, kind api.Order_Kind, force bool) error
	// Act has it done and returns at once.
	Act(ctx context.Context, kind api.Order_Kind) error
}

// snapshotChunk is how much of a snapshot a message has, in bytes.
const snapshotChunk = 256 << 10

// acting is who may make the calls of this file. A snapshot holds every secret of Kubernetes in the
// clear, and the server's backups do not: who may fetch those gets none. The server may, for it takes
// snapshots by schedule: it has the key of etcd's CA and those that Secrets are encrypted with, so
// that it learns nothing that it could not have anyway.
func acting() map[string]rule {
	return map[string]rule{
		apiconnect.NodeServiceEtcdStatusProcedure:      {roles: []pki.Role{pki.RoleAdmin, pki.RoleOperator, pki.RoleReader}, server: true, forwarded: true, limit: lookTime},
		apiconnect.NodeServiceEtcdSnapshotProcedure:    {roles: []pki.Role{pki.RoleAdmin}, server: true, forwarded: true},
		apiconnect.NodeServicePutEtcdSnapshotProcedure: {roles: []pki.Role{pki.RoleAdmin}, forwarded: true, limit: putTime},
		apiconnect.NodeServiceActProcedure:             {roles: []pki.Role{pki.RoleAdmin, pki.RoleOperator}, limit: lookTime},
	}
}

// EtcdStatus implements apiconnect.NodeServiceHandler.
func (s *service) EtcdStatus(ctx context.Context, _ *connect.Request[api.EtcdStatusRequest]) (*connect.Response[api.EtcdStatusResponse], error) {
	resp, err := s.node.EtcdStatus(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return connect.NewResponse(resp), nil
}

// EtcdSnapshot implements apiconnect.NodeServiceHandler. Nothing leaves before the node's log has
// it.
func (s *service) EtcdSnapshot(ctx context.Context, req *connect.Request[api.EtcdSnapshotRequest], out *connect.ServerStream[api.EtcdSnapshotResponse]) error {
	select {
	case s.backups <- struct{}{}:
		defer func() { <-s.backups }()
	default:
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d callers read backups or snapshots already; ask again", backupsMax))
	}
	// Before the database is read: what is acknowledged later may be in it, what was before is.
	first := &api.EtcdSnapshotResponse{}
	if req.Msg.GetConfirmed() {
		var err error
		if first.Revision, first.MemberId, err = s.node.EtcdRevision(ctx); err != nil {
			return connect.NewError(connect.CodeFailedPrecondition, err)
		}
	}
	in, err := s.node.EtcdSnapshot(ctx)
	if err != nil {
		return connect.NewError(connect.CodeFailedPrecondition, err)
	}
	defer in.Close()
	if err := s.record(ctx, "etcd-snapshot-read", ""); err != nil {
		return err
	}
	if req.Msg.GetConfirmed() {
		if err := out.Send(first); err != nil {
			return err
		}
	}
	for b := make([]byte, snapshotChunk); ; {
		if ctx.Err() != nil {
			return connect.NewError(connect.CodeUnauthenticated, context.Cause(ctx))
		}
		n, err := io.ReadFull(in, b)
		if n > 0 {
			if err := out.Send(&api.EtcdSnapshotResponse{Chunk: b[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return connect.NewError(connect.CodeInternal, fmt.Errorf("reading etcd's snapshot: %w", err))
		}
	}
}

// Act implements apiconnect.NodeServiceHandler. The node's log has it before it is done.
func (s *service) Act(ctx context.Context, req *connect.Request[api.ActRequest]) (*connect.Response[api.ActResponse], error) {
	kind := req.Msg.GetKind()
	if kind != api.Order_KIND_REBOOT && kind != api.Order_KIND_SHUTDOWN {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say what to do: reboot or shutdown"))
	}
	if err := s.node.MayAct(ctx, kind, req.Msg.GetForce()); err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	detail := req.Msg.GetReason()
	if req.Msg.GetForce() {
		detail = strings.TrimSpace("forced; " + detail)
	}
	if err := s.node.Record(entryOf(ctx, Word(kind), detail)); err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	// It goes on when the caller is gone.
	if err := s.node.Act(context.WithoutCancel(ctx), kind); err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(&api.ActResponse{}), nil
}

// Word is what an action is called in audit logs: reboot, shutdown, reset-keep.
func Word(kind api.Order_Kind) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(kind.String(), "KIND_")), "_", "-")
}

// reasonMax bounds what a caller may have the node's log say, in bytes.
const reasonMax = 300

// entryOf is an entry about a call.
func entryOf(ctx context.Context, action, detail string) audit.Entry {
	from, _ := ctx.Value(callerKey{}).(caller)
	return audit.Entry{Action: action, Detail: strings.ToValidUTF8(detail[:min(len(detail), reasonMax)], ""),
		Actor: audit.Actor{Subject: from.who.String(), Serial: pki.Serial(from.leaf), Source: from.source}}
}
