package serverapi

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// codeNotLost is the reason code when etcd need not or cannot go on with one voter, or out of a
// snapshot.
const codeNotLost = "etcd-not-lost"

// codeTooLate is the reason code when a restore cannot be called off.
const codeTooLate = "etcd-restore-acts"

// sha256RE is a SHA-256 as it is on the wire.
var sha256RE = regexp.MustCompile("^[0-9a-f]{64}$")

func wireSnapshot(s coordinator.Snapshot) *api.EtcdSnapshot {
	return &api.EtcdSnapshot{Sha256: s.SHA256, Size: s.Size}
}

// snapshotOf checks what a person says of a file.
func snapshotOf(m *api.EtcdSnapshot) (coordinator.Snapshot, error) {
	if !sha256RE.MatchString(m.GetSha256()) {
		return coordinator.Snapshot{}, errors.New("the snapshot's SHA-256 is not 64 hexadecimal digits")
	}
	if m.GetSize() == 0 || m.GetSize() > nodeapi.SnapshotMax {
		return coordinator.Snapshot{}, fmt.Errorf("the snapshot has %d bytes; from 1 to %d are taken", m.GetSize(), uint64(nodeapi.SnapshotMax))
	}
	return coordinator.Snapshot{SHA256: m.GetSha256(), Size: m.GetSize()}, nil
}

// snapshotWords is what a restore out of a snapshot does, for who is to agree and for the log.
func snapshotWords(r *api.RestoreEtcdRequest) string {
	what := fmt.Sprintf("have etcd begin anew on %s out of the snapshot with SHA-256 %.64s", r.GetMachine(), words(r.GetSnapshot().GetSha256()))
	if len(r.GetLost()) > 0 {
		what += ", without " + strings.Join(r.GetLost(), ", ")
	}
	if r.GetGiveUpData() {
		what += ", giving up the data that etcd has now"
	}
	return what
}

// RestoreEtcd implements apiconnect.OperatorServiceHandler. It stores what is wanted; the
// machine does it when it is told so.
func (s operators) RestoreEtcd(ctx context.Context, req *connect.Request[api.RestoreEtcdRequest]) (*connect.Response[api.RestoreEtcdResponse], error) {
	name, lost := req.Msg.GetMachine(), req.Msg.GetLost()
	if name == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say which voter etcd is to go on with"))
	}
	if req.Msg.GetCancel() {
		return s.callOff(ctx, req.Msg)
	}
	var from coordinator.Snapshot
	if f := req.Msg.GetSnapshot(); f != nil {
		var err error
		if from, err = snapshotOf(f); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
	} else if req.Msg.GetGiveUpData() {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("data is given up for a snapshot only"))
	}
	if _, _, err := s.decide(ctx); err != nil {
		return nil, s.storing("", err)
	}
	id, err := s.newID()
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := s.refresh()
	var stored coordinator.Choices
	message := fmt.Sprintf("it goes on as etcd's only member when it calls next; imagectl etcd status says how far that is. Then install the others anew: imagectl machines arm %s --reinstall", strings.Join(lost, " "))
	detail := "it goes on as the only member, without " + strings.Join(lost, ", ")
	if req.Msg.GetSnapshot() != nil {
		message, detail = "it begins anew as etcd's only member, when it has the snapshot; imagectl etcd status says how far that is", snapshotWords(req.Msg)
	}
	outcome := s.one(ctx, name, message, func(c *change, m *store.Machine) error {
		stored = coordinator.Choices{}
		if _, err := c.tx.Value(valueChoices, &stored); err != nil {
			return err
		}
		ask := func() (coordinator.Choices, string) { return coordinator.AskAlone(nodes, stored, m.Name, lost, id) }
		if req.Msg.GetSnapshot() != nil {
			ask = func() (coordinator.Choices, string) {
				return coordinator.AskSnapshot(nodes, stored, m.Name, lost, from, req.Msg.GetGiveUpData(), id)
			}
		}
		next, why := ask()
		if why != "" {
			return &refusedError{codeNotLost, why}
		}
		if next.Equal(stored) {
			return nil // asked before
		}
		stored = next
		c.log(audit.Entry{Action: "etcd-restore-asked", Machine: m.Name, Detail: reasoned(detail, req.Msg.GetReason())})
		return c.tx.PutValue(valueChoices, next)
	})
	if outcome.GetOk() {
		s.choices = stored
		s.board.wake()
	}
	return connect.NewResponse(&api.RestoreEtcdResponse{Outcome: outcome}), nil
}

// callOff takes back what RestoreEtcd has stored, as long as no machine was told to do anything that
// cannot be taken back.
func (s operators) callOff(ctx context.Context, r *api.RestoreEtcdRequest) (*connect.Response[api.RestoreEtcdResponse], error) {
	if len(r.GetLost()) > 0 || r.GetSnapshot() != nil || r.GetGiveUpData() {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("calling off a restore takes the machine and a reason, and nothing else"))
	}
	if _, _, err := s.decide(ctx); err != nil {
		return nil, s.storing("", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := s.refresh()
	var stored coordinator.Choices
	outcome := s.one(ctx, r.GetMachine(), "the restore is called off, and etcd goes on with what it has; disarm whom you have armed for it", func(c *change, m *store.Machine) error {
		stored = coordinator.Choices{}
		if _, err := c.tx.Value(valueChoices, &stored); err != nil {
			return err
		}
		next, why := coordinator.CallOff(nodes, stored, m.Name)
		if why != "" {
			return &refusedError{codeTooLate, why}
		}
		detail := fmt.Sprintf("out of the snapshot with SHA-256 %.64s", words(stored.EtcdSnapshot.SHA256))
		stored = next
		c.log(audit.Entry{Action: "etcd-restore-called-off", Machine: m.Name, Detail: reasoned(detail, r.GetReason())})
		return c.tx.PutValue(valueChoices, next)
	})
	if outcome.GetOk() {
		s.choices = stored
		s.board.wake()
	}
	return connect.NewResponse(&api.RestoreEtcdResponse{Outcome: outcome}), nil
}
