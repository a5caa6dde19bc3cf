package serverapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

const (
	// nodePort is bootstrapd's.
	nodePort = "50500"
	// nodeCalls calls to nodes are passed on at a time, and so many of one person's.
	nodeCalls, nodeCallsEach = 64, 16
	// nodeDial is how long a node may take to be there and to show who it is.
	nodeDial = 10 * time.Second
)

// nodeTable is the part of the table for calls that are passed on to nodes: who may make
// them is the nodes' own rule, which they look at again.
func nodeTable() map[string]permission {
	out := map[string]permission{}
	for procedure, roles := range nodeapi.Forwarded() {
		out[procedure] = permission{roles: roles}
	}
	return out
}

// nodes passes calls on to the nodes' own API, for people who have no route to them.
type nodes struct {
	*Server
	mu sync.Mutex
	// calls are how many there are now, by person.
	calls map[string]int
	all   int
}

// enter takes a place for a person, who gives it back by leave.
func (n *nodes) enter(who string) (leave func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.all >= nodeCalls || n.calls[who] >= nodeCallsEach {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the server passes on %d calls to nodes, %d of them yours; it takes %d and %d: end one", n.all, n.calls[who], nodeCalls, nodeCallsEach))
	}
	n.all++
	n.calls[who]++
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.all--
		if n.calls[who]--; n.calls[who] == 0 {
			delete(n.calls, who)
		}
	}, nil
}

// ServeHTTP passes on a call that authenticate has let in. That it was made, and what it asks
// for, is in the audit log before the node hears of it; what became of it is there when it has
// ended.
func (n *nodes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := connect.NewErrorWriter()
	answered := func(err error) {
		n.Server.calls.count(r.URL.Path, err)
		// The client is gone if this fails.
		_ = refuse.Write(w, r, err)
	}
	c := callerOf(r.Context())
	name := r.Header.Get(nodeapi.HeaderNode)
	fail := func(err error) {
		answered(err)
		of := nothingCameOf(path.Base(r.URL.Path), err)
		of.machine = name
		n.auditRefusals(r.Context(), c, of)
	}
	address, err := n.nodeAddress(name)
	if err != nil {
		fail(err)
		return
	}
	leave, err := n.enter(c.identity.Name)
	if err != nil {
		fail(err)
		return
	}
	defer leave()
	what, err := readAsked(r)
	if err != nil {
		fail(err)
		return
	}
	err = n.change(r.Context(), c.actor(), func(ch *change) error {
		ch.log(audit.Entry{Action: "node-called", Machine: name, Detail: words(what.what), Arguments: what.arguments})
		return nil
	})
	if err != nil {
		fail(err)
		return
	}
	var a *answer
	unheard := connect.CodeUnavailable // no answer has begun
	// The proxy panics when who asked goes away amid an answer.
	defer func() {
		result, bytes := unheard.String(), int64(0)
		if a != nil {
			result, bytes = a.result(), a.bytes
		}
		n.ended(r.Context(), c, name, what, result, bytes)
	}()
	t := n.toNode(name, address)
	defer t.CloseIdleConnections()
	proxy := &httputil.ReverseProxy{
		Transport: t,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "https", Host: name})
			for _, h := range []string{nodeapi.HeaderNode, "Authorization", "Cookie"} {
				p.Out.Header.Del(h)
			}
			nodeapi.SetCaller(p.Out.Header, r.TLS.PeerCertificates, c.source)
		},
		ModifyResponse: func(resp *http.Response) error {
			resp.Header.Del("Set-Cookie")
			a = newAnswer(resp)
			resp.Body = a
			n.Server.calls.count(r.URL.Path, nil)
			return nil
		},
		// A line of a log is sent when it comes.
		FlushInterval: -1,
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			if r.Context().Err() != nil {
				unheard = connect.CodeCanceled
			}
			answered(connect.NewError(connect.CodeUnavailable, fmt.Errorf("the server calls %s at %s: %w", name, address, err)))
		},
		ErrorLog: slog.NewLogLogger(n.cfg.Log.With("node", name).Handler(), slog.LevelDebug),
	}
	// The node ends what lasts too long, and each answer that nobody takes.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	proxy.ServeHTTP(w, r)
}

// ended puts into the log what became of a call. A server that dies before has none of it:
// then the log has that it was made, and nothing else.
func (n *nodes) ended(ctx context.Context, c caller, name string, what asked, result string, bytes int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTime)
	defer cancel()
	err := n.change(ctx, c.actor(), func(ch *change) error {
		ch.log(audit.Entry{Action: "node-answered", Machine: name, Detail: fmt.Sprintf("%s: %d bytes", words(what.what), bytes), Arguments: what.arguments, Result: result})
		return nil
	})
	if err != nil {
		n.cfg.Log.Error("noting what a node answered", "machine", name, "call", what.what, "result", result, "error", err.Error())
	}
}

// boundedCalls bounds what people send to nodes: little, but for a snapshot of etcd, which the node
// bounds by what it was told to take.
func boundedCalls(next http.Handler) http.Handler {
	small, large := http.MaxBytesHandler(next, maxRequest), http.MaxBytesHandler(next, nodeapi.SnapshotMax+nodeapi.SnapshotMax/64)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != apiconnect.NodeServicePutEtcdSnapshotProcedure {
			small.ServeHTTP(w, r)
			return
		}
		// The node ends what comes too slowly.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		large.ServeHTTP(w, r)
	})
}

// nodeAddress is where a node's API is.
func (n *nodes) nodeAddress(name string) (string, error) {
	if name == "" {
		return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the header %s does not name a node", nodeapi.HeaderNode))
	}
	if _, ok := n.machineOf(name); !ok {
		return "", connect.NewError(connect.CodeNotFound, fmt.Errorf("cluster.yaml has no machine %.64q", name))
	}
	if n.cfg.Store.State(name) == machine.Retired {
		return "", connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("machine %s was retired", name))
	}
	address := n.addressOf(name)
	if address == "" {
		return "", connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("no address of %s is known: it has not called since it was listed", name))
	}
	return net.JoinHostPort(address, n.nodePort), nil
}

// toNode speaks to one node and to nobody else, as this server.
func (n *nodes) toNode(name, address string) *http.Transport {
	dialer := &net.Dialer{Timeout: nodeDial}
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		},
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, ServerName: name, Time: n.cfg.Now,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return n.own.get(nil) },
			// VerifyConnection does it: it knows CAs that were replaced, and whose key it has to be.
			InsecureSkipVerify: true,
			VerifyConnection:   func(s tls.ConnectionState) error { return n.verifyNode(name, s) },
		},
		ForceAttemptHTTP2: true, TLSHandshakeTimeout: nodeDial, MaxResponseHeaderBytes: 64 << 10,
		// What a node compresses is for who called.
		DisableCompression: true,
	}
}

// verifyNode believes only the machine that has the name now, by the key on its record.
func (n *nodes) verifyNode(name string, s tls.ConnectionState) error {
	if err := pki.Verify(n.trust.Load().trusted, s.PeerCertificates, name, x509.ExtKeyUsageServerAuth, n.cfg.Now()); err != nil {
		return err
	}
	leaf := s.PeerCertificates[0]
	id, err := pki.IdentityOf(leaf, n.cfg.Cluster)
	if err != nil {
		return err
	}
	if want := (pki.Identity{Cluster: n.cfg.Cluster, Kind: pki.KindNode, Name: name}); id != want {
		return fmt.Errorf("it is %s, want %s", id, want)
	}
	err = n.allowNode(caller{identity: id, serial: pki.Serial(leaf), fingerprint: fingerprint(leaf), leaf: leaf})
	var ce *connect.Error
	if errors.As(err, &ce) {
		return errors.New(ce.Message())
	}
	return err
}

// nodePath is where the calls to nodes are, in a mux.
const nodePath = "/" + apiconnect.NodeServiceName + "/"
