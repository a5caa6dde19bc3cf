package httpboot

import (
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"net/netip"
	"time"
)

// notice is how long before its end the certificate of HTTPS boot is told of: long enough
// for a person to make another one.
const notice = 14 * 24 * time.Hour

// End is when the certificate of HTTPS boot ends.
func End(c *tls.Config) time.Time { return c.Certificates[0].Leaf.NotAfter }

// EndNotice is one sentence on a certificate of HTTPS boot that ends soon, or has ended;
// empty while it is good for long.
func EndNotice(end, now time.Time) string {
	const todo = "make another one of the same CA, and start imagectl serve again with it (docs/netboot.md)"
	left := end.Sub(now)
	switch at := end.UTC().Format("2006-01-02 15:04:05 MST"); {
	case left <= 0:
		return fmt.Sprintf("the certificate of --boot-tls-cert ended at %s: firmware that looks at its clock does not boot by HTTPS any more; %s", at, todo)
	case left < notice:
		return fmt.Sprintf("the certificate of --boot-tls-cert ends at %s, in %d days; then firmware does not boot by HTTPS any more: %s", at, int(left.Hours()/24), todo)
	}
	return ""
}

// TLS is what UEFI can talk to when it boots by HTTPS. OVMF of 2022 offers no ECDHE
// and takes only RSA certificates, so both are asked for here and on no other port:
// without ECDHE, who steals the key reads old connections too, and all that these
// carry is public. The error says what keeps firmware from accepting the certificate,
// which has to be for address as an IP address and good at now.
func TLS(certificatePEM, keyPEM []byte, address netip.Addr, now time.Time) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(certificatePEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate for HTTPS boot: %w", err)
	}
	leaf := pair.Leaf
	switch _, ok := leaf.PublicKey.(*rsa.PublicKey); {
	case !ok:
		return nil, fmt.Errorf("the certificate for HTTPS boot has a key of kind %s, UEFI wants RSA", leaf.PublicKeyAlgorithm)
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		return nil, fmt.Errorf("the certificate for HTTPS boot is good from %s to %s, and now it is %s", leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	if err := leaf.VerifyHostname(address.String()); err != nil {
		return nil, fmt.Errorf("the certificate for HTTPS boot is not for server.address: %w (make it with subjectAltName=IP:%s)", err, address)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_RSA_WITH_AES_128_CBC_SHA256, tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA,
		},
	}, nil
}
