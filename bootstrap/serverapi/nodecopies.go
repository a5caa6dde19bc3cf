package serverapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/backup"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/machine"
)

// copyChunk is how much of a backup a message has: what the node API takes too.
const copyChunk = 48 << 10

// backupCopy is the newest good backup, signed, as control planes are to keep it; nil when
// there is none for them.
func (s *Server) backupCopy() (*api.BackupCopy, error) {
	if s.cfg.Backups == nil {
		return nil, nil
	}
	st := s.cfg.Backups.State()
	if st.Nodes == 0 || st.Good.Name == "" || st.Good.Size > files.MaxCopy {
		return nil, nil
	}
	c := s.copy.Load()
	if c == nil || c.Name != st.Good.Name || c.SHA256 != st.SHA256 {
		c = &files.Copy{Name: st.Good.Name, Size: st.Good.Size, SHA256: st.SHA256}
		var err error
		if c.Signature, err = s.signer().Attest(files.Domain, c.Statement(s.cfg.Cluster)); err != nil {
			return nil, err
		}
		s.copy.Store(c)
	}
	return &api.BackupCopy{Name: c.Name, Size: uint64(c.Size), Sha256: c.SHA256, Signature: c.Signature, Keep: uint32(st.Nodes)}, nil
}

// FetchBackup implements apiconnect.AgentServiceHandler.
func (s agents) FetchBackup(ctx context.Context, req *connect.Request[api.FetchBackupRequest], stream *connect.ServerStream[api.FetchBackupResponse]) error {
	from := callerOf(ctx)
	name := from.identity.Name
	if !s.isControlPlane(name) {
		return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s is no control plane", name))
	}
	c, err := s.backupCopy()
	if err != nil {
		return connect.NewError(connect.CodeInternal, err)
	}
	if c.GetName() != req.Msg.GetName() || c == nil {
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no backup %q for nodes to keep", req.Msg.GetName()))
	}
	last, _ := s.copied.Load(name)
	done, err := s.mayRead(name, last == c.GetName(), "a backup")
	if err != nil {
		return err
	}
	defer done()
	in, err := s.cfg.Backups.Open(c.GetName())
	if err != nil {
		return connect.NewError(connect.CodeNotFound, err)
	}
	defer in.Close()
	// One that asks again and again is no news each time.
	if last != c.GetName() {
		err := s.coordinate(ctx, from.actor(), func(change *change) error {
			if err := change.standing(from); err != nil {
				return err
			}
			change.log(audit.Entry{Action: "backup-copied", Machine: name, Detail: c.GetName()})
			return nil
		})
		if err != nil {
			return s.storing(name, err)
		}
		s.copied.Store(name, c.GetName())
	}
	for b := make([]byte, copyChunk); ; {
		n, err := io.ReadFull(in, b)
		if n > 0 {
			if err := stream.Send(&api.FetchBackupResponse{Chunk: b[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return connect.NewError(connect.CodeInternal, err)
		}
	}
}

// mayRead says whether a machine may read something that can be large; again: it was sent that
// before. It reads one such thing at a time, until it calls done.
func (s *Server) mayRead(name string, again bool, what string) (done func(), err error) {
	now := s.cfg.Now()
	if !s.reads.allow(name, now) || again && !s.rereads.allow(name, now) {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%s reads %s too often; what it was sent before it may read again every %s", name, what, rereadsEvery))
	}
	if _, busy := s.reading.LoadOrStore(name+" "+what, true); busy {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%s reads %s already", name, what))
	}
	return func() { s.reading.Delete(name + " " + what) }, nil
}

// keeps is what a control plane that runs said about its copies.
type keeps struct {
	name string
	// newest is the zero value when it keeps none.
	newest  files.File
	problem string
}

// keepers are the control planes that have called lately.
func (s *Server) keepers() []keeps {
	now := s.cfg.Now()
	var out []keeps
	for _, m := range s.cfg.Machines {
		r, ok := s.board.get(m.Name)
		if !m.ControlPlane || !ok || r.last.GetMode() != api.Mode_MODE_NODE || now.Sub(r.at) >= silence || s.cfg.Store.State(m.Name) == machine.Retired {
			continue
		}
		k := keeps{name: m.Name, problem: words(r.last.GetBackupProblem())}
		for _, name := range r.last.GetBackups() {
			if f, ok := files.Named(name, 0); ok && f.Cluster == s.cfg.Cluster && f.At.After(k.newest.At) {
				k.newest = f
			}
		}
		out = append(out, k)
	}
	return out
}

// nodeCopyNotes tell of the copies that control planes keep.
func nodeCopyNotes(st backup.State, all []keeps, now time.Time) []string {
	switch {
	case st.Nodes == 0 || st.Good.Name == "":
		return nil
	case st.Good.Size > files.MaxCopy:
		return []string{fmt.Sprintf("warning: the newest backup has %d MB, and nodes keep up to %d: no copy goes to control planes", st.Good.Size>>20, files.MaxCopy>>20)}
	}
	var out, have []string
	for _, k := range all {
		switch age := now.Sub(k.newest.At); {
		case k.newest.Name == st.Good.Name:
			have = append(have, k.name)
		case k.newest.Name != "" && age <= 2*st.Every && k.problem == "":
			out = append(out, fmt.Sprintf("the copy of a backup on %s is %s old", k.name, age.Round(time.Minute)))
		default:
			text := "warning: there is no copy of a backup on " + k.name
			if k.newest.Name != "" {
				text = fmt.Sprintf("warning: the copy of a backup on %s is %s old", k.name, age.Round(time.Minute))
			}
			if k.problem != "" {
				text += ": " + k.problem
			}
			out = append(out, text)
		}
	}
	if len(have) > 0 {
		out = append(out, "copies of the newest backup are on "+strings.Join(have, ", "))
	}
	return out
}
