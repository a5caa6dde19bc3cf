package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// lab is one machine and a server that holds data.
type lab struct {
	t    *testing.T
	node *hosttest.Node
	ca   *pki.CA
	etcd *pki.CA
	kube *pki.CA
	url  string
	log  *logs
	// server is the server's certificate.
	server *x509.Certificate
	// members is an etcd cluster to join; nil for none.
	members *members
	// kubernetes is what kubeadm and kubectl did; nil for none.
	kubernetes *cluster

	// keys are those for Secrets that the server hands out.
	keys []*api.EncryptionKey
	// signs: the keys of Kubernetes' CAs stay on the server.
	signs bool

	mu       sync.Mutex
	now      time.Duration // added to the machine's clock and the server's
	approved bool
	// revision and directive are what Sync answers; news is closed when they change.
	revision  uint64
	directive *api.SyncResponse
	news      chan struct{}
	// Only the newest agent, run, is heard: one that is stopped leaves a call on its
	// way, which the server may get to any time later. seen are its reports.
	seen     []*api.SyncRequest
	run      string
	enrols   int
	token    string // of the last enrolment
	issued   []api.CertificateProfile
	refuse   error
	progress int
	// backups are what the server hands out, by name.
	backups map[string]string
	// audit are the lines of the server's log.
	audit [][]byte
}

// logs collects what the agent logs.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, node: hosttest.New(t), approved: true, log: &logs{}, news: make(chan struct{})}
	for name, ca := range map[string]**pki.CA{"imagectl": &l.ca, "etcd": &l.etcd, "kubernetes": &l.kube} {
		var err error
		if *ca, err = pki.NewCA(name, 24*365*time.Hour, 48*time.Hour, time.Now(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	mux := http.NewServeMux()
	mux.Handle(apiconnect.NewEnrolServiceHandler(enroller{lab: l}))
	mux.Handle(apiconnect.NewAgentServiceHandler(agentServer{l}))
	srv := httptest.NewUnstartedServer(mux)
	srv.EnableHTTP2 = true
	pool := x509.NewCertPool()
	pool.AddCert(l.ca.Certificate())
	profile, err := pki.Server("lab", []string{"server.lab"}, nil, pki.Lifetimes{Agent: 300 * 24 * time.Hour})
	own := l.certificate(profile, err)
	l.server = own.Leaf
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, Time: l.clock, Certificates: []tls.Certificate{own}}
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	l.url = srv.URL
	l.put("/dev/console", "")
	l.put("/proc/sys/kernel/random/boot_id", "boot-1\n")
	return l
}

func (l *lab) put(name, content string) {
	l.t.Helper()
	if err := l.node.WriteFile(name, []byte(content), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) read(name string) string {
	b, err := l.node.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(b)
}

func (l *lab) clock() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Add(l.now)
}

func (l *lab) certificate(p pki.Profile, err error) tls.Certificate {
	l.t.Helper()
	return l.certificateOf(l.ca, p, err)
}

func (l *lab) certificateOf(ca *pki.CA, p pki.Profile, err error) tls.Certificate {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	own, err := pki.OwnKey(key)
	if err != nil {
		l.t.Fatal(err)
	}
	issued, err := l.sign(ca, p, own)
	if err != nil {
		l.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{issued.Certificate.Raw}, PrivateKey: key, Leaf: issued.Certificate}
}

func (l *lab) sign(ca *pki.CA, p pki.Profile, key pki.PublicKey) (pki.Issued, error) {
	prepared, err := ca.Prepare(p, key, l.clock(), rand.Reader)
	if err != nil {
		return pki.Issued{}, err
	}
	return ca.Issue(prepared)
}

func (l *lab) agent(mode nodeconf.Mode) *Agent {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen, l.run = nil, rand.Text()
	return &Agent{
		Host: l.node.Host, Log: slog.New(slog.NewTextHandler(l.log, nil)), Version: l.run, Now: l.clock, Rand: rand.Reader, Jitter: func() float64 { return 0 },
		Config:       nodeconf.Config{Cluster: "lab", Mode: mode, Servers: []string{l.url}, CA: string(l.ca.CertificatePEM())},
		askNode:      func(context.Context, string) (kubeNode, error) { return l.kubernetes.node() },
		askAPIServer: func(context.Context, *api.Run) (*x509.Certificate, error) { return l.kubernetes.apiServer() },
		askEtcd:      func(context.Context, string, *tls.Config) (etcd.Status, error) { return l.etcdStatus() },
		askDisk: func(context.Context, string, *tls.Config) (etcd.Disk, error) {
			return etcd.Disk{}, errors.New("no disk")
		},
		openEtcd: func(context.Context, []string, *tls.Config) (etcdCluster, error) { return l.members, nil }, progressTime: time.Hour,
	}
}

func (l *lab) etcdStatus() (etcd.Status, error) {
	if l.node.Units()[etcd.Unit] != "active" {
		return etcd.Status{}, errors.New("connection refused")
	}
	if l.members != nil {
		return l.members.status()
	}
	return etcd.Status{MemberID: "8e9e05c52164694d", Healthy: true}, nil
}

// start runs an agent until the test ends or stop is called.
func (l *lab) start(mode nodeconf.Mode) (stop func()) {
	a := l.agent(mode)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				l.t.Errorf("Run: %v", err)
			}
		})
	}
	l.t.Cleanup(stop)
	return stop
}

// direct sets the directive.
func (l *lab) direct(d *api.SyncResponse) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revision++
	d.Revision = l.revision
	l.directive = d
	close(l.news)
	l.news = make(chan struct{})
}

// wait waits until the agent has reported something that satisfies good.
func (l *lab) wait(what string, good func(*api.SyncRequest) bool) *api.SyncRequest {
	l.t.Helper()
	return waitFor(l, what, func() (*api.SyncRequest, bool) {
		if len(l.seen) == 0 {
			return nil, false
		}
		last := l.seen[len(l.seen)-1]
		return last, good(last)
	})
}

func waitFor[T any](l *lab, what string, good func() (T, bool)) T {
	l.t.Helper()
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		v, ok := good()
		l.mu.Unlock()
		if ok {
			return v
		}
	}
	l.t.Fatalf("waited in vain for %s; the agent logged:\n%s", what, l.log)
	panic("unreachable")
}

type enroller struct {
	apiconnect.UnimplementedEnrolServiceHandler
	*lab
}

func (l enroller) Enrol(_ context.Context, req *connect.Request[api.EnrolRequest]) (*connect.Response[api.EnrolResponse], error) {
	key, err := pki.ParseRequest(req.Msg.GetCsrDer())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	l.mu.Lock()
	known, approved := req.Msg.GetAgentVersion() == l.run, l.approved
	if known {
		l.token = req.Msg.GetToken()
		l.enrols++
	}
	l.mu.Unlock()
	if !known {
		return nil, stopped()
	}
	if !approved {
		return connect.NewResponse(&api.EnrolResponse{Status: api.EnrolResponse_STATUS_PENDING, ReasonCode: "enrol-pending", Reason: "an operator has to approve this machine", RetryAfterMs: 1}), nil
	}
	p, err := pki.Node(pki.Machine{Cluster: "lab", Name: "cp1", Address: netip.MustParseAddr("127.0.0.1")}, pki.Lifetimes{})
	if err != nil {
		return nil, err
	}
	issued, err := l.sign(l.ca, p, key)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.EnrolResponse{Status: api.EnrolResponse_STATUS_APPROVED, CertificatePem: string(issued.PEM), Machine: "cp1", ServerTime: timestamppb.New(l.clock())}), nil
}

func stopped() error {
	return connect.NewError(connect.CodeCanceled, errors.New("this agent was stopped"))
}

type agentServer struct{ *lab }

func (l agentServer) Sync(ctx context.Context, req *connect.Request[api.SyncRequest]) (*connect.Response[api.SyncResponse], error) {
	l.mu.Lock()
	if l.refuse != nil {
		defer l.mu.Unlock()
		return nil, l.refuse
	}
	if req.Msg.GetAgentVersion() != l.run {
		defer l.mu.Unlock()
		return nil, stopped()
	}
	l.seen = append(l.seen, req.Msg)
	news, directive := l.news, l.directive
	known := directive == nil || req.Msg.GetKnownRevision() == l.revision
	l.mu.Unlock()
	if known && req.Msg.GetWaitMs() > 0 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-news:
		case <-time.After(time.Duration(req.Msg.GetWaitMs()) * time.Millisecond):
		}
		l.mu.Lock()
		directive = l.directive
		l.mu.Unlock()
	}
	if directive == nil {
		directive = &api.SyncResponse{Directive: &api.SyncResponse_Wait{Wait: &api.Wait{ReasonCode: "not-armed", Reason: "nobody armed it"}}}
	}
	return connect.NewResponse(directive), nil
}

func (l agentServer) ReportInstall(context.Context, *connect.Request[api.ReportInstallRequest]) (*connect.Response[api.ReportInstallResponse], error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.progress++
	return connect.NewResponse(&api.ReportInstallResponse{}), nil
}

func (l agentServer) IssueCertificates(_ context.Context, req *connect.Request[api.IssueCertificatesRequest]) (*connect.Response[api.IssueCertificatesResponse], error) {
	l.mu.Lock()
	refuse := l.refuse
	l.mu.Unlock()
	if refuse != nil {
		return nil, refuse
	}
	out := &api.IssueCertificatesResponse{}
	m := pki.Machine{Cluster: "lab", Name: "cp1", Address: netip.MustParseAddr("127.0.0.1")}
	for _, item := range req.Msg.GetItems() {
		key, err := pki.ParseRequest(item.GetCsrDer())
		if err != nil {
			return nil, err
		}
		var p pki.Profile
		ca := l.etcd
		switch item.GetProfile() {
		case api.CertificateProfile_CERTIFICATE_PROFILE_NODE:
			ca = l.ca
			p, err = pki.Node(m, pki.Lifetimes{})
		case api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_SERVER:
			p, err = pki.EtcdServer(m, pki.Lifetimes{})
		case api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER:
			p, err = pki.EtcdPeer(m, pki.Lifetimes{})
		case api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_SERVING:
			ca = l.kube
			p, err = pki.KubeletServing(m, pki.Lifetimes{})
		case api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_BOOTSTRAP:
			ca = l.kube
			p, err = pki.KubeletBootstrap(m, pki.Lifetimes{})
		case api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_CLIENT:
			ca = l.kube
			p, err = pki.KubeletClient(m, pki.Lifetimes{})
		case api.CertificateProfile_CERTIFICATE_PROFILE_APISERVER:
			ca = l.kube
			p, err = pki.APIServer(m, nil, nil, pki.Lifetimes{})
		case api.CertificateProfile_CERTIFICATE_PROFILE_APISERVER_KUBELET_CLIENT, api.CertificateProfile_CERTIFICATE_PROFILE_FRONT_PROXY_CLIENT,
			api.CertificateProfile_CERTIFICATE_PROFILE_CONTROLLER_MANAGER, api.CertificateProfile_CERTIFICATE_PROFILE_SCHEDULER,
			api.CertificateProfile_CERTIFICATE_PROFILE_NODE_ADMIN, api.CertificateProfile_CERTIFICATE_PROFILE_SUPER_ADMIN:
			ca = l.kube
			p, err = pki.NodeAdmin(m, pki.Lifetimes{})
		default:
			p, err = pki.EtcdClient(m, "client", pki.Lifetimes{})
		}
		if err != nil {
			return nil, err
		}
		issued, err := l.sign(ca, p, key)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		l.issued = append(l.issued, item.GetProfile())
		l.mu.Unlock()
		out.Items = append(out.Items, &api.IssueCertificatesResponse_Item{Profile: item.GetProfile(), CertificatePem: string(issued.PEM), CaPem: string(ca.CertificatePEM())})
	}
	return connect.NewResponse(out), nil
}

func (l agentServer) FetchKubernetesSecrets(_ context.Context, req *connect.Request[api.FetchKubernetesSecretsRequest]) (*connect.Response[api.FetchKubernetesSecretsResponse], error) {
	out := &api.FetchKubernetesSecretsResponse{}
	if req.Msg.GetEncryption() {
		l.mu.Lock()
		defer l.mu.Unlock()
		out.EncryptionKeys = l.keys
	}
	for _, n := range secretNames(l.signs) {
		out.Files = append(out.Files, &api.File{Path: n, Content: []byte("content of " + n)})
	}
	return connect.NewResponse(out), nil
}

func (l agentServer) FetchBackup(_ context.Context, req *connect.Request[api.FetchBackupRequest], stream *connect.ServerStream[api.FetchBackupResponse]) error {
	l.mu.Lock()
	content, ok := l.backups[req.Msg.GetName()]
	l.mu.Unlock()
	if !ok {
		return connect.NewError(connect.CodeNotFound, errors.New("there is no such backup"))
	}
	for chunk := range slices.Chunk([]byte(content), 5) {
		if err := stream.Send(&api.FetchBackupResponse{Chunk: chunk}); err != nil {
			return err
		}
	}
	return nil
}

func (l agentServer) FetchAudit(_ context.Context, req *connect.Request[api.FetchAuditRequest], stream *connect.ServerStream[api.FetchAuditResponse]) error {
	l.mu.Lock()
	lines := l.audit[min(int(req.Msg.GetAfter()), len(l.audit)):]
	l.mu.Unlock()
	for few := range slices.Chunk(lines, 2) {
		if err := stream.Send(&api.FetchAuditResponse{Lines: few}); err != nil {
			return err
		}
	}
	return nil
}

// heard waits until the agent has taken the newest directive.
func (l *lab) heard() {
	l.t.Helper()
	l.wait("word that the directive arrived", func(r *api.SyncRequest) bool { return r.GetKnownRevision() == l.revision })
}

// set changes the lab under its lock.
func (l *lab) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// exists says whether a file is there.
func (l *lab) exists(name string) bool {
	_, err := os.Stat(filepath.Join(l.node.Root, name))
	return err == nil
}

func stepsOf(r *api.SyncRequest) string {
	var s []string
	for _, x := range r.GetSteps() {
		s = append(s, fmt.Sprintf("%s=%s", x.GetName(), strings.ToLower(strings.TrimPrefix(x.GetState().String(), "STATE_"))))
	}
	return strings.Join(s, " ")
}
