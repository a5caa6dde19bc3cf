package serverapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// digested is what an entry says of a call.
func digested(t *testing.T, procedure string, m proto.Message) string {
	t.Helper()
	d, err := digestOfCall(procedure, m)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// An entry names the call that it comes of with all that it said, and says that it was done; what
// the server decides by itself names none.
func TestEntriesNameTheirCall(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	arm := &api.ArmMachineRequest{Selection: &api.Selection{Names: []string{"w1"}}}
	if _, err := r.operator(pki.RoleOperator).ArmMachine(t.Context(), connect.NewRequest(arm)); err != nil {
		t.Fatal(err)
	}
	armed := r.audited("machine-armed")
	if len(armed) != 1 || armed[0].Arguments != digested(t, apiconnect.OperatorServiceArmMachineProcedure, arm) || armed[0].Result != audit.Done {
		t.Errorf("got %+v", armed)
	}
	other := proto.CloneOf(arm)
	other.Selection.Names = []string{"cp1"}
	if digested(t, apiconnect.OperatorServiceArmMachineProcedure, other) == armed[0].Arguments || digested(t, apiconnect.OperatorServiceDisarmMachineProcedure, arm) == armed[0].Arguments {
		t.Error("other calls have the same digest")
	}
	cp := r.approvedMachine("cp1", "52:54:00:00:00:01")
	for _, action := range []string{"enrol-asked", "key-approved"} {
		if e := r.audited(action); len(e) == 0 || len(e[0].Arguments) != 64 || e[0].Result != audit.Done {
			t.Errorf("%s: %+v", action, e)
		}
	}
	// Its first report has the server choose who starts etcd.
	r.arm("cp1", false)
	cp.install()
	cp.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE})
	for _, action := range []string{"machine-listed", "cluster-choice"} {
		all := r.audited(action)
		if len(all) == 0 {
			t.Errorf("there is no %s", action)
		}
		for _, e := range all {
			if e.Arguments != "" || e.Result != "" {
				t.Errorf("%s names a call: %+v", action, e)
			}
		}
	}
	// A stream of answers begins with a message too.
	s, err := r.operator(pki.RoleBackup).BackupServer(t.Context(), connect.NewRequest(&api.BackupServerRequest{Send: true}))
	if err != nil {
		t.Fatal(err)
	}
	for s.Receive() {
	}
	_ = s.Close()
	want := digested(t, apiconnect.OperatorServiceBackupServerProcedure, &api.BackupServerRequest{Send: true})
	if e := append(r.audited("server-backup"), r.audited(actionRefused)...); len(e) != 1 || e[0].Arguments != want {
		t.Errorf("a backup: %+v, want %s", e, want)
	}
}

// What somebody was refused, or could not have, is in the log with who it was, what was asked and
// why it came to nothing.
func TestRefusedCallsAreInTheLog(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	arm := func(name string) *api.ArmMachineRequest {
		return &api.ArmMachineRequest{Selection: &api.Selection{Names: []string{name}}}
	}
	armOf := func(name string) string { return digested(t, apiconnect.OperatorServiceArmMachineProcedure, arm(name)) }
	machine := r.approvedMachine("w1", "52:54:00:00:00:02")
	const ada = "imagectl://demo/operator/ada"
	for _, c := range []struct {
		what string
		call func() error
		want audit.Entry
	}{
		{"a reader", func() error {
			_, err := r.operator(pki.RoleReader).ArmMachine(t.Context(), connect.NewRequest(arm("w1")))
			return err
		}, audit.Entry{Action: "call-refused", Actor: audit.Actor{Subject: ada}, Detail: "ArmMachine: operator ada with role reader may not call /imagectl.v1.OperatorService/ArmMachine", Result: "permission_denied"}},
		{"a machine", func() error {
			_, err := apiconnect.NewOperatorServiceClient(r.client(machine.cert), r.url).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
			return err
		}, audit.Entry{Action: "call-refused", Actor: audit.Actor{Subject: "imagectl://demo/node/w1"}, Detail: "Status: node w1 may not call /imagectl.v1.OperatorService/Status", Result: "permission_denied"}},
		{"nobody", func() error {
			_, err := apiconnect.NewOperatorServiceClient(r.client(nil), r.url).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
			return err
		}, audit.Entry{Action: "call-refused", Detail: "Status: /imagectl.v1.OperatorService/Status needs a client certificate of cluster demo", Result: "unauthenticated"}},
		{"nobody, with a story to tell", func() error {
			resp, err := r.client(nil).Post(r.url+"/ada-was-here", "application/json", strings.NewReader("{}"))
			if err == nil {
				resp.Body.Close()
			}
			return connect.NewError(connect.CodeUnknown, err)
		}, audit.Entry{Action: "call-refused", Detail: "what is not here", Result: "unauthenticated"}},
		{"a wish about no machine", func() error {
			_, err := r.operator(pki.RoleOperator).ArmMachine(t.Context(), connect.NewRequest(arm("w9")))
			return err
		}, audit.Entry{Action: "call-refused", Actor: audit.Actor{Subject: ada}, Detail: "w9: ArmMachine: there is no machine w9; imagectl machines ls shows them", Arguments: armOf("w9"), Result: "no-such-machine"}},
		{"a wrong code", func() error {
			resp, err := r.operator(pki.RoleOperator).ApproveMachine(t.Context(), connect.NewRequest(&api.ApproveMachineRequest{Selection: &api.Selection{Names: []string{"cp1"}}, Codes: map[string]string{"cp1": "0000-0000-0000"}}))
			if err == nil && resp.Msg.GetOutcomes()[0].GetOk() {
				t.Error("it was approved")
			}
			return err
		}, audit.Entry{Action: "call-refused", Actor: audit.Actor{Subject: ada}, Machine: "cp1", Detail: "ApproveMachine: cp1 has not asked yet; boot it and wait for its code",
			Arguments: digested(t, apiconnect.OperatorServiceApproveMachineProcedure, &api.ApproveMachineRequest{Selection: &api.Selection{Names: []string{"cp1"}}, Codes: map[string]string{"cp1": "0000-0000-0000"}}), Result: "nothing-pending"}},
		{"no machines named", func() error {
			_, err := r.operator(pki.RoleOperator).RetireMachine(t.Context(), connect.NewRequest(&api.RetireMachineRequest{Selection: &api.Selection{All: true}}))
			return err
		}, audit.Entry{Action: "call-refused", Actor: audit.Actor{Subject: ada}, Detail: "RetireMachine: name the machines to retire; there is no way back",
			Arguments: digested(t, apiconnect.OperatorServiceRetireMachineProcedure, &api.RetireMachineRequest{Selection: &api.Selection{All: true}}), Result: "invalid_argument"}},
	} {
		before := len(r.audited(c.want.Action))
		err := c.call()
		got := r.audited(c.want.Action)[before:]
		if len(got) != 1 {
			t.Errorf("%s (%v): %d entries: %+v", c.what, err, len(got), got)
			continue
		}
		e := got[0]
		if e.Actor.Source != "127.0.0.1" || (e.Actor.Serial == "") != (e.Actor.Subject == "") {
			t.Errorf("%s: %+v", c.what, e.Actor)
		}
		e.Time, e.Actor.Source, e.Actor.Serial = time.Time{}, "", ""
		if diff := cmp.Diff(c.want, e); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.what, diff)
		}
	}
	// Who only looks is in no log, and neither is that there was nothing to see.
	before := len(r.audited(actionRefused))
	if _, err := r.operator(pki.RoleReader).Why(t.Context(), connect.NewRequest(&api.WhyRequest{Machine: "w1"})); err == nil {
		t.Error("a server that boots nobody explains")
	}
	if n := len(r.audited(actionRefused)); n != before {
		t.Errorf("%d entries about a look", n-before)
	}
}

// A person whose certificate was revoked, or has ended on an open connection, is named.
func TestWhoIsRevokedOrLateIsNamed(t *testing.T) {
	t.Parallel()
	c := newClock()
	cfg := config(cp1())
	cfg.Now = c.Now
	r := start(t, cfg)
	status := func(o apiconnect.OperatorServiceClient) {
		t.Helper()
		if _, err := o.Status(t.Context(), connect.NewRequest(&api.StatusRequest{})); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("got %v", err)
		}
	}
	late := r.operator(pki.RoleAdmin)
	if _, err := late.Status(t.Context(), connect.NewRequest(&api.StatusRequest{})); err != nil {
		t.Fatal(err)
	}
	c.pass(1000 * time.Hour)
	status(late)
	e := r.audited(actionRefused)
	if len(e) != 1 || e[0].Actor.Subject != "imagectl://demo/operator/ada" || e[0].Actor.Serial == "" || !strings.HasPrefix(e[0].Detail, "Status: the client certificate expired at ") {
		t.Fatalf("late: %+v", e)
	}
	revoked := r.operator(pki.RoleAdmin)
	var serial string
	for _, v := range r.certificates() {
		if v.GetHolder() == "operator/ada" && v.GetRevokedAt() == nil {
			serial = v.GetSerial()
			r.revokeSerials(serial)
		}
	}
	before := len(r.audited(actionRefused))
	status(revoked)
	if e := r.audited(actionRefused)[before:]; len(e) != 1 || e[0].Actor.Subject != "imagectl://demo/operator/ada" || !strings.Contains(e[0].Detail, "revoked") {
		t.Errorf("revoked: %+v", e)
	}
}

// A stranger makes the log longer by a few entries an hour, however often it calls, and does not
// keep a person's refusals out of it.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	t.Parallel()
	c := newClock()
	cfg := config(cp1())
	cfg.Now = c.Now
	r := start(t, cfg)
	knock := func(times int) {
		t.Helper()
		o := apiconnect.NewOperatorServiceClient(r.client(nil), r.url)
		for range times {
			if _, err := o.Status(t.Context(), connect.NewRequest(&api.StatusRequest{})); connect.CodeOf(err) != connect.CodeUnauthenticated {
				t.Fatalf("got %v", err)
			}
		}
	}
	knock(5 * strangersBurst)
	if n := len(r.audited(actionRefused)); n != strangersBurst {
		t.Fatalf("%d entries, want %d", n, strangersBurst)
	}
	if _, err := r.operator(pki.RoleReader).ArmMachine(t.Context(), connect.NewRequest(&api.ArmMachineRequest{})); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Fatal(err)
	}
	if e := r.audited(actionRefused); len(e) != strangersBurst+1 || e[strangersBurst].Actor.Subject != "imagectl://demo/operator/ada" {
		t.Errorf("a person's refusal: %+v", e[strangersBurst:])
	}
	c.pass(strangersEvery)
	knock(3)
	e := r.audited(actionRefused)
	want := fmt.Sprintf("Status: /imagectl.v1.OperatorService/Status needs a client certificate of cluster demo (%d like it before are not in this log)", 4*strangersBurst)
	if len(e) != strangersBurst+2 || e[len(e)-1].Detail != want {
		t.Errorf("an hour later: %+v\nwant %s", e[strangersBurst+1:], want)
	}
}

// asks is a node that has a file and packets.
type asks struct{ *looked }

func (a *asks) System() nodeapi.System   { return a }
func (*asks) Record(audit.Entry) error   { return nil }
func (*asks) Match(string) (no []string) { return nil }
func (a *asks) Open(name string) (io.ReadCloser, error) {
	if name != "/etc/hosts" {
		return nil, fmt.Errorf("opening %s: %w", name, fs.ErrNotExist)
	}
	return io.NopCloser(strings.NewReader(strings.Repeat("127.0.0.1 localhost\n", 10_000))), nil
}
func (*asks) Capture(_ context.Context, _ *api.CaptureRequest, _ [2]netip.AddrPort, w io.Writer) (*api.CaptureEnd, error) {
	_, err := w.Write([]byte("pcap"))
	return &api.CaptureEnd{Packets: 1}, err
}

// The log says which file was read and which packets, before the node hears of it, and what became
// of the call after, in whatever protocol it was made.
func TestTheLogSaysWhatNodesWereAskedAndAnswered(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	machine := r.approvedMachine("cp1", "52:54:00:00:00:01")
	r.nodePort = r.serveNode(machine.cert, &asks{looked: &looked{left: make(chan struct{})}})
	read := func(c apiconnect.NodeServiceClient, file string) (n int, err error) {
		s, err := c.ReadFile(t.Context(), connect.NewRequest(&api.ReadFileRequest{Path: file}))
		if err != nil {
			return 0, err
		}
		for s.Receive() {
			n += len(s.Msg().GetChunk())
		}
		err = s.Err()
		_ = s.Close()
		return n, err
	}
	last := func(what string) (called, answered audit.Entry) {
		t.Helper()
		c, a := r.audited("node-called"), r.audited("node-answered")
		if len(c) == 0 || len(a) != len(c) {
			t.Fatalf("%s: %d calls, %d answers", what, len(c), len(a))
		}
		called, answered = c[len(c)-1], a[len(a)-1]
		if called.Result != "" || called.Arguments != answered.Arguments || called.Actor != answered.Actor || called.Machine != "cp1" || answered.Machine != "cp1" {
			t.Errorf("%s: called %+v, answered %+v", what, called, answered)
		}
		return called, answered
	}
	for protocol, options := range map[string][]connect.ClientOption{
		"Connect": nil, "gRPC": {connect.WithGRPC()}, "gRPC-Web": {connect.WithGRPCWeb()},
		"Connect, JSON": {connect.WithProtoJSON()}, "gRPC-Web, JSON": {connect.WithGRPCWeb(), connect.WithProtoJSON()},
		"Connect, compressed": {connect.WithSendGzip()}, "gRPC, compressed": {connect.WithGRPC(), connect.WithSendGzip()},
	} {
		c := r.through(pki.RoleOperator, to("cp1"), options...)
		if n, err := read(c, "/etc/hosts"); err != nil || n != 200_000 {
			t.Fatalf("%s: %d bytes, %v", protocol, n, err)
		}
		called, answered := last(protocol)
		if want := digested(t, apiconnect.NodeServiceReadFileProcedure, &api.ReadFileRequest{Path: "/etc/hosts"}); called.Arguments != want || called.Detail != "ReadFile /etc/hosts" ||
			answered.Result != audit.Done || !strings.HasPrefix(answered.Detail, "ReadFile /etc/hosts: ") {
			t.Errorf("%s: called %+v, answered %+v", protocol, called, answered)
		}
		if _, err := read(c, "/etc/shadow\n"); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", protocol, err)
		}
		if called, answered := last(protocol); called.Detail != `ReadFile "/etc/shadow\n"` || answered.Result != "invalid_argument" {
			t.Errorf("%s, refused: called %+v, answered %+v", protocol, called, answered)
		}
		if _, err := c.Units(t.Context(), connect.NewRequest(&api.UnitsRequest{})); err != nil {
			t.Errorf("%s: %v", protocol, err)
		}
		if called, answered := last(protocol); called.Detail != "Units" || answered.Result != audit.Done {
			t.Errorf("%s, units: called %+v, answered %+v", protocol, called, answered)
		}
		// The node has a rule of its own about what nobody may send it.
		if _, err := c.Act(t.Context(), connect.NewRequest(&api.ActRequest{})); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%s: %v", protocol, err)
		}
	}
	c := r.through(pki.RoleOperator, to("cp1"))
	s, err := c.Capture(t.Context(), connect.NewRequest(&api.CaptureRequest{Link: "eth0", Seconds: 1, Host: "192.0.2.7", Port: 443, Protocol: "tcp"}))
	if err != nil {
		t.Fatal(err)
	}
	for s.Receive() {
	}
	_ = s.Close()
	if called, answered := last("capture"); called.Detail != "Capture on eth0 for 1s, at most 10000 packets and 16777216 bytes, protocol tcp, host 192.0.2.7, port 443" || answered.Result != audit.Done {
		t.Errorf("called %+v, answered %+v (%v)", called, answered, s.Err())
	}
	// Who goes away amid an answer.
	ctx, cancel := context.WithCancel(t.Context())
	d, err := c.Dmesg(ctx, connect.NewRequest(&api.DmesgRequest{Follow: true}))
	if err != nil || !d.Receive() {
		t.Fatal(err, d.Err())
	}
	cancel()
	_ = d.Close()
	r.soon("the end of what was followed", func() bool { return len(r.audited("node-answered")) == len(r.audited("node-called")) })
	if called, answered := last("followed"); called.Detail != "Dmesg following" || answered.Result != "canceled" {
		t.Errorf("called %+v, answered %+v", called, answered)
	}
	// A node that is not there, and words that are none.
	r.nodePort = "1"
	if _, err := c.Units(t.Context(), connect.NewRequest(&api.UnitsRequest{})); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Error(err)
	}
	if _, answered := last("not there"); answered.Result != "unavailable" {
		t.Errorf("got %+v", answered)
	}
	calls := len(r.audited("node-called"))
	cert, key, _, err := r.Operator(t.Context(), "ada", pki.RoleOperator)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for body, contentType := range map[string]string{
		"{": "application/json", "\xff\xff": "application/proto", "x": "text/plain", "\x00\x00": "application/connect+proto", "\x00\xff\xff\xff\xff": "application/grpc", "\x01\x00\x00\x00\x01x": "application/connect+json",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+apiconnect.NodeServiceReadFileProcedure, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = to("cp1")
		req.Header.Set("Content-Type", contentType)
		req.Header.Set("Connect-Content-Encoding", "br")
		resp, err := r.client(&pair).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Contains(b, []byte("reading what is asked of the node")) && !strings.Contains(resp.Header.Get("Grpc-Message"), "reading what is asked of the node") && resp.Trailer.Get("Grpc-Status") == "" && resp.StatusCode != http.StatusUnsupportedMediaType {
			t.Errorf("%s %q: %d %q %v, %v", contentType, body, resp.StatusCode, b, resp.Header, err)
		}
	}
	if n := len(r.audited("node-called")); n != calls {
		t.Errorf("%d calls went to a node that nobody could read", n-calls)
	}
}
