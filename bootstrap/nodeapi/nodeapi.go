// Package nodeapi is the only way into a node: a Connect service over mutual
// TLS 1.3. Operators and servers of this cluster may call it, by role; other
// nodes may not, although the same CA signed their certificates.
//
// What changes something on the node (act.go), and what gives out secrets, is in the node's own
// audit log before it is done. The server's has it too where it was asked by the server.
//
// What changes nothing is in the files read_*.go. Every call is bounded in time, and what
// costs something in how many there may be at once (read_gates.go).
//
// The server passes calls on for people who have no route to nodes (behalf.go).
//
// Times of certificates are strict, but for one call by one role: an admin reads the
// backups that a node keeps with a certificate that has expired too. That is for the day
// when the server is lost, which is who renews certificates; the node lets in whom that
// would have given another one, as far as it was told (Trust.Admins). What comes can be
// opened with a recovery key only. The node keeps a record of each such call.
package nodeapi

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Trust is what the API shows to callers and demands from them.
type Trust struct {
	// Certificate is the node's own.
	Certificate *tls.Certificate
	// ClientCA is PEM.
	ClientCA []byte
	Cluster  string
	Now      func() time.Time
	// Revoked are callers' certificates that are refused; the zero value is none.
	Revoked pki.RevocationList
	// Changed is closed when Revoked is outdated; nil for never.
	Changed <-chan struct{}
	// Admins are those who have the role admin now: revocation lists forget certificates
	// that have expired, so nobody else's counts after its end. Nil is nobody.
	Admins []Admin
}

// Admin is an operator with the role admin.
type Admin struct {
	Name string
	// Key is the lower-case hexadecimal SHA-256 of the person's own key
	// (SubjectPublicKeyInfo); empty for one who gets another key with each certificate.
	Key string
}

// Node is the node as the API sees it.
type Node interface {
	Version(context.Context) *api.VersionResponse
	Health(context.Context) *api.HealthResponse
	// AuditHeads are the ends of the server's audit log that the node was shown.
	AuditHeads() *api.AuditHeadsResponse
	// Backup opens a backup that the node keeps, the newest for an empty name; the caller
	// closes it. The error is for whoever asked.
	Backup(name string) (files.Copy, io.ReadCloser, error)
	// Record adds an entry to the node's own audit log, on the disk when it returns.
	Record(audit.Entry) error
	// Journal hands lines of the journal, as journalctl's JSON, to read.
	Journal(ctx context.Context, q Query, read func(io.Reader) error) error
	Acting
	// System is the machine under the node.
	System() System
	// Heard notes who has begun a call; it is no log of record, as Record is.
	Heard(Call)
}

// MessageMax bounds a message of a call, in bytes, when it is not compressed.
const MessageMax = 64 << 10

// Query selects from the journal.
type Query struct {
	// Unit is empty for everything.
	Unit   string
	Follow bool
	// Since is the zero time for the beginning.
	Since time.Time
	// Lines is how many of the last ones; at least 1.
	Lines int
}

// rule says who may make a call.
type rule struct {
	roles  []pki.Role
	server bool
	// late are roles that may with a certificate that has expired, of those who have them
	// still.
	late []pki.Role
	// forwarded: the server may pass on such a call of a person's (behalf.go).
	forwarded bool
	// limit is how long the call may take; 0 means as long as the caller's certificate lasts.
	limit time.Duration
}

// access says who may call what. A call that is missing here may be called by
// nobody.
func access() map[string]rule {
	readers := []pki.Role{pki.RoleAdmin, pki.RoleOperator, pki.RoleReader}
	table := map[string]rule{
		apiconnect.NodeServiceVersionProcedure: {roles: pki.Roles(), server: true, forwarded: true},
		apiconnect.NodeServiceHealthProcedure:  {roles: readers, server: true, forwarded: true},
		apiconnect.NodeServiceLogsProcedure:    {roles: readers, server: true, forwarded: true},
		// Whom the answer is about has no business with it.
		apiconnect.NodeServiceAuditHeadsProcedure: {roles: readers},
		apiconnect.NodeServiceReadBackupProcedure: {roles: []pki.Role{pki.RoleAdmin, pki.RoleBackup}, late: []pki.Role{pki.RoleAdmin}},
	}
	maps.Copy(table, readAccess(readers))
	maps.Copy(table, acting())
	return table
}

// allowed returns the reason why a caller may not call a procedure, or nil.
func (t Trust) allowed(c caller, procedure string) error {
	rule, ok := access()[procedure]
	who := c.who
	switch {
	case !ok:
		return fmt.Errorf("there is no call %s", procedure)
	case c.late && !t.mayBeLate(who, c.leaf, rule):
		return expired(c.leaf)
	case c.via != nil && !rule.forwarded:
		return fmt.Errorf("%s is answered to the person who calls only, not through the server; use --via direct", procedure)
	case who.Kind == pki.KindServer && rule.server:
		return nil
	case who.Kind == pki.KindOperator && slices.Contains(rule.roles, who.Role):
		return nil
	case who.Kind == pki.KindOperator:
		return fmt.Errorf("%s with the role %s may not call %s", who, who.Role, procedure)
	}
	return fmt.Errorf("%s may not call %s: the node API is for operators and servers", who, procedure)
}

// mayBeLate says whether an expired certificate of somebody counts for a call.
func (t Trust) mayBeLate(who pki.Identity, leaf *x509.Certificate, r rule) bool {
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	key := hex.EncodeToString(sum[:])
	return who.Kind == pki.KindOperator && slices.Contains(r.late, who.Role) &&
		slices.ContainsFunc(t.Admins, func(a Admin) bool { return a.Name == who.Name && (a.Key == "" || a.Key == key) })
}

// Serve answers calls on ln, which it closes, until ctx ends. trust is asked for
// every connection, so that it may change; while it fails, nobody gets in.
func Serve(ctx context.Context, ln net.Listener, trust func() (Trust, error), node Node) error {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			t, err := trust()
			if err != nil {
				return nil, err
			}
			return t.config()
		},
	}
	mux := http.NewServeMux()
	s := &service{node: node, streams: make(chan struct{}, streamsMax), backups: make(chan struct{}, backupsMax), gates: newGates()}
	mux.Handle(apiconnect.NewNodeServiceHandler(s, connect.WithReadMaxBytes(MessageMax)))
	srv := &http.Server{
		Handler:           authorize(trust, mux, node.Heard),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	tlsConf := conf.Clone()
	tlsConf.NextProtos = []string{"h2", "http/1.1"}
	srv.TLSConfig = tlsConf
	if err := srv.ServeTLS(ln, "", ""); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the node API: %w", err)
	}
	return nil
}

func (t Trust) config() (*tls.Config, error) {
	roots, err := pki.ParseCertificatesPEM(t.ClientCA)
	if err != nil || len(roots) == 0 {
		return nil, errors.New("the CA of the node API's callers is not PEM")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}, Time: t.Now,
		// verify does what RequireAndVerifyClientCert would, and knows who may be late.
		Certificates: []tls.Certificate{*t.Certificate}, ClientCAs: pki.Pool(roots), ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error { return t.verify(roots, cs) },
		// A resumed session would outlive a change of the CA.
		SessionTicketsDisabled: true,
	}, nil
}

// verify lets in whom our CA has signed, in time but for those who may ever be late.
func (t Trust) verify(roots []*x509.Certificate, cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the caller shows no certificate")
	}
	leaf, at := cs.PeerCertificates[0], t.Now()
	late := at.After(leaf.NotAfter)
	if late {
		at = leaf.NotAfter
	}
	if err := pki.Verify(roots, cs.PeerCertificates, "", x509.ExtKeyUsageClientAuth, at); err != nil {
		return fmt.Errorf("verifying the caller: %w", err)
	}
	if !late {
		return nil
	}
	who, err := pki.IdentityOf(leaf, t.Cluster)
	if err != nil {
		return fmt.Errorf("verifying the caller: %w", err)
	}
	for _, rule := range access() {
		if t.mayBeLate(who, leaf, rule) {
			return nil
		}
	}
	return expired(leaf)
}

func expired(leaf *x509.Certificate) error {
	return fmt.Errorf("the caller's certificate has expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
}

// caller is who makes a call.
type caller struct {
	who  pki.Identity
	leaf *x509.Certificate
	// late: the certificate has expired.
	late   bool
	source string
	// via is the certificate of the server that passes the call on; nil for a person's own call.
	via *x509.Certificate
	// conn are this node's and the other side's ends of the connection.
	conn [2]netip.AddrPort
}

type callerKey struct{}

// lateTime bounds a call that no certificate's end does.
const lateTime = 30 * time.Minute

// These end a call that outlives the caller's certificate.
var (
	errExpired = errors.New("the caller's certificate has expired meanwhile")
	errRevoked = errors.New("the caller's certificate was revoked meanwhile")
	// errTooLong ends one that has taken as long as its kind may.
	errTooLong = errors.New("the call took longer than it may")
)

// writeGrace is what is left for the end of an answer when its time is over. Whoever takes
// nothing of it for so long loses the connection: else it would hold its place for ever.
const writeGrace = 10 * time.Second

func (t Trust) revoked(leaf *x509.Certificate) error {
	if t.Revoked.Has(leaf) {
		return fmt.Errorf("the caller's certificate (serial %s) is revoked", pki.Serial(leaf))
	}
	return nil
}

// untilRevoked ends a call when its caller's certificate is revoked.
func untilRevoked(ctx context.Context, trust func() (Trust, error), t Trust, leaf *x509.Certificate, end context.CancelCauseFunc) {
	for t.Changed != nil {
		select {
		case <-ctx.Done():
			return
		case <-t.Changed:
		}
		var err error
		if t, err = trust(); err != nil || t.revoked(leaf) != nil {
			end(errRevoked)
			return
		}
	}
}

// authorize lets a request pass whose certificate, verified by TLS, has a role
// for it.
func authorize(trust func() (Trust, error), next http.Handler, heard func(Call)) http.Handler {
	refuse := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var left time.Duration
		var t Trust
		var c caller
		err := func() error {
			var err error
			if t, err = trust(); err != nil {
				return err
			}
			if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
				return errors.New("the caller shows no certificate")
			}
			c.leaf = r.TLS.PeerCertificates[0] // Trust.verify has let it in
			c.source, _, _ = net.SplitHostPort(r.RemoteAddr)
			// TLS looked at this when the connection began; it may be old.
			left = c.leaf.NotAfter.Sub(t.Now())
			if c.late = left < 0; c.late {
				left = lateTime
			}
			if err := t.revoked(c.leaf); err != nil {
				return err
			}
			if c.who, err = pki.IdentityOf(c.leaf, t.Cluster); err != nil {
				return err
			}
			c.conn = connection(r)
			if c, err = t.onBehalf(c, r.Header); err != nil {
				return err
			}
			if c.via != nil {
				left = min(left, c.leaf.NotAfter.Sub(t.Now()))
			}
			return t.allowed(c, r.URL.Path)
		}()
		if err == nil {
			// Following a journal goes on for days.
			ctx, cancel := context.WithTimeoutCause(r.Context(), left, errExpired)
			defer cancel()
			if limit := access()[r.URL.Path].limit; limit > 0 {
				ctx, cancel = context.WithTimeoutCause(ctx, limit, errTooLong)
				defer cancel()
				left = min(left, limit)
				// Nor does a request that never ends hold its place for ever.
				_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(left))
			}
			// Without support for it a call ends as the connection does.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(left + writeGrace))
			ctx, end := context.WithCancelCause(ctx)
			defer end(nil)
			go untilRevoked(ctx, trust, t, c.leaf, end)
			if c.via != nil {
				go untilRevoked(ctx, trust, t, c.via, end)
			}
			heard(c.call(r.URL.Path))
			next.ServeHTTP(w, r.WithContext(context.WithValue(ctx, callerKey{}, c)))
			return
		}
		if werr := refuse.Write(w, r, connect.NewError(connect.CodePermissionDenied, err)); werr != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
		}
	})
}
