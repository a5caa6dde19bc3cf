package serverapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// permission says who may make a call. The zero value is nobody.
type permission struct {
	// anyone needs no certificate.
	anyone bool
	// node is an enrolled machine.
	node bool
	// roles are operators'.
	roles []pki.Role
	// anywhere: also a server that does not coordinate answers.
	anywhere bool
}

// permissions is the whole table: a call that is not here is refused.
func permissions() map[string]permission {
	node := permission{node: true}
	read := permission{roles: readers()}
	write := permission{roles: []pki.Role{pki.RoleAdmin, pki.RoleOperator}}
	admin := permission{roles: []pki.Role{pki.RoleAdmin}}
	table := map[string]permission{
		apiconnect.EnrolServiceEnrolProcedure:         {anyone: true},
		apiconnect.EnrolServiceRenewOperatorProcedure: {anyone: true},

		apiconnect.AgentServiceSyncProcedure:                   node,
		apiconnect.AgentServiceReportInstallProcedure:          node,
		apiconnect.AgentServiceIssueCertificatesProcedure:      node,
		apiconnect.AgentServiceFetchKubernetesSecretsProcedure: node,
		apiconnect.AgentServiceFetchBackupProcedure:            node,
		apiconnect.AgentServiceFetchAuditProcedure:             node,

		apiconnect.OperatorServiceListMachinesProcedure:    read,
		apiconnect.OperatorServiceWatchMachinesProcedure:   read,
		apiconnect.OperatorServiceWhyProcedure:             read,
		apiconnect.OperatorServiceStatusProcedure:          read,
		apiconnect.OperatorServiceApproveMachineProcedure:  write,
		apiconnect.OperatorServiceRejectMachineProcedure:   write,
		apiconnect.OperatorServiceArmMachineProcedure:      write,
		apiconnect.OperatorServiceDisarmMachineProcedure:   write,
		apiconnect.OperatorServicePowerMachineProcedure:    write,
		apiconnect.OperatorServiceRetireMachineProcedure:   write,
		apiconnect.OperatorServiceReplaceMachineProcedure:  write,
		apiconnect.OperatorServiceIssueTokenProcedure:      write,
		apiconnect.OperatorServiceIssueKubeconfigProcedure: admin,

		apiconnect.OperatorServiceBackupServerProcedure: {roles: []pki.Role{pki.RoleAdmin, pki.RoleBackup}},
		apiconnect.OperatorServiceReadAuditProcedure:    read,

		apiconnect.OperatorServiceListAuditSignaturesProcedure: read,

		apiconnect.OperatorServiceListCertificatesProcedure:   read,
		apiconnect.OperatorServiceRevokeCertificatesProcedure: admin,

		apiconnect.OperatorServiceShowAuthorityProcedure: read,
		apiconnect.OperatorServiceRollAuthorityProcedure: admin,

		apiconnect.OperatorServiceRotateAuthorityProcedure: admin,

		apiconnect.OperatorServiceDefragmentEtcdProcedure:    write,
		apiconnect.OperatorServiceRestoreEtcdProcedure:       admin,
		apiconnect.OperatorServiceListEtcdSnapshotsProcedure: {roles: pki.Roles()},
		apiconnect.OperatorServiceActMachineProcedure:        write,
		apiconnect.OperatorServiceDrainMachineProcedure:      write,
		apiconnect.OperatorServiceShowEncryptionProcedure:    read,
		apiconnect.OperatorServiceRotateEncryptionProcedure:  admin,

		apiconnect.OperatorServiceListOperatorsProcedure:   read,
		apiconnect.OperatorServiceAddOperatorProcedure:     admin,
		apiconnect.OperatorServiceRevokeOperatorsProcedure: admin,
		apiconnect.OperatorServiceListRequestsProcedure:    read,
		apiconnect.OperatorServiceApproveRequestProcedure:  write,
	}
	maps.Copy(table, nodeTable())
	return table
}

// readers are the roles that may look.
func readers() []pki.Role { return []pki.Role{pki.RoleAdmin, pki.RoleOperator, pki.RoleReader} }

// MayRead tells whether a request for a Page comes from an operator who may look
// at everything.
func MayRead(r *http.Request) bool {
	id := callerOf(r.Context()).identity
	return id.Kind == pki.KindOperator && slices.Contains(readers(), id.Role)
}

// caller is who makes a call.
type caller struct {
	// identity is the zero value without a certificate.
	identity pki.Identity
	// serial is the certificate's, fingerprint its key's.
	serial, fingerprint string
	// issuer is the pki.KeyID of the CA that signed it.
	issuer string
	// notAfter is the certificate's end; the zero time without one.
	notAfter time.Time
	// leaf is the certificate itself; nil without one.
	leaf *x509.Certificate
	// source is the address without port.
	source string
	// tls is the connection that it calls by; nil without TLS.
	tls *tls.ConnectionState
}

func (c caller) actor() audit.Actor {
	a := audit.Actor{Serial: c.serial, Source: c.source}
	if c.identity != (pki.Identity{}) {
		a.Subject = c.identity.String()
	}
	return a
}

type callerKey struct{}

// callerOf returns who makes the call; authenticate has put it there.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// authenticate decides about every request before its body is read.
func (s *Server) authenticate(next http.Handler) http.Handler {
	table := permissions()
	for _, p := range s.pages() {
		table[p.Path] = permission{anyone: p.Open, roles: readers(), anywhere: true}
	}
	refuse := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := s.identify(r)
		if err == nil {
			err = s.allow(c, table[r.URL.Path], r.URL.Path)
		}
		if err != nil {
			s.calls.refused(table, r.URL.Path, err)
			s.cfg.Log.Info("call refused", "procedure", r.URL.Path, "caller", c.identity.String(), "source", c.source, "reason", err.Error())
			s.auditRefused(r.Context(), c, table, r.URL.Path, err)
			// The client is gone if this fails.
			_ = refuse.Write(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

func (s *Server) identify(r *http.Request) (caller, error) {
	var c caller
	c.source, _, _ = net.SplitHostPort(r.RemoteAddr)
	c.tls = r.TLS
	if r.TLS == nil {
		return c, connect.NewError(connect.CodeUnauthenticated, errors.New("this call needs TLS"))
	}
	if len(r.TLS.PeerCertificates) == 0 {
		return c, nil
	}
	if len(r.TLS.VerifiedChains) == 0 {
		return c, connect.NewError(connect.CodeUnauthenticated, errors.New("the client certificate was not verified"))
	}
	leaf := r.TLS.PeerCertificates[0]
	// A connection may outlive the certificate that it was opened with.
	c.notAfter, c.serial = leaf.NotAfter, pki.Serial(leaf)
	id, err := pki.IdentityOf(leaf, s.cfg.Cluster)
	if err != nil {
		return c, connect.NewError(connect.CodeUnauthenticated, err)
	}
	// The log has who is refused, too.
	c.identity, c.fingerprint, c.leaf, c.issuer = id, fingerprint(leaf), leaf, pki.IssuerKeyID(leaf)
	if err := s.allowTime(c); err != nil {
		return c, err
	}
	return c, s.allowSerial(c)
}

// allowTime refuses a caller whose certificate has ended.
func (s *Server) allowTime(c caller) error {
	if s.cfg.Now().After(c.notAfter) {
		return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the client certificate expired at %s", c.notAfter.Format(time.RFC3339)))
	}
	return nil
}

func fingerprint(leaf *x509.Certificate) string {
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

func (s *Server) allow(c caller, p permission, procedure string) error {
	if p.anyone {
		return nil
	}
	switch c.identity.Kind {
	case "":
		return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("%s needs a client certificate of cluster %s", procedure, s.cfg.Cluster))
	case pki.KindNode:
		if p.node {
			return cmp.Or(s.leads(), s.allowNode(c))
		}
	case pki.KindOperator:
		if slices.Contains(p.roles, c.identity.Role) && p.anywhere {
			return nil
		}
		if slices.Contains(p.roles, c.identity.Role) {
			return s.leads()
		}
	}
	return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s may not call %s", describe(c.identity), procedure))
}

func describe(id pki.Identity) string {
	if id.Role != "" {
		return fmt.Sprintf("%s %s with role %s", id.Kind, id.Name, id.Role)
	}
	return fmt.Sprintf("%s %s", id.Kind, id.Name)
}

// allowNode refuses what a certificate outlives: a key that was replaced, a
// machine that was retired. The first is unauthenticated, which tells the agent
// to enrol again.
func (s *Server) allowNode(c caller) error {
	if err := s.allowSerial(c); err != nil {
		return err // revoked while it waited
	}
	m, ok := s.cfg.Store.Machine(c.identity.Name)
	return allowRecord(m, ok, c)
}

func allowRecord(m store.Machine, ok bool, c caller) error {
	switch {
	case !ok:
		return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("there is no record of machine %s", c.identity.Name))
	case m.State == machine.Retired:
		return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("machine %s was retired", m.Name))
	case m.Key == nil || m.Key.Fingerprint != c.fingerprint:
		return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the key of machine %s was replaced or withdrawn; enrol again", m.Name))
	}
	return nil
}
