package serverapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/backup"
)

// restoredNews is how long status says where this state comes from: until then, what
// was issued before has been renewed.
const restoredNews = 30 * 24 * time.Hour

// BackupServer implements apiconnect.OperatorServiceHandler. What leaves is encrypted
// to the keys of cluster.yaml, whoever asks.
func (s operators) BackupServer(ctx context.Context, req *connect.Request[api.BackupServerRequest], stream *connect.ServerStream[api.BackupServerResponse]) error {
	b := s.cfg.Backups
	if b == nil {
		return connect.NewError(connect.CodeFailedPrecondition, errors.New("cluster.yaml names no backup.recipients, so nobody could open a backup; age-keygen makes a recovery key"))
	}
	from := callerOf(ctx)
	record := func(how string) error {
		err := s.coordinate(ctx, from.actor(), func(c *change) error {
			if err := c.standing(from); err != nil {
				return err
			}
			c.log(audit.Entry{Action: "server-backup", Detail: how})
			return nil
		})
		if err != nil {
			return s.storing("", err)
		}
		return nil
	}
	if !req.Msg.GetSend() {
		if err := record("an operator asked for one"); err != nil {
			return err
		}
		f, err := b.Save(ctx)
		if err != nil {
			return connect.NewError(connect.CodeFailedPrecondition, err)
		}
		return stream.Send(&api.BackupServerResponse{Name: f.Name, Directory: b.State().Dir, Size: uint64(f.Size)})
	}
	if err := record("an operator fetched one"); err != nil {
		return err
	}
	name, err := b.Stream(ctx, chunks{stream})
	if err != nil {
		return connect.NewError(connect.CodeInternal, err)
	}
	return stream.Send(&api.BackupServerResponse{Name: name})
}

// chunks is a Writer into a stream.
type chunks struct {
	to *connect.ServerStream[api.BackupServerResponse]
}

func (c chunks) Write(p []byte) (int, error) {
	if err := c.to.Send(&api.BackupServerResponse{Chunk: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ReadAudit implements apiconnect.OperatorServiceHandler.
func (s operators) ReadAudit(ctx context.Context, _ *connect.Request[api.ReadAuditRequest], stream *connect.ServerStream[api.ReadAuditResponse]) error {
	const most = 200 // entries a message
	resp := &api.ReadAuditResponse{}
	for line, err := range s.cfg.Store.AuditLines(ctx) {
		if err != nil {
			return s.storing("", err)
		}
		if resp.Lines = append(resp.Lines, line); len(resp.Lines) < most {
			continue
		}
		// It may take long.
		if err := errors.Join(s.allowTime(callerOf(ctx)), s.allowSerial(callerOf(ctx))); err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		resp = &api.ReadAuditResponse{}
	}
	return stream.Send(resp)
}

// copyNotes tell of the copies elsewhere.
func copyNotes(st backup.State, now time.Time) []string {
	c := st.Copy
	switch {
	case c.Place == "" || st.Good.Name == "":
		return nil
	case c.Failed != nil:
		return []string{fmt.Sprintf("warning: no copy of the newest backup is in %s: %v", c.Place, c.Failed)}
	case c.Good.Name != "":
		return []string{fmt.Sprintf("a copy of a backup that is %s old is in %s", now.Sub(c.Good.At).Round(time.Minute), c.Place)}
	}
	return nil // it is on its way
}

func (s *Server) backupView() *api.BackupView {
	v := &api.BackupView{}
	if s.restored.File != "" {
		v.RestoredFrom = timestamppb.New(s.restored.Backup)
	}
	if s.cfg.Backups == nil {
		return v
	}
	st := s.cfg.Backups.State()
	v.Directory, v.Late = st.Dir, st.Late(s.cfg.Now())
	if !st.Good.At.IsZero() {
		v.GoodAt, v.GoodBytes = timestamppb.New(st.Good.At), uint64(st.Good.Size)
	}
	if st.Failed != nil {
		v.Failure, v.FailedAt = st.Failed.Error(), timestamppb.New(st.At)
	}
	return v
}

// backupNotes are the sentences of status about backups.
func (s *Server) backupNotes() []string {
	var out []string
	if s.cfg.Backups == nil {
		out = append(out, "warning: no backup of this server is made; name backup.recipients and backup.target in cluster.yaml")
	} else if st := s.cfg.Backups.State(); st.Dir != "" {
		now := s.cfg.Now()
		text := "there is no good backup of this server in " + st.Dir
		if !st.Good.At.IsZero() {
			text = fmt.Sprintf("the newest good backup of this server is %s old (%s)", now.Sub(st.Good.At).Round(time.Minute), st.Good.Name)
		}
		if st.Failed != nil {
			text += fmt.Sprintf("; the attempt of %s failed: %v", st.At.UTC().Format(time.RFC3339), st.Failed)
		}
		if st.Late(now) || st.Failed != nil {
			text = "warning: " + text
		}
		out = append(out, text)
		out = append(append(out, copyNotes(st, now)...), nodeCopyNotes(st, s.keepers(), now)...)
	}
	if s.restored.File != "" && s.cfg.Now().Sub(s.restored.At) < restoredNews {
		out = append(out, fmt.Sprintf("this server was restored at %s from the backup of %s; what happened between is not on record", s.restored.At.UTC().Format(time.RFC3339), s.restored.Backup.UTC().Format(time.RFC3339)))
	}
	return out
}
