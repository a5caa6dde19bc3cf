package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

const (
	// backupsMax backups are read at a time.
	backupsMax = 2
	// backupChunk is how much of one a message has, in bytes.
	backupChunk = 48 << 10
)

// ReadBackup implements apiconnect.NodeServiceHandler. Nothing leaves before the node's log
// has it.
func (s *service) ReadBackup(ctx context.Context, req *connect.Request[api.ReadBackupRequest], out *connect.ServerStream[api.ReadBackupResponse]) error {
	select {
	case s.backups <- struct{}{}:
		defer func() { <-s.backups }()
	default:
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d callers read backups already; ask again", backupsMax))
	}
	c, in, err := s.node.Backup(req.Msg.GetName())
	if err != nil {
		return connect.NewError(connect.CodeNotFound, err)
	}
	defer in.Close()
	from, _ := ctx.Value(callerKey{}).(caller)
	entry := audit.Entry{Action: "backup-read", Detail: c.Name, Actor: audit.Actor{Subject: from.who.String(), Serial: pki.Serial(from.leaf), Source: from.source}}
	if from.late {
		entry.Detail += ", with a certificate that expired at " + from.leaf.NotAfter.UTC().Format(time.RFC3339)
	}
	if err := s.node.Record(entry); err != nil {
		return connect.NewError(connect.CodeInternal, err)
	}
	if err := out.Send(&api.ReadBackupResponse{Copy: &api.BackupCopy{Name: c.Name, Size: uint64(c.Size), Sha256: c.SHA256, Signature: c.Signature}}); err != nil {
		return err
	}
	for b := make([]byte, backupChunk); ; {
		if ctx.Err() != nil {
			return connect.NewError(connect.CodeUnauthenticated, context.Cause(ctx))
		}
		n, err := io.ReadFull(in, b)
		if n > 0 {
			if err := out.Send(&api.ReadBackupResponse{Chunk: b[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return connect.NewError(connect.CodeInternal, fmt.Errorf("reading %s: %w", c.Name, err))
		}
	}
}
