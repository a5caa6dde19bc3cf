package nodeapi

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// client is the generated one, and all that a call needs that only has a name.
type client struct {
	apiconnect.NodeServiceClient
	http *http.Client
	url  string
}

// methods are the service's, by procedure, out of the wire contract itself.
func methods() map[string]protoreflect.MethodDescriptor {
	out := map[string]protoreflect.MethodDescriptor{}
	s := api.File_imagectl_v1_node_proto.Services().ByName("NodeService")
	for i := range s.Methods().Len() {
		m := s.Methods().Get(i)
		out[fmt.Sprintf("/%s/%s", s.FullName(), m.Name())] = m
	}
	return out
}

// calls are the procedures of all calls that there are. A call without a rule fails the test,
// as does a rule without a call.
func calls(t *testing.T) []string {
	t.Helper()
	all := slices.Sorted(maps.Keys(methods()))
	if ruled := slices.Sorted(maps.Keys(access())); !slices.Equal(all, ruled) {
		t.Fatalf("the contract has the calls\n%v\nthe table of who may call has\n%v", all, ruled)
	}
	return all
}

// samples are requests that are answered where an empty one is not.
func samples(t *testing.T) map[string]proto.Message {
	t.Helper()
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]proto.Message{
		apiconnect.NodeServiceContainerLogsProcedure:   &api.ContainerLogsRequest{Namespace: "kube-system", Pod: "coredns"},
		apiconnect.NodeServiceReadFileProcedure:        &api.ReadFileRequest{Path: "/proc/cmdline"},
		apiconnect.NodeServiceCaptureProcedure:         &api.CaptureRequest{Link: "eth0"},
		apiconnect.NodeServicePutEtcdSnapshotProcedure: &api.PutEtcdSnapshotRequest{Sha256: strings.Repeat("a", 64)},
		apiconnect.NodeServiceActProcedure:             &api.ActRequest{Kind: api.Order_KIND_REBOOT},
		apiconnect.NodeServiceBundleProcedure:          &api.BundleRequest{Recipients: []string{key.Recipient().String()}},
	}
}

// call makes one call with an empty message and returns what became of it.
func call(c client, procedure string) error { return callWith(c, procedure, nil, nil) }

func callWith(c client, procedure string, sample proto.Message, header http.Header) error {
	m, ok := methods()[procedure]
	if !ok {
		return fmt.Errorf("there is no call %s", procedure)
	}
	cl := connect.NewClient[dynamicpb.Message, dynamicpb.Message](c.http, c.url+procedure, connect.WithSchema(m),
		connect.WithResponseInitializer(func(_ connect.Spec, message any) error {
			*message.(*dynamicpb.Message) = *dynamicpb.NewMessage(m.Output())
			return nil
		}))
	msg := dynamicpb.NewMessage(m.Input())
	if sample != nil {
		b, err := proto.Marshal(sample)
		if err != nil {
			return err
		}
		if err := proto.Unmarshal(b, msg); err != nil {
			return err
		}
	}
	req := connect.NewRequest(msg)
	for k, v := range header {
		req.Header()[k] = v
	}
	if m.IsStreamingClient() {
		s := cl.CallClientStream(context.Background())
		for k, v := range header {
			s.RequestHeader()[k] = v
		}
		// The answer says why nobody listens any more.
		_ = s.Send(msg)
		_, err := s.CloseAndReceive()
		return err
	}
	if !m.IsStreamingServer() {
		_, err := cl.CallUnary(context.Background(), req)
		return err
	}
	s, err := cl.CallServerStream(context.Background(), req)
	if err != nil {
		return err
	}
	defer s.Close()
	for s.Receive() {
	}
	return s.Err()
}

// whoMay is what every call is expected to ask of its caller, in words: roles, "server" for
// the server in its own name, "forwarded" for the same roles by way of the server. A call that
// is not here fails the test.
func whoMay() map[string]string {
	const readers, operators = "admin operator reader", "admin operator"
	return map[string]string{
		"Version":         "admin operator reader backup server forwarded",
		"Health":          readers + " server forwarded",
		"Logs":            readers + " server forwarded",
		"AuditHeads":      readers,
		"ReadBackup":      "admin backup",
		"Dmesg":           readers + " forwarded",
		"Units":           readers + " forwarded",
		"Processes":       readers + " forwarded",
		"Disks":           readers + " forwarded",
		"Network":         readers + " forwarded",
		"Time":            readers + " forwarded",
		"Containers":      readers + " forwarded",
		"ContainerLogs":   readers + " forwarded",
		"ReadFile":        operators + " forwarded",
		"Capture":         operators + " forwarded",
		"Bundle":          operators + " forwarded",
		"EtcdStatus":      readers + " server forwarded",
		"EtcdSnapshot":    "admin server forwarded",
		"PutEtcdSnapshot": "admin forwarded",
		"Act":             operators,
	}
}

// Every call of the contract × every role, the server, a node and another cluster's admin ×
// directly, through the server, and with a certificate that is revoked.
func TestEveryCallByEveryCaller(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	all, with, expected := calls(t), samples(t), whoMay()
	server := l.cert(l.ca, l.profile("server", ""))
	type who struct {
		name string
		cert tls.Certificate
	}
	callers := []who{{"server", server}, {"node", l.cert(l.ca, l.profile("node", ""))}, {"stranger", l.cert(l.ca, l.profile("operator of another cluster", pki.RoleAdmin))}}
	revoked := []tls.Certificate{}
	for _, role := range pki.Roles() {
		callers = append(callers, who{string(role), l.cert(l.ca, l.profile("operator", role))})
		revoked = append(revoked, l.cert(l.ca, l.profile("operator", role)))
	}
	revoked = append(revoked, l.cert(l.ca, l.profile("server", "")))
	l.revoke(1, revoked...)
	check := func(what, procedure string, may bool, err error) {
		t.Helper()
		if may != (err == nil) {
			t.Errorf("%s: %s: got %v, want allowed %v", what, procedure, err, may)
		}
		if err != nil && connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%s: %s: got code %s", what, procedure, connect.CodeOf(err))
		}
	}
	for _, procedure := range all {
		want, ok := expected[string(methods()[procedure].Name())]
		if !ok {
			t.Errorf("the test does not say who may call %s", procedure)
		}
		list := strings.Fields(want)
		for _, c := range callers {
			check(c.name, procedure, slices.Contains(list, c.name), callWith(l.client(c.cert), procedure, with[procedure], nil))
			// Only the server speaks for others, and only for operators.
			h := http.Header{}
			SetCaller(h, []*x509.Certificate{c.cert.Leaf}, "192.0.2.7")
			check(c.name+" through the server", procedure, slices.Contains(list, c.name) && slices.Contains(list, "forwarded") && c.name != "server",
				callWith(l.client(server), procedure, with[procedure], h))
			if c.name != "server" {
				check("in the name of another by "+c.name, procedure, false, callWith(l.client(c.cert), procedure, with[procedure], h))
			}
		}
		for _, c := range revoked {
			err := callWith(l.client(c), procedure, with[procedure], nil)
			check("revoked", procedure, false, err)
			if err != nil && !strings.Contains(err.Error(), "is revoked") {
				t.Errorf("revoked: %s: %v", procedure, err)
			}
			h := http.Header{}
			SetCaller(h, []*x509.Certificate{c.Leaf}, "192.0.2.7")
			check("revoked, through the server", procedure, false, callWith(l.client(server), procedure, with[procedure], h))
		}
	}
	for name := range expected {
		if methods()["/imagectl.v1.NodeService/"+name] == nil {
			t.Errorf("the test says who may call %s, which is no call", name)
		}
	}
	for err, want := range map[error]string{
		call(l.client(l.cert(l.ca, l.profile("node", ""))), apiconnect.NodeServiceVersionProcedure):                             "permission_denied: imagectl://lab/node/w1 may not call /imagectl.v1.NodeService/Version: the node API is for operators and servers",
		call(l.client(l.cert(l.ca, l.profile("operator", pki.RoleBackup))), apiconnect.NodeServiceLogsProcedure):                "permission_denied: imagectl://lab/operator/jo@example.org with the role backup may not call /imagectl.v1.NodeService/Logs",
		call(l.client(l.cert(l.ca, l.profile("operator of another cluster", "admin"))), apiconnect.NodeServiceVersionProcedure): "permission_denied: reading identity of CN=jo@example.org,O=imagectl:admin: it belongs to cluster prod, this is lab",
	} {
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// No certificate and one of another CA × every call: there is no connection, and through the
// server there is none for a certificate that our CA has not signed.
func TestNoCallWithoutACertificateOfTheCA(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	other, err := pki.NewCA("imagectl", 24*time.Hour*365, 0, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server := l.client(l.cert(l.ca, l.profile("server", "")))
	for _, procedure := range calls(t) {
		for _, role := range pki.Roles() {
			foreign := l.cert(other, l.profile("operator", role))
			if err := call(l.client(foreign), procedure); err == nil || connect.IsWireError(err) {
				t.Errorf("%s of another CA: %s: got %v, want a broken handshake", role, procedure, err)
			}
			h := http.Header{}
			SetCaller(h, []*x509.Certificate{foreign.Leaf}, "192.0.2.7")
			if err := callWith(server, procedure, nil, h); connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "verifying whom the server calls for") {
				t.Errorf("%s of another CA, through the server: %s: got %v", role, procedure, err)
			}
		}
		if err := call(l.client(), procedure); err == nil || connect.IsWireError(err) {
			t.Errorf("without a certificate: %s: got %v, want a broken handshake", procedure, err)
		}
	}
}

// What the server says of whom it calls for is believed only as far as certificates go.
func TestTheServerSpeaksForAPerson(t *testing.T) {
	t.Parallel()
	var heard []Call
	r := &record{}
	l := newLabOf(t, fake{record: r, heard: func(c Call) { heard = append(heard, c) }})
	server := l.cert(l.ca, l.profile("server", ""))
	person := l.cert(l.ca, l.profile("operator", pki.RoleOperator))
	c := l.client(server)
	ask := func(change func(http.Header)) error {
		h := http.Header{}
		SetCaller(h, []*x509.Certificate{person.Leaf}, "192.0.2.7")
		change(h)
		return callWith(c, apiconnect.NodeServiceReadFileProcedure, &api.ReadFileRequest{Path: "/proc/cmdline"}, h)
	}
	if err := ask(func(http.Header) {}); err != nil {
		t.Fatal(err)
	}
	serial := pki.Serial(server.Leaf)
	if len(heard) != 1 || heard[0].Subject != "imagectl://lab/operator/jo@example.org" || heard[0].Serial != pki.Serial(person.Leaf) || heard[0].Source != "192.0.2.7" || heard[0].Via != serial || heard[0].Procedure != apiconnect.NodeServiceReadFileProcedure {
		t.Errorf("the node heard %+v", heard)
	}
	if e := r.entries[0]; e.Action != "file-read" || e.Detail != "/proc/cmdline, through the server (serial "+serial+")" || e.Actor.Subject != "imagectl://lab/operator/jo@example.org" || e.Actor.Serial != pki.Serial(person.Leaf) {
		t.Errorf("the node's log has %+v", e)
	}
	for want, change := range map[string]func(http.Header){
		"permission_denied: reading whom the server calls for: it is not base64":                             func(h http.Header) { h.Set(HeaderCaller, "?") },
		"permission_denied: reading whom the server calls for: more than 4 certificates":                     func(h http.Header) { h.Set(HeaderCaller, strings.Repeat("AA==,", 4)+"AA==") },
		"permission_denied: the server does not say where imagectl://lab/operator/jo@example.org calls from": func(h http.Header) { h.Del(HeaderSource) },
		"permission_denied: the server may call for operators, not for imagectl://lab/node/w1": func(h http.Header) {
			SetCaller(h, []*x509.Certificate{l.cert(l.ca, l.profile("node", "")).Leaf}, "192.0.2.7")
		},
	} {
		if err := ask(change); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	// A person's certificate that has expired, while the server's has not: no call at all, not
	// even the one that an admin may make late.
	end := person.Leaf.NotAfter.Add(time.Minute)
	if !end.Before(server.Leaf.NotAfter) {
		t.Fatal("the server's certificate ends before the person's: the test shows nothing")
	}
	l.at(end)
	if err := ask(func(http.Header) {}); connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired person through the server: %v", err)
	}
}
