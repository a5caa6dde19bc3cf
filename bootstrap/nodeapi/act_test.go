package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// deeds are what a fake node was made to do, in order with its log.
type deeds struct {
	mu   sync.Mutex
	done []string
	// refuses is why the node does not want to be rebooted.
	refuses error
}

func (d *deeds) add(what string) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.done = append(d.done, what)
}

func (f fake) EtcdStatus(context.Context) (*api.EtcdStatusResponse, error) {
	return &api.EtcdStatusResponse{Members: []*api.EtcdMemberStatus{{Name: "cp1"}}}, nil
}

func (f fake) EtcdRevision(context.Context) (int64, string, error) {
	if f.behind != nil {
		return 0, "", f.behind
	}
	return 4711, "abc", nil
}

func (f fake) EtcdSnapshot(context.Context) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(strings.Repeat("x", snapshotChunk*3/2))), nil
}

func (f fake) TakeEtcdSnapshot(sum string) (Incoming, error) {
	if f.takes == nil {
		return nil, nil
	}
	return f.takes(sum)
}

func (f fake) MayAct(_ context.Context, _ api.Order_Kind, force bool) error {
	if f.deeds == nil || force {
		return nil
	}
	return f.deeds.refuses
}

func (f fake) Act(_ context.Context, kind api.Order_Kind) error {
	if f.record != nil {
		f.record.mu.Lock()
		defer f.record.mu.Unlock()
		f.deeds.add(fmt.Sprintf("%s after %d entries", kind, len(f.record.entries)))
	}
	return nil
}

// callActing makes one of the calls of act.go.
func callActing(c apiconnect.NodeServiceClient, procedure string) error {
	ctx := context.Background()
	switch procedure {
	case apiconnect.NodeServiceEtcdStatusProcedure:
		_, err := c.EtcdStatus(ctx, connect.NewRequest(&api.EtcdStatusRequest{}))
		return err
	case apiconnect.NodeServiceActProcedure:
		_, err := c.Act(ctx, connect.NewRequest(&api.ActRequest{Kind: api.Order_KIND_REBOOT}))
		return err
	case apiconnect.NodeServiceEtcdSnapshotProcedure:
		s, err := c.EtcdSnapshot(ctx, connect.NewRequest(&api.EtcdSnapshotRequest{}))
		if err != nil {
			return err
		}
		defer s.Close()
		n := 0
		for s.Receive() {
			n += len(s.Msg().GetChunk())
		}
		if s.Err() == nil && n != snapshotChunk*3/2 {
			return fmt.Errorf("%d bytes", n)
		}
		return s.Err()
	}
	return fmt.Errorf("the test does not know %s", procedure)
}

// The node's log has who did it before it is done; what it refuses or cannot write down is not
// done.
func TestActingIsRecordedFirst(t *testing.T) {
	t.Parallel()
	node := fake{record: &record{}, deeds: &deeds{refuses: errors.New("it is the only etcd voter")}}
	l := newLabOf(t, node)
	c := l.client(l.cert(l.ca, l.profile("operator", pki.RoleOperator)))
	act := func(kind api.Order_Kind, force bool) error {
		_, err := c.Act(t.Context(), connect.NewRequest(&api.ActRequest{Kind: kind, Reason: "new kernel", Force: force}))
		return err
	}
	if err := act(api.Order_KIND_REBOOT, false); connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "it is the only etcd voter") {
		t.Errorf("refused: %v", err)
	}
	if err := act(api.Order_KIND_UNSPECIFIED, true); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("nothing: %v", err)
	}
	if len(node.record.entries) > 0 || len(node.deeds.done) > 0 {
		t.Fatalf("%v %v", node.record.entries, node.deeds.done)
	}
	if err := act(api.Order_KIND_REBOOT, true); err != nil {
		t.Fatal(err)
	}
	if got := node.deeds.done; !slices.Equal(got, []string{"KIND_REBOOT after 1 entries"}) {
		t.Errorf("done: %v", got)
	}
	e := node.record.entries[0]
	if e.Action != "reboot" || e.Detail != "forced; new kernel" || e.Actor.Subject != "imagectl://lab/operator/jo@example.org" || e.Actor.Serial == "" || e.Actor.Source != "127.0.0.1" {
		t.Errorf("the log says %+v", e)
	}
	node.record.fails = errors.New("disk full")
	if err := act(api.Order_KIND_SHUTDOWN, true); connect.CodeOf(err) != connect.CodeInternal || len(node.deeds.done) != 1 {
		t.Errorf("without a log: %v %v", err, node.deeds.done)
	}
	admin := l.client(l.cert(l.ca, l.profile("operator", pki.RoleAdmin)))
	if err := callActing(admin, apiconnect.NodeServiceEtcdSnapshotProcedure); connect.CodeOf(err) != connect.CodeInternal {
		t.Errorf("a snapshot without a log: %v", err)
	}
}
