package serverapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// maxRenewed is how many certificates that are good one key of a person may have. It is far
// more than a person's machines need, each of which asks when a third of twelve hours is over.
const maxRenewed = 128

// OneConnection opens a TLS connection to a server's URL and returns a client that uses it, and no
// other one: for a call that names its connection (pki.RenewalRequest). The caller closes the
// client's idle connections.
func OneConnection(ctx context.Context, server string, config *tls.Config) (*http.Client, tls.ConnectionState, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, tls.ConnectionState{}, fmt.Errorf("reading the server's URL: %w", err)
	}
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), "443")
	}
	config = config.Clone()
	config.NextProtos = []string{"http/1.1"}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, tls.ConnectionState{}, err
	}
	var used atomic.Bool
	t := &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
		if used.Swap(true) {
			return nil, errors.New("the connection that the request was made for has ended")
		}
		return conn, nil
	}}
	return &http.Client{Transport: t}, conn.(*tls.Conn).ConnectionState(), nil
}

// RenewOperator implements apiconnect.EnrolServiceHandler. Anybody may call; what holds back
// strangers is that only the person's key can make a request for this connection, so nothing below
// is done, counted or limited for anybody else.
func (s enrolment) RenewOperator(ctx context.Context, req *connect.Request[api.RenewOperatorRequest]) (*connect.Response[api.RenewOperatorResponse], error) {
	from := callerOf(ctx)
	if from.tls == nil {
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("this call needs TLS"))
	}
	key, err := pki.ParseRenewal(req.Msg.GetCsrDer(), *from.tls)
	switch {
	case errors.Is(err, pki.ErrOtherConnection):
		return nil, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%w: it was sent before, or by an imagectl that is older than the server; bring imagectl up to date", pki.ErrOtherConnection))
	case err != nil:
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	var issued pki.Issued
	err = s.change(ctx, audit.Actor{Subject: "key " + key.Fingerprint(), Source: from.source}, func(c *change) error {
		p, err := c.personOfKey(key.Fingerprint())
		if err != nil {
			return err
		}
		if !s.renewals.allow(p.Name, c.now) {
			return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("operator %s asks for a certificate too often; ask again in a minute", p.Name))
		}
		// Nobody may hold so many that the oldest are forgotten: they could not be revoked.
		h := holderOf(pki.KindOperator, p.Name)
		n, err := c.goodOf(h, profileOperator, key.Fingerprint())
		if err != nil {
			return err
		}
		if n >= maxRenewed {
			return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("this key of %s has %d certificates that are good, and gets no more until some have ended; imagectl certs ls shows them", h, n))
		}
		if issued, err = s.signOperator(p.Name, p.Role, key); err != nil {
			return err
		}
		c.actor.Subject = pki.Identity{Cluster: s.cfg.Cluster, Kind: pki.KindOperator, Name: p.Name}.String()
		return c.issued(h, caImagectl, profileOperator, issued)
	})
	if err != nil {
		return nil, s.storing("", err)
	}
	return connect.NewResponse(&api.RenewOperatorResponse{CertificatePem: s.chain(string(issued.PEM)), CaPem: string(s.CAPEM()), FormerPem: string(s.FormerCAPEM())}), nil
}

// personOfKey is the person whose key it is now, and who may come in.
func (c *change) personOfKey(fingerprint string) (person, error) {
	var name string
	ok, err := c.tx.Value(valuePersonKeys+fingerprint, &name)
	if err != nil {
		return person{}, err
	}
	p, known, err := c.person(name)
	switch {
	case err != nil:
		return person{}, err
	case !ok || !known:
		return person{}, connect.NewError(connect.CodePermissionDenied, errors.New("this key is no operator's; an admin adds it: imagectl operators add NAME --role ROLE --csr FILE"))
	case !p.standing():
		return person{}, p.refusal()
	case p.Key != fingerprint:
		return person{}, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("operator %s has another key now", name))
	}
	return p, nil
}

// goodOf counts a holder's certificates of a profile and a key that somebody would take: neither
// ended nor revoked.
func (c *change) goodOf(h holder, profile, key string) (int, error) {
	held, err := c.certificates(h)
	if err != nil {
		return 0, err
	}
	revoked, err := c.readRevoked()
	if err != nil {
		return 0, err
	}
	gone := map[string]bool{}
	for ca, l := range revoked.Lists {
		for _, e := range l.Entries {
			gone[ca+"/"+e.Serial] = true
		}
	}
	n := 0
	for _, o := range held {
		if o.Profile == profile && o.Key == key && !c.now.After(o.NotAfter) && !gone[o.CA+"/"+o.Serial] {
			n++
		}
	}
	return n, nil
}
