package serverapi

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/backup"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/bootstrap/store/storetest"
)

// rig is a server on loopback with real TLS and a real store.
type rig struct {
	t     *testing.T
	dir   string
	store *store.Store
	*Server
	url  string
	stop func()
	// hold is how long the server may hold a Sync; zero for an hour.
	hold time.Duration
	// headers is how long a handshake or a header may take; 0 means an hour.
	headers time.Duration
	// keeps are the backups of the server that is next, in a directory; nil for none.
	keeps func(*store.Store) *backup.Keeper
}

func config(machines ...Machine) Config {
	return Config{
		Cluster: "demo", Version: "test", Machines: machines,
		Kubernetes:  Kubernetes{Version: "v1.36.3", PodCIDR: "10.244.0.0/16", ServiceCIDR: "10.96.0.0/12", DNSDomain: "cluster.local", Endpoint: "k8s.example:6443", Addons: []*api.Addon{{Name: "cni"}}},
		NodeServers: []string{"https://127.0.0.1:8443"},
		Now:         time.Now, Rand: rand.Reader, Log: slog.New(slog.DiscardHandler),
	}
}

func cp1() Machine {
	return Machine{
		Name: "cp1", Role: "control-plane", ControlPlane: true, MACs: []string{"52:54:00:00:00:01"}, Address: netip.MustParseAddr("127.0.0.1"),
		Disk:  &api.DiskRule{Path: "/dev/vda"},
		Image: Image{URL: "http://127.0.0.1:8080/files/aa/cp.raw.zst", SHA256: strings.Repeat("a", 64), Size: 1 << 20, RawSize: 8 << 20, RawSHA256: strings.Repeat("b", 64)},
	}
}

func w1() Machine {
	return Machine{Name: "w1", Role: "worker", MACs: []string{"52:54:00:00:00:02"}, Labels: map[string]string{"zone": "a"}, Disk: &api.DiskRule{Path: "/dev/vda"}}
}

func start(t *testing.T, cfg Config) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir()}
	r.up(cfg)
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *rig) up(cfg Config) {
	r.t.Helper()
	st, err := store.Open(r.t.Context(), store.Config{Dir: r.dir, Cluster: cfg.Cluster, Log: os.Stderr, Volatile: true})
	if err != nil {
		r.t.Fatal(err)
	}
	cfg.Store = st
	if r.keeps != nil {
		cfg.Backups = r.keeps(st)
	}
	s, err := New(r.t.Context(), cfg)
	if err != nil {
		st.Close()
		r.t.Fatal(err)
	}
	s.poll, s.headers = cmp.Or(r.hold, time.Hour), cmp.Or(r.headers, time.Hour)
	// A server that comes back, out of a backup too, has the address it had.
	if r.url == "" {
		r.url = fmt.Sprintf("https://127.0.0.1:%d", storetest.Port(r.t))
	}
	l, err := net.Listen("tcp", strings.TrimPrefix(r.url, "https://"))
	if err != nil {
		st.Close()
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	r.store, r.Server = st, s
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("serving: %v", err)
		}
		st.Close()
	})
}

// restart is a new process on the same state directory.
func (r *rig) restart(cfg Config) {
	r.t.Helper()
	r.stop()
	r.up(cfg)
}

// client speaks TLS with a certificate or without.
func (r *rig) client(cert *tls.Certificate) *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(r.signer().Certificate())
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13, Time: r.cfg.Now}
	if cert != nil {
		// Show it even to a server that does not ask for its issuer.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (r *rig) operator(role pki.Role) apiconnect.OperatorServiceClient {
	r.t.Helper()
	cert, key, _, err := r.Operator(r.t.Context(), "ada", role)
	if err != nil {
		r.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		r.t.Fatal(err)
	}
	return apiconnect.NewOperatorServiceClient(r.client(&pair), r.url)
}

// fake is an agent: it has a key and says what the test tells it to say.
type fake struct {
	*rig
	mac string
	// port is the switch port that it hears of; empty for none.
	port string
	key  crypto.Signer
	cert *tls.Certificate
}

func (r *rig) machine(mac string) *fake {
	r.t.Helper()
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	return &fake{rig: r, mac: mac, key: key}
}

func csr(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// console is the code as the machine itself derives it from the CA that it
// was given.
func (f *fake) console() string {
	f.t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(f.key.Public())
	if err != nil {
		f.t.Fatal(err)
	}
	return enrol.Code(f.signer().Certificate(), spki)
}

func (f *fake) enrol() *api.EnrolResponse {
	f.t.Helper()
	card := &api.NetworkInterface{Name: "eth0", Mac: f.mac}
	if f.port != "" {
		card.Neighbour = &api.Neighbour{System: "leaf", Port: f.port}
	}
	resp, err := apiconnect.NewEnrolServiceClient(f.client(nil), f.url).Enrol(f.t.Context(), connect.NewRequest(&api.EnrolRequest{
		CsrDer: csr(f.t, f.key), Mode: api.Mode_MODE_INSTALLER,
		Facts: &api.Facts{Interfaces: []*api.NetworkInterface{card}, Cpus: 2},
	}))
	if err != nil {
		f.t.Fatal(err)
	}
	if resp.Msg.GetStatus() == api.EnrolResponse_STATUS_APPROVED {
		leaf, err := pki.ParseCertificatePEM([]byte(resp.Msg.GetCertificatePem()))
		if err != nil {
			f.t.Fatal(err)
		}
		f.cert = &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: f.key, Leaf: leaf}
	}
	return resp.Msg
}

func (f *fake) agent() apiconnect.AgentServiceClient {
	return apiconnect.NewAgentServiceClient(f.client(f.cert), f.url)
}

func (f *fake) sync(req *api.SyncRequest) *api.SyncResponse {
	f.t.Helper()
	resp, err := f.agent().Sync(f.t.Context(), connect.NewRequest(req))
	if err != nil {
		f.t.Fatal(err)
	}
	return resp.Msg
}

func (f *fake) issue(profiles ...api.CertificateProfile) (*api.IssueCertificatesResponse, error) {
	f.t.Helper()
	req := &api.IssueCertificatesRequest{}
	for _, p := range profiles {
		key := f.key
		if p != api.CertificateProfile_CERTIFICATE_PROFILE_NODE {
			var err error
			if key, err = pki.NewKey(rand.Reader); err != nil {
				f.t.Fatal(err)
			}
		}
		req.Items = append(req.Items, &api.IssueCertificatesRequest_Item{Profile: p, CsrDer: csr(f.t, key)})
	}
	resp, err := f.agent().IssueCertificates(f.t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// approved is a machine whose key an operator has accepted.
func (r *rig) approvedMachine(name, mac string) *fake {
	r.t.Helper()
	f := r.machine(mac)
	f.enrol()
	if o := r.approve(name, f.console(), false); !o.GetOk() {
		r.t.Fatalf("approving %s: %s", name, o.GetMessage())
	}
	if got := f.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		r.t.Fatalf("%s is not approved: %s", name, got.GetReason())
	}
	return f
}

func (r *rig) approve(name, code string, replace bool) *api.Outcome {
	r.t.Helper()
	resp, err := r.operator(pki.RoleOperator).ApproveMachine(r.t.Context(), connect.NewRequest(&api.ApproveMachineRequest{
		Selection: &api.Selection{Names: []string{name}}, Codes: map[string]string{name: code}, ReplaceKey: replace,
	}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetOutcomes()[0]
}

func (r *rig) arm(name string, reinstall bool) *api.Outcome {
	r.t.Helper()
	resp, err := r.operator(pki.RoleOperator).ArmMachine(r.t.Context(), connect.NewRequest(&api.ArmMachineRequest{
		Selection: &api.Selection{Names: []string{name}}, Reinstall: reinstall,
	}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetOutcomes()[0]
}

// audited are the entries of an action in the audit log.
func (r *rig) audited(action string) []audit.Entry {
	r.t.Helper()
	var out []audit.Entry
	var tip audit.Tip
	for line, err := range r.store.AuditLines(r.t.Context()) {
		if err != nil {
			r.t.Fatal(err)
		}
		var e audit.Entry
		if e, tip, err = audit.Open(tip, line); err != nil {
			r.t.Fatal(err)
		}
		if e.Action == action {
			out = append(out, e)
		}
	}
	return out
}
