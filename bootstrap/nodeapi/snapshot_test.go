package nodeapi

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// place is where a fake node keeps a snapshot.
type place struct {
	bytes.Buffer
	refuses      error
	kept, closed bool
}

func (p *place) Write(b []byte) (int, error) {
	if p.refuses != nil {
		return 0, p.refuses
	}
	return p.Buffer.Write(b)
}
func (p *place) Keep() error  { p.kept = true; return nil }
func (p *place) Close() error { p.closed = true; return nil }

// put sends parts of a snapshot.
func put(t *testing.T, c apiconnect.NodeServiceClient, sum string, parts ...string) (*api.PutEtcdSnapshotResponse, error) {
	t.Helper()
	s := c.PutEtcdSnapshot(t.Context())
	err := s.Send(&api.PutEtcdSnapshotRequest{Sha256: sum})
	for _, p := range parts {
		if err == nil {
			err = s.Send(&api.PutEtcdSnapshotRequest{Chunk: []byte(p)})
		}
	}
	resp, err := s.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// A node takes the snapshot that the server has told it of, when its log has who sends it, and
// keeps nothing of any other.
func TestANodeTakesTheSnapshotThatItWasToldOf(t *testing.T) {
	t.Parallel()
	armed := strings.Repeat("a", 64)
	var p *place
	node := fake{record: &record{}, takes: func(sum string) (Incoming, error) {
		if sum != armed {
			return nil, ErrNotArmed
		}
		return p, nil
	}}
	l := newLabOf(t, node)
	c := l.client(l.cert(l.ca, l.profile("operator", pki.RoleAdmin)))

	for name, tc := range map[string]struct {
		sum, want string
		code      connect.Code
	}{
		"another":        {strings.Repeat("b", 64), "has not told this node to begin anew", connect.CodeFailedPrecondition},
		"none":           {"", "is not 64 hexadecimal digits", connect.CodeInvalidArgument},
		"a path":         {"../../etc/kubernetes/admin.conf", "is not 64 hexadecimal digits", connect.CodeInvalidArgument},
		"capitals":       {strings.Repeat("A", 64), "is not 64 hexadecimal digits", connect.CodeInvalidArgument},
		"with an ending": {armed + "0", "is not 64 hexadecimal digits", connect.CodeInvalidArgument},
	} {
		if _, err := put(t, c, tc.sum, "data"); connect.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(node.record.entries) != 0 {
		t.Errorf("the log has %v", node.record.entries)
	}

	p = &place{}
	large := strings.Repeat("x", chunkSize)
	if resp, err := put(t, c, armed, large, large, "end"); err != nil || resp.GetThere() {
		t.Fatalf("%v %v", resp, err)
	}
	if !p.kept || !p.closed || p.String() != large+large+"end" {
		t.Errorf("kept %v, closed %v, %d bytes", p.kept, p.closed, p.Len())
	}
	if e := node.record.entries[0]; e.Action != "etcd-snapshot-taken" || e.Detail != "SHA-256 "+armed || e.Actor.Subject != "imagectl://lab/operator/jo@example.org" {
		t.Errorf("the log has %+v", e)
	}

	p = &place{refuses: errors.New("it has more than the 3 bytes that were announced")}
	if _, err := put(t, c, armed, "data"); connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "more than the 3 bytes") || p.kept || !p.closed {
		t.Errorf("too much: %v, kept %v, closed %v", err, p.kept, p.closed)
	}

	// Who goes away in the middle leaves nothing behind.
	p = &place{}
	broken := c.PutEtcdSnapshot(t.Context())
	if err := errors.Join(broken.Send(&api.PutEtcdSnapshotRequest{Sha256: armed}), broken.Send(&api.PutEtcdSnapshotRequest{Chunk: make([]byte, 70<<10)})); err != nil && !strings.Contains(err.Error(), "EOF") {
		t.Error(err)
	}
	if _, err := broken.CloseAndReceive(); err == nil || p.kept || !p.closed {
		t.Errorf("a message that is too large: %v, kept %v, closed %v", err, p.kept, p.closed)
	}

	p = &place{}
	node.record.mu.Lock()
	node.record.fails = errors.New("disk full")
	node.record.mu.Unlock()
	if _, err := put(t, c, armed, "data"); connect.CodeOf(err) != connect.CodeInternal || p.Len() > 0 || p.kept || !p.closed {
		t.Errorf("without a log: %v, %d bytes", err, p.Len())
	}
}

// Who asks for it is told up to where the member has everything, before anything of the database; and
// where no quorum confirms that, gets nothing of it, and the node's log has nothing.
func TestAConfirmedSnapshotSaysItsRevision(t *testing.T) {
	t.Parallel()
	for _, behind := range []error{nil, errors.New("etcdserver: request timed out")} {
		node := fake{record: &record{}, behind: behind}
		l := newLabOf(t, node)
		c := l.client(l.cert(l.ca, l.profile("operator", pki.RoleAdmin)))
		s, err := c.EtcdSnapshot(t.Context(), connect.NewRequest(&api.EtcdSnapshotRequest{Confirmed: true}))
		if err != nil {
			t.Fatal(err)
		}
		var got []*api.EtcdSnapshotResponse
		n := 0
		for s.Receive() {
			n += len(s.Msg().GetChunk())
			got = append(got, proto.CloneOf(s.Msg()))
		}
		err = s.Err()
		_ = s.Close()
		if behind != nil {
			if connect.CodeOf(err) != connect.CodeFailedPrecondition || len(got) > 0 || len(node.record.entries) > 0 {
				t.Errorf("%v, %d messages, log %v", err, len(got), node.record.entries)
			}
			continue
		}
		if err != nil || n != snapshotChunk*3/2 || got[0].GetRevision() != 4711 || got[0].GetMemberId() != "abc" || len(got[0].GetChunk()) > 0 || got[1].GetRevision() != 0 {
			t.Errorf("%v, %d bytes, first %v", err, n, got[0])
		}
	}
}
