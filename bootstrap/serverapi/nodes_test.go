package serverapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

type system = nodeapi.System

// looked is a node whose calls are those that this test makes; any other would panic.
type looked struct {
	nodeapi.Node
	system
	mu    sync.Mutex
	heard []nodeapi.Call
	// left is closed when who follows the kernel's log has gone.
	left chan struct{}
}

func (l *looked) System() nodeapi.System { return l }
func (l *looked) Heard(c nodeapi.Call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = append(l.heard, c)
}
func (l *looked) calls() []nodeapi.Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard
}
func (*looked) Units(context.Context, *api.UnitsRequest) (*api.UnitsResponse, error) {
	return &api.UnitsResponse{Units: []*api.NodeUnit{{Name: "kubelet.service"}}}, nil
}
func (l *looked) Dmesg(ctx context.Context, _ *api.DmesgRequest, send func(*api.DmesgResponse) error) error {
	if err := send(&api.DmesgResponse{Line: "one line, and no more for a long time"}); err != nil {
		return err
	}
	<-ctx.Done()
	close(l.left)
	return ctx.Err()
}

// serveNode serves the API of a node with some machine's certificate, and tells its port.
func (r *rig) serveNode(cert *tls.Certificate, n nodeapi.Node) (port string) {
	r.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	trust := nodeapi.Trust{Certificate: cert, ClientCA: r.CAPEM(), Cluster: "demo", Now: r.cfg.Now}
	go func() { done <- nodeapi.Serve(ctx, ln, func() (nodeapi.Trust, error) { return trust, nil }, n) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
	_, port, err = net.SplitHostPort(ln.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	return port
}

// through is a client that asks the server for a node.
func (r *rig) through(role pki.Role, header http.Header, options ...connect.ClientOption) apiconnect.NodeServiceClient {
	r.t.Helper()
	cert, key, _, err := r.Operator(r.t.Context(), "ada", role)
	if err != nil {
		r.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		r.t.Fatal(err)
	}
	c := r.client(&pair)
	c.Transport = withHeader{header, c.Transport}
	return apiconnect.NewNodeServiceClient(c, r.url, options...)
}

type withHeader struct {
	header http.Header
	next   http.RoundTripper
}

func (h withHeader) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for k, v := range h.header {
		r.Header[k] = v
	}
	return h.next.RoundTrip(r)
}

func to(name string) http.Header { return http.Header{nodeapi.HeaderNode: {name}} }

// Who has no route to a node asks the server; the node sees who it is, and both have it in
// their logs.
func TestCallsArePassedOnToNodes(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	machine := r.approvedMachine("cp1", "52:54:00:00:00:01")
	node := &looked{left: make(chan struct{})}
	r.nodePort = r.serveNode(machine.cert, node)

	resp, err := r.through(pki.RoleReader, to("cp1")).Units(t.Context(), connect.NewRequest(&api.UnitsRequest{}))
	if err != nil || resp.Msg.GetUnits()[0].GetName() != "kubelet.service" {
		t.Fatalf("got %v, %v", resp, err)
	}
	own, err := r.own.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	heard := node.calls()
	if len(heard) != 1 || heard[0].Subject != "imagectl://demo/operator/ada" || heard[0].Source != "127.0.0.1" || heard[0].Via != pki.Serial(own.Leaf) {
		t.Errorf("the node heard %+v", heard)
	}
	entries := r.audited("node-called")
	if len(entries) != 1 || entries[0].Machine != "cp1" || entries[0].Detail != "Units" || entries[0].Actor.Subject != "imagectl://demo/operator/ada" || entries[0].Actor.Serial != heard[0].Serial || entries[0].Actor.Serial == "" {
		t.Errorf("the log has %+v", entries)
	}

	// What somebody says of himself counts for nothing.
	h := to("cp1")
	nodeapi.SetCaller(h, []*x509.Certificate{machine.cert.Leaf}, "192.0.2.9")
	if _, err := r.through(pki.RoleReader, h).Units(t.Context(), connect.NewRequest(&api.UnitsRequest{})); err != nil {
		t.Error(err)
	}
	if heard := node.calls(); len(heard) != 2 || heard[1].Subject != "imagectl://demo/operator/ada" || heard[1].Source != "127.0.0.1" {
		t.Errorf("the node heard %+v", heard[1:])
	}

	// A line comes while the call goes on, and the node notices who leaves.
	ctx, cancel := context.WithCancel(t.Context())
	s, err := r.through(pki.RoleReader, to("cp1")).Dmesg(ctx, connect.NewRequest(&api.DmesgRequest{Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	if !s.Receive() || s.Msg().GetLine() != "one line, and no more for a long time" {
		t.Fatalf("got %v, %v", s.Msg(), s.Err())
	}
	cancel()
	<-node.left
	_ = s.Close()
}

func TestCallsThatAreNotPassedOn(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	machine, other := r.approvedMachine("cp1", "52:54:00:00:00:01"), r.approvedMachine("w1", "52:54:00:00:00:02")
	node := &looked{left: make(chan struct{})}
	r.nodePort = r.serveNode(machine.cert, node)
	units := func(role pki.Role, h http.Header) error {
		_, err := r.through(role, h).Units(t.Context(), connect.NewRequest(&api.UnitsRequest{}))
		return err
	}
	said := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	said(units(pki.RoleBackup, to("cp1")), "permission_denied: operator ada with role backup may not call /imagectl.v1.NodeService/Units")
	said(units(pki.RoleReader, nil), "invalid_argument: the header Imagectl-Node does not name a node")
	said(units(pki.RoleReader, to("cp9")), `not_found: cluster.yaml has no machine "cp9"`)
	said(units(pki.RoleReader, to("w1")), "failed_precondition: no address of w1 is known")
	_, err := r.through(pki.RoleAdmin, to("cp1")).AuditHeads(t.Context(), connect.NewRequest(&api.AuditHeadsRequest{}))
	said(err, "permission_denied: operator ada with role admin may not call /imagectl.v1.NodeService/AuditHeads")
	s, err := r.through(pki.RoleReader, to("cp1")).Capture(t.Context(), connect.NewRequest(&api.CaptureRequest{Link: "lo"}))
	if err != nil {
		t.Fatal(err)
	}
	s.Receive()
	said(s.Err(), "permission_denied: operator ada with role reader may not call /imagectl.v1.NodeService/Capture")
	_ = s.Close()

	// Another machine of the cluster has the address now, and one that nobody has.
	r.nodePort = r.serveNode(other.cert, node)
	said(units(pki.RoleReader, to("cp1")), "unavailable: the server calls cp1 at 127.0.0.1:"+r.nodePort+": ")
	// The machine itself, whose key was replaced meanwhile.
	r.nodePort = r.serveNode(machine.cert, node)
	if err := units(pki.RoleReader, to("cp1")); err != nil {
		t.Fatal(err)
	}
	next := r.machine("52:54:00:00:00:01")
	next.enrol()
	if o := r.approve("cp1", next.console(), true); !o.GetOk() {
		t.Fatal(o)
	}
	said(units(pki.RoleReader, to("cp1")), "unavailable: the server calls cp1 at 127.0.0.1:"+r.nodePort+": ")
	if heard := node.calls(); len(heard) != 1 {
		t.Errorf("nodes heard %+v", heard)
	}
}

func TestNoMoreCallsToNodesThanThereIsRoomFor(t *testing.T) {
	t.Parallel()
	n := &nodes{calls: map[string]int{}}
	var leave []func()
	enter := func(who string) error {
		l, err := n.enter(who)
		if err == nil {
			leave = append(leave, l)
		}
		return err
	}
	for i := range nodeCallsEach {
		if err := enter("ada"); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	want := "resource_exhausted: the server passes on 16 calls to nodes, 16 of them yours; it takes 64 and 16: end one"
	if err := enter("ada"); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	for i := nodeCallsEach; i < nodeCalls; i++ {
		if err := enter(fmt.Sprint("person", i)); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	var ce *connect.Error
	if err := enter("eve"); !errors.As(err, &ce) || ce.Code() != connect.CodeResourceExhausted {
		t.Errorf("got %v", err)
	}
	for _, l := range leave {
		l()
	}
	if n.all != 0 || len(n.calls) != 0 {
		t.Errorf("places are left taken: %d, %v", n.all, n.calls)
	}
}
