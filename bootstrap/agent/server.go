package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// servers are the servers of node.json, one of which is in use until it fails.
type servers struct {
	list []endpoint
	at   atomic.Uint32
	// verify says whether the other end is a server of this cluster.
	verify func(tls.ConnectionState) error
}

type endpoint struct {
	url   string
	enrol apiconnect.EnrolServiceClient
	agent apiconnect.AgentServiceClient
	close func()
}

// messageMax bounds an answer: a Run with add-ons is the largest.
const messageMax = 32 << 20

func newServers(conf nodeconf.Config, authority *authority, id *identity, now func() time.Time) *servers {
	s := &servers{verify: func(cs tls.ConnectionState) error {
		if err := verifyServer(conf.Cluster, authority.roots(), now(), cs); err != nil {
			return err
		}
		if l := id.revoked.Load(); l != nil && l.Has(cs.PeerCertificates[0]) {
			return fmt.Errorf("verifying the server: its certificate (serial %s) is revoked", pki.Serial(cs.PeerCertificates[0]))
		}
		return nil
	}}
	for _, u := range conf.Servers {
		// Enrol goes without a certificate: an expired one would end the handshake.
		enrol := transport(s.verify, nil)
		agent := transport(s.verify, id)
		s.list = append(s.list, endpoint{
			url:   u,
			enrol: apiconnect.NewEnrolServiceClient(&http.Client{Transport: enrol, Timeout: time.Minute}, u, connect.WithReadMaxBytes(messageMax)),
			agent: apiconnect.NewAgentServiceClient(&http.Client{Transport: agent, Timeout: 2 * time.Minute}, u, connect.WithReadMaxBytes(messageMax)),
			close: agent.CloseIdleConnections,
		})
	}
	return s
}

func transport(verify func(tls.ConnectionState) error, id *identity) *http.Transport {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// verify does all of it, and more.
		InsecureSkipVerify: true,
		VerifyConnection:   verify,
	}
	if id != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c, _ := id.current(); c != nil {
				return c, nil
			}
			return nil, errors.New("this machine has no certificate yet")
		}
	}
	return &http.Transport{
		TLSClientConfig: conf, ForceAttemptHTTP2: true,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 20 * time.Second,
		IdleConnTimeout:     90 * time.Second,
		// A dead path is noticed within half a minute, also under a long poll.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}
}

// verifyServer accepts the server of this cluster and nobody else: its chain
// ends at a CA that this machine trusts or at one that such a CA has signed as its successor
// or predecessor, and its URI name says that it is a server, which no
// node's or operator's certificate of the same CA does. Names and addresses may
// change under that identity and are not compared.
//
// A clock that is behind (a dead battery: 1970) would find every certificate
// "not yet valid", so a time before the leaf's is taken to be the leaf's. What
// that gives an attacker is the use of an expired server key against a machine
// with a dead clock, before its clock is set by the first answer.
func verifyServer(cluster string, roots []*x509.Certificate, now time.Time, cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("verifying the server: it shows no certificate")
	}
	leaf := cs.PeerCertificates[0]
	if now.Before(leaf.NotBefore) {
		now = leaf.NotBefore
	}
	if err := pki.Verify(roots, cs.PeerCertificates, "", x509.ExtKeyUsageServerAuth, now); err != nil {
		return fmt.Errorf("verifying the server: %w", err)
	}
	who, err := pki.IdentityOf(leaf, cluster)
	if err != nil {
		return fmt.Errorf("verifying the server: %w", err)
	}
	if who.Kind != pki.KindServer {
		return fmt.Errorf("verifying the server: %s is no server", who)
	}
	return nil
}

// current is the server in use.
func (s *servers) current() endpoint { return s.list[int(s.at.Load())%len(s.list)] }

// failed moves on to the next server after a failure that another one might not
// have.
func (s *servers) failed(err error) {
	if code := connect.CodeOf(err); code == connect.CodeUnavailable || code == connect.CodeDeadlineExceeded || code == connect.CodeUnknown {
		s.at.Add(1)
	}
}

// reconnect makes the next call shake hands again, with a new certificate.
func (s *servers) reconnect() {
	for _, e := range s.list {
		e.close()
	}
}

// address is this machine's own address on the way to the server, which is
// where others on the same network reach it. Nothing is sent.
func (s *servers) address(ctx context.Context) string {
	u, err := url.Parse(s.current().url)
	if err != nil {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return ""
	}
	defer c.Close()
	if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
		return a.IP.String()
	}
	return ""
}
