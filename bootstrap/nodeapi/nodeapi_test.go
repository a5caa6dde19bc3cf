package nodeapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// fake is a node with a journal of two lines.
type fake struct {
	asked chan Query
	// silent is closed when silent.service is followed; nil for nobody who waits.
	silent chan struct{}
	// record is the node's own log, which may fail.
	record *record
	// deeds are what it was made to do; nil for nobody who asks.
	deeds *deeds
	// takes opens a place for a snapshot; nil for a node that has it.
	takes func(sum string) (Incoming, error)
	// behind is why no quorum confirms its etcd's revision.
	behind error
	// system is nil for a small one.
	system System
	// heard gets who has called; nil for nobody who listens.
	heard func(Call)
}

type record struct {
	mu      sync.Mutex
	entries []audit.Entry
	fails   error
}

func (fake) Version(context.Context) *api.VersionResponse { return &api.VersionResponse{Agent: "test"} }
func (fake) Health(context.Context) *api.HealthResponse   { return &api.HealthResponse{Healthy: true} }
func (fake) AuditHeads() *api.AuditHeadsResponse          { return &api.AuditHeadsResponse{} }
func (fake) Backup(name string) (files.Copy, io.ReadCloser, error) {
	if name != "" && name != "newest" {
		return files.Copy{}, nil, errors.New("this node does not keep it")
	}
	return files.Copy{Name: "newest", Size: 3 * backupChunk / 2, SHA256: "aa", Signature: []byte("signed")}, io.NopCloser(bytes.NewReader(make([]byte, 3*backupChunk/2))), nil
}
func (f fake) Record(e audit.Entry) error {
	if f.record == nil {
		return nil
	}
	f.record.mu.Lock()
	defer f.record.mu.Unlock()
	f.record.entries = append(f.record.entries, e)
	return f.record.fails
}
func (f fake) System() System {
	if f.system == nil {
		return wholeSystem{}
	}
	return f.system
}
func (f fake) Heard(c Call) {
	if f.heard != nil {
		f.heard(c)
	}
}
func (f fake) Journal(ctx context.Context, q Query, read func(io.Reader) error) error {
	if q.Unit == "silent.service" {
		if f.silent != nil {
			close(f.silent)
		}
		<-ctx.Done() // nothing is ever logged
		return ctx.Err()
	}
	select {
	case f.asked <- q:
	default:
	}
	return read(strings.NewReader(`{"__REALTIME_TIMESTAMP":"1700000000000000","_SYSTEMD_UNIT":"etcd.service","MESSAGE":"ready"}
not json
{"__REALTIME_TIMESTAMP":"1700000001000000","MESSAGE":[104,105,255]}
`))
}

type lab struct {
	t    *testing.T
	ca   *pki.CA
	url  string
	node fake
	now  func() time.Time
	err  error

	mu      sync.Mutex
	revoked pki.RevocationList
	changed chan struct{}
	admins  []Admin
}

// at sets the node's clock.
func (l *lab) at(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = func() time.Time { return now }
}

// knows tells the node who is an admin now.
func (l *lab) knows(admins ...Admin) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.admins = admins
}

// revoke puts a certificate on the node's list.
func (l *lab) revoke(number uint64, certs ...tls.Certificate) {
	l.t.Helper()
	var all []pki.Revocation
	for _, c := range certs {
		all = append(all, pki.Revocation{Serial: pki.Serial(c.Leaf), At: time.Now()})
	}
	der, err := l.ca.RevocationList(number, all, time.Now())
	if err != nil {
		l.t.Fatal(err)
	}
	list, err := pki.ParseRevocationList(der, l.ca.Certificate())
	if err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revoked = list
	close(l.changed)
	l.changed = make(chan struct{})
}

func newLab(t *testing.T) *lab {
	t.Helper()
	return newLabOf(t, fake{asked: make(chan Query, 1)})
}

func newLabOf(t *testing.T, node fake) *lab {
	t.Helper()
	ca, err := pki.NewCA("imagectl", 24*time.Hour*365, 48*time.Hour, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, ca: ca, node: node, now: time.Now, changed: make(chan struct{})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.url = "https://" + ln.Addr().String()
	own := l.cert(ca, l.profile("node", ""))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, ln, func() (Trust, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			return Trust{Certificate: &own, ClientCA: ca.CertificatePEM(), Cluster: "lab", Now: l.now, Revoked: l.revoked, Changed: l.changed, Admins: l.admins}, l.err
		}, l.node)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l
}

func (l *lab) profile(kind string, role pki.Role) pki.Profile {
	l.t.Helper()
	var p pki.Profile
	var err error
	switch kind {
	case "node":
		p, err = pki.Node(pki.Machine{Cluster: "lab", Name: "w1", Address: netip.MustParseAddr("127.0.0.1")}, pki.Lifetimes{})
	case "server":
		p, err = pki.Server("lab", []string{"server"}, nil, pki.Lifetimes{})
	case "operator":
		p, err = pki.Operator("lab", "jo@example.org", role, pki.Lifetimes{})
	case "operator of another cluster":
		p, err = pki.Operator("prod", "jo@example.org", role, pki.Lifetimes{})
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

func (l *lab) cert(ca *pki.CA, p pki.Profile) tls.Certificate {
	l.t.Helper()
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	own, err := pki.OwnKey(key)
	if err != nil {
		l.t.Fatal(err)
	}
	prepared, err := ca.Prepare(p, own, time.Now(), rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	issued, err := ca.Issue(prepared)
	if err != nil {
		l.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{issued.Certificate.Raw}, PrivateKey: key, Leaf: issued.Certificate}
}

func (l *lab) client(certs ...tls.Certificate) client {
	roots := x509.NewCertPool()
	roots.AddCert(l.ca.Certificate())
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "w1", Certificates: certs}, ForceAttemptHTTP2: true}
	l.t.Cleanup(t.CloseIdleConnections)
	h := &http.Client{Transport: t, Timeout: 5 * time.Minute}
	return client{apiconnect.NewNodeServiceClient(h, l.url), h, l.url}
}

func TestWithoutAGoodCertificateThereIsNoConnection(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	other, err := pki.NewCA("imagectl", 24*time.Hour*365, 0, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]client{
		"none":          l.client(),
		"of another CA": l.client(l.cert(other, l.profile("operator", pki.RoleAdmin))),
	} {
		if err := call(c, apiconnect.NodeServiceVersionProcedure); err == nil || connect.CodeOf(err) == connect.CodePermissionDenied {
			t.Errorf("%s: got %v, want a broken handshake", name, err)
		}
	}
	if _, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}}).Dial("tcp", strings.TrimPrefix(l.url, "https://")); err == nil {
		t.Error("TLS 1.2 is accepted")
	}
	l.err = errors.New("this node is not enrolled yet")
	if err := call(l.client(l.cert(l.ca, l.profile("operator", pki.RoleAdmin))), apiconnect.NodeServiceVersionProcedure); err == nil {
		t.Error("a node that is not enrolled answers")
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.client(l.cert(l.ca, l.profile("operator", pki.RoleReader)))
	s, err := c.Logs(context.Background(), connect.NewRequest(&api.LogsRequest{Unit: "etcd.service", Lines: 1 << 30, Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got []string
	for s.Receive() {
		got = append(got, fmt.Sprintf("%d %s %q", s.Msg().GetAt().GetSeconds(), s.Msg().GetUnit(), s.Msg().GetLine()))
	}
	if want := `[1700000000 etcd.service "ready" 1700000001  "hi�"]`; s.Err() != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v, want %s", got, s.Err(), want)
	}
	if q := <-l.node.asked; q != (Query{Unit: "etcd.service", Follow: true, Lines: linesMax}) {
		t.Errorf("asked for %+v", q)
	}
	for _, unit := range []string{"--file=/etc/shadow", "a b", "x;y", strings.Repeat("x", 300)} {
		s, err := c.Logs(context.Background(), connect.NewRequest(&api.LogsRequest{Unit: unit}))
		if err != nil {
			t.Fatal(err)
		}
		if s.Receive() || connect.CodeOf(s.Err()) != connect.CodeInvalidArgument {
			t.Errorf("unit %q: got %v", unit, s.Err())
		}
		_ = s.Close()
	}
}

func TestTooManyLogStreamsAreRefused(t *testing.T) {
	t.Parallel()
	s := &service{streams: make(chan struct{}, 1)}
	s.streams <- struct{}{}
	err := s.Logs(context.Background(), connect.NewRequest(&api.LogsRequest{}), nil)
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("got %v", err)
	}
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte(`{"__REALTIME_TIMESTAMP":"1","MESSAGE":[1,2,999]}`))
	f.Add([]byte(`{"__REALTIME_TIMESTAMP":"1","MESSAGE":null}`))
	f.Add(bytes.Repeat([]byte("["), 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, ok := entry(b); ok && len(m.GetLine()) > 3*lineMax {
			t.Errorf("a line of %d bytes", len(m.GetLine()))
		}
	})
}

// Following a journal ends with the certificate that began it, and not without a
// word: whoever reads it must not take it for silence.
func TestFollowingEndsWithTheCertificate(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.cert(l.ca, l.profile("operator", pki.RoleReader))
	// The clock stands one second before its end, however long the handshake takes.
	l.now = func() time.Time { return c.Leaf.NotAfter.Add(-time.Second) }
	s, err := l.client(c).Logs(t.Context(), connect.NewRequest(&api.LogsRequest{Follow: true, Unit: "silent.service"}))
	if err == nil {
		defer s.Close()
		for s.Receive() {
		}
		err = s.Err()
	}
	if connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("it ended with %v, want unauthenticated", err)
	}
}

// A revoked certificate is refused for every role and call, also on a connection
// that is open, and ends what it follows.
func TestARevokedCertificateIsRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	number := uint64(0)
	for _, role := range pki.Roles() {
		cert := l.cert(l.ca, l.profile("operator", role))
		c := l.client(cert)
		if err := call(c, apiconnect.NodeServiceVersionProcedure); err != nil {
			t.Errorf("%s: before: %v", role, err)
		}
		number++
		l.revoke(number, cert)
		for procedure := range access() {
			want := "permission_denied: the caller's certificate (serial " + pki.Serial(cert.Leaf) + ") is revoked"
			for name, c := range map[string]client{"open": c, "new": l.client(cert)} {
				if err := call(c, procedure); err == nil || err.Error() != want {
					t.Errorf("%s: %s on a connection that is %s: got %v, want %s", role, procedure, name, err, want)
				}
			}
		}
	}
}

func TestFollowingEndsWithRevocation(t *testing.T) {
	t.Parallel()
	l := newLabOf(t, fake{asked: make(chan Query, 1), silent: make(chan struct{})})
	cert := l.cert(l.ca, l.profile("operator", pki.RoleReader))
	ended := make(chan error, 1)
	go func() {
		s, err := l.client(cert).Logs(t.Context(), connect.NewRequest(&api.LogsRequest{Follow: true, Unit: "silent.service"}))
		if err == nil {
			defer s.Close()
			for s.Receive() {
			}
			err = s.Err()
		}
		ended <- err
	}()
	<-l.node.silent
	// News about others ends nothing.
	l.revoke(1, l.cert(l.ca, l.profile("operator", pki.RoleReader)))
	select {
	case err := <-ended:
		t.Fatalf("it ended: %v", err)
	default:
	}
	l.revoke(2, cert)
	if err := <-ended; connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), errRevoked.Error()) {
		t.Errorf("it ended with %v", err)
	}
}
