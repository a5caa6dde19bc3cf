package serverapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/pxe/limit"
	"github.com/imagectl/imagectl/pxe/routes"
)

// Limits of the https listener.
const (
	// maxConns bounds connections: an agent needs one. Agents behind a router that
	// rewrites addresses share one address, so a share is not small.
	maxConns, maxConnsEach = 4096, 1024
	// maxRequest bounds a request's body.
	maxRequest = 256 << 10
	stopTime   = 3 * time.Second
	// headerTime is for a handshake or the headers of a request: what agents give a
	// handshake too, or a slow one would be cut off again and again.
	headerTime = 20 * time.Second
	// renewPause is between two attempts to renew the server's own certificate.
	renewPause = time.Minute
)

// Handler serves all three services and the pages, and passes calls on to nodes. Requests must come through the TLS of
// TLSConfig.
func (s *Server) Handler() http.Handler { return s.authenticate(unhurried(s.mux())) }

func (s *Server) mux() *routes.Mux {
	options := []connect.HandlerOption{connect.WithReadMaxBytes(maxRequest), connect.WithInterceptors(s.calls, audited{s, permissions()}, secondPerson{s})}
	mux := &routes.Mux{}
	mux.Handle(apiconnect.NewEnrolServiceHandler(enrolment{s}, options...))
	mux.Handle(apiconnect.NewAgentServiceHandler(agents{s}, options...))
	mux.Handle(apiconnect.NewOperatorServiceHandler(operators{s}, options...))
	mux.Handle(nodePath, boundedCalls(&nodes{Server: s, calls: map[string]int{}}))
	for _, p := range s.pages() {
		pattern := "GET " + p.Path
		if strings.HasSuffix(p.Path, "/") {
			pattern += "{$}"
		}
		mux.Handle(pattern, s.calls.page(p))
	}
	return mux
}

// unhurried lifts the write deadline for the calls that stream for long, and for those
// that change as many machines as there are.
func unhurried(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case apiconnect.OperatorServiceWatchMachinesProcedure, apiconnect.OperatorServiceBackupServerProcedure, apiconnect.OperatorServiceReadAuditProcedure, apiconnect.AgentServiceFetchBackupProcedure, apiconnect.AgentServiceFetchAuditProcedure,
			apiconnect.OperatorServiceApproveMachineProcedure, apiconnect.OperatorServiceRejectMachineProcedure, apiconnect.OperatorServiceRetireMachineProcedure,
			apiconnect.OperatorServiceArmMachineProcedure, apiconnect.OperatorServiceDisarmMachineProcedure, apiconnect.OperatorServicePowerMachineProcedure:
			// Without support for it the stream ends early, and clients come back.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		}
		next.ServeHTTP(w, r)
	})
}

// TLSConfig is TLS 1.3 with this server's own certificate, which is made anew
// when it is due: its key never touches a disk. A client may come without a
// certificate (to enrol); one that it shows must be this cluster's.
func (s *Server) TLSConfig() (*tls.Config, error) {
	own := s.own
	if _, err := own.get(nil); err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		GetCertificate: own.get,
		NextProtos:     []string{"h2", "http/1.1"},
		Time:           s.cfg.Now,
		// A resumed session would not look at the certificate again.
		SessionTicketsDisabled: true,
	}
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := config.Clone()
		c.ClientCAs = pki.Pool(s.trust.Load().trusted)
		return c, nil
	}
	return config, nil
}

type ownCertificate struct {
	server *Server

	mu    sync.Mutex
	cert  *tls.Certificate
	renew time.Time
}

func (o *ownCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.server
	now := s.cfg.Now()
	if o.cert != nil && now.Before(o.renew) && s.trust.Load().signs(o.cert.Leaf) && s.allowSerial(caller{serial: pki.Serial(o.cert.Leaf)}) == nil {
		return o.cert, nil
	}
	next, err := o.issue(now)
	switch {
	case err == nil:
		o.cert, o.renew = next, now.Add(pki.RenewAfter(s.lifetimes.Agent))
		s.certificateEnd.Store(next.Leaf.NotAfter.Unix())
		s.warnOfEnds()
	case o.cert == nil || now.After(o.cert.Leaf.NotAfter):
		return nil, err
	default:
		// Agents that only ask need no store that takes changes.
		s.cfg.Log.Error("renewing the server's own certificate; the old one stays in use", "until", o.cert.Leaf.NotAfter, "error", err.Error())
		o.renew = now.Add(renewPause)
	}
	return o.cert, nil
}

func (o *ownCertificate) issue(now time.Time) (*tls.Certificate, error) {
	s := o.server
	names := append([]string{"localhost"}, s.cfg.ServerNames...)
	addresses := append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, s.cfg.ServerAddresses...)
	profile, err := pki.Server(s.cfg.Cluster, names, addresses, s.lifetimes)
	if err != nil {
		return nil, err
	}
	key, err := pki.NewKey(s.cfg.Rand)
	if err != nil {
		return nil, fmt.Errorf("making the server's key: %w", err)
	}
	public, err := pki.OwnKey(key)
	if err != nil {
		return nil, err
	}
	t := s.trust.Load()
	issued, err := t.ca.Sign(profile, public, now, s.cfg.Rand)
	if err != nil {
		return nil, err
	}
	err = s.change(context.Background(), s.self(), func(c *change) error {
		return c.issued(holderOf(pki.KindServer, "imagectl"), caImagectl, profileServer, issued)
	})
	if err != nil {
		return nil, err
	}
	shown := &tls.Certificate{Certificate: [][]byte{issued.Certificate.Raw}, PrivateKey: key, Leaf: issued.Certificate}
	for _, c := range t.cross {
		shown.Certificate = append(shown.Certificate, c.Raw)
	}
	return shown, nil
}

// Serve answers on a TCP listener until ctx ends, and closes it.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	config, err := s.TLSConfig()
	if err != nil {
		l.Close()
		return err
	}
	// Long polls end when the server does, not half a minute later.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	limited := limit.New(l, maxConns, maxConnsEach)
	s.cfg.Log.Debug("routes", "server", "https", "patterns", s.mux().Patterns())
	srv := &http.Server{
		Handler:           s.Handler(),
		TLSConfig:         config,
		ReadHeaderTimeout: s.headers,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      s.poll + 30*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnState:         limited.Left,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.With("server", "https").Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.ServeTLS(limited, "", "") }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	cancel()
	graceful, stop := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer stop()
	if srv.Shutdown(graceful) != nil {
		srv.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Operator makes a certificate and key for somebody who is in no record. who is the
// person's name. It is for tests, and for what runs beside the server; people are let in
// by Local and AddOperator.
func (s *Server) Operator(ctx context.Context, who string, role pki.Role) (certificatePEM, keyPEM []byte, notAfter time.Time, err error) {
	return s.operator(ctx, who, role, func(*change) error { return nil })
}

// operator makes them when let has nothing against it.
func (s *Server) operator(ctx context.Context, who string, role pki.Role, let func(*change) error) (certificatePEM, keyPEM []byte, notAfter time.Time, err error) {
	key, err := pki.NewKey(s.cfg.Rand)
	if err != nil {
		return nil, nil, time.Time{}, fmt.Errorf("making a key for %s: %w", who, err)
	}
	public, err := pki.OwnKey(key)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	if keyPEM, err = pki.EncodeKey(key); err != nil {
		return nil, nil, time.Time{}, err
	}
	issued, err := s.signOperator(who, role, public)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	err = s.change(ctx, s.self(), func(c *change) error {
		if err := let(c); err != nil {
			return err
		}
		return c.issued(holderOf(pki.KindOperator, who), caImagectl, profileOperator, issued)
	})
	if err != nil {
		return nil, nil, time.Time{}, fmt.Errorf("making a certificate for %s: %w", who, err)
	}
	return []byte(s.chain(string(issued.PEM))), keyPEM, issued.Certificate.NotAfter, nil
}

// signOperator signs a person's certificate; nobody gets it before it is on record.
func (s *Server) signOperator(who string, role pki.Role, key pki.PublicKey) (pki.Issued, error) {
	profile, err := pki.Operator(s.cfg.Cluster, who, role, s.lifetimes)
	if err != nil {
		return pki.Issued{}, err
	}
	return s.signer().Sign(profile, key, s.cfg.Now(), s.cfg.Rand)
}
