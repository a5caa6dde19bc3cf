package nodeapi

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Who has no route to a node asks the server, which passes the call on. It shows its own
// certificate and says who asks by that person's certificate, which is no secret: the node
// checks it as if the person had called (signature, time, revocation, role), and only has to
// believe the server that the person held the key. So a server that is taken over can do
// nothing here that its CA's key would not let it do anyway, and a person who was revoked is
// refused by nodes themselves.
const (
	// HeaderNode names the node, in a call to the server.
	HeaderNode = "Imagectl-Node"
	// HeaderCaller is the person's certificate with those that lead to the CA, in a call
	// from the server: DER in base64 (RFC 4648, section 4), with commas between them.
	HeaderCaller = "Imagectl-Caller"
	// HeaderSource is the person's IP address, as the server sees it.
	HeaderSource = "Imagectl-Caller-Source"

	// chainMax certificates are looked at.
	chainMax = 4
)

// Forwarded are the calls that the server may pass on, each with the roles of those who may
// make it.
func Forwarded() map[string][]pki.Role {
	out := map[string][]pki.Role{}
	for procedure, r := range access() {
		if r.forwarded {
			out[procedure] = r.roles
		}
	}
	return out
}

// SetCaller says in a call to a node whom the server passes it on for.
func SetCaller(h http.Header, chain []*x509.Certificate, source string) {
	var all []string
	for _, c := range chain[:min(len(chain), chainMax)] {
		all = append(all, base64.StdEncoding.EncodeToString(c.Raw))
	}
	h.Set(HeaderCaller, strings.Join(all, ","))
	h.Set(HeaderSource, source)
}

// onBehalf makes a call that the server passes on that person's; any other stays as it is.
func (t Trust) onBehalf(c caller, h http.Header) (caller, error) {
	said := h.Values(HeaderCaller)
	if len(said) == 0 {
		return c, nil
	}
	if c.who.Kind != pki.KindServer {
		return c, fmt.Errorf("%s may not call for somebody else: only the server may", c.who)
	}
	chain, err := parseChain(said)
	if err != nil {
		return c, fmt.Errorf("reading whom the server calls for: %w", err)
	}
	roots, err := pki.ParseCertificatesPEM(t.ClientCA)
	if err != nil {
		return c, errors.New("the CA of the node API's callers is not PEM")
	}
	if err := pki.Verify(roots, chain, "", x509.ExtKeyUsageClientAuth, t.Now()); err != nil {
		return c, fmt.Errorf("verifying whom the server calls for: %w", err)
	}
	if err := t.revoked(chain[0]); err != nil {
		return c, err
	}
	who, err := pki.IdentityOf(chain[0], t.Cluster)
	if err != nil {
		return c, err
	}
	if who.Kind != pki.KindOperator {
		return c, fmt.Errorf("the server may call for operators, not for %s", who)
	}
	source, err := netip.ParseAddr(h.Get(HeaderSource))
	if err != nil {
		return c, fmt.Errorf("the server does not say where %s calls from", who)
	}
	c.via, c.leaf, c.who, c.source = c.leaf, chain[0], who, source.Unmap().String()
	return c, nil
}

func parseChain(said []string) ([]*x509.Certificate, error) {
	parts := strings.Split(said[0], ",")
	if len(said) != 1 || len(parts) > chainMax {
		return nil, fmt.Errorf("more than %d certificates", chainMax)
	}
	var chain []*x509.Certificate
	for _, p := range parts {
		der, err := base64.StdEncoding.DecodeString(p)
		if err != nil {
			return nil, errors.New("it is not base64")
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// Call is who has made which call.
type Call struct {
	Procedure string
	audit.Actor
	// Via is the serial number of the server's certificate; empty for a person's own call.
	Via string
}

func (c caller) call(procedure string) Call {
	out := Call{Procedure: procedure, Actor: c.actor()}
	if c.via != nil {
		out.Via = pki.Serial(c.via)
	}
	return out
}

func (c caller) actor() audit.Actor {
	return audit.Actor{Subject: c.who.String(), Serial: pki.Serial(c.leaf), Source: c.source}
}

// connection are the ends of the connection that a request came by.
func connection(r *http.Request) (out [2]netip.AddrPort) {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		out[0], _ = netip.ParseAddrPort(a.String())
	}
	out[1], _ = netip.ParseAddrPort(r.RemoteAddr)
	return out
}
