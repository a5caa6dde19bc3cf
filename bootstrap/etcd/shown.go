package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
)

// Shown is what a member shows in a TLS handshake, on either of its ports.
type Shown struct {
	// Leaf is its certificate, which it reads at each handshake.
	Leaf *x509.Certificate
	// Accepts are the names (DER) of the CAs of which it takes certificates: those that it read
	// at its start (client/pkg/transport, TLSInfo.ServerConfig, etcd 3.6), and sends along as RFC
	// 8446, 4.2.4 has it. CAs of one name cannot be told apart here.
	Accepts [][]byte
}

// Show does a handshake with the member at HOST:PORT, and shows it conf's first certificate. ctx
// bounds it.
func Show(ctx context.Context, address string, conf *tls.Config) (Shown, error) {
	var s Shown
	conf = conf.Clone()
	own := conf.Certificates
	conf.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		s.Accepts = r.AcceptableCAs
		if len(own) == 0 {
			return &tls.Certificate{}, nil
		}
		return &own[0], nil
	}
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: conf}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return Shown{}, fmt.Errorf("looking at what etcd shows at %s: %w", address, err)
	}
	defer c.Close()
	s.Leaf = c.(*tls.Conn).ConnectionState().PeerCertificates[0]
	return s, nil
}
