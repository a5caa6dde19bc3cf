package httpboot

import (
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"net/netip"
	"time"
)

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
