package rest

import (
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

const (
	connectLimit = 30 * time.Second
	// idleConns is more than any platform is sent at once: the library keeps two, and
	// opens and closes one for each block of the others.
	idleConns = 32
	// sendBuffer is between the file and the socket, in bytes.
	sendBuffer = 256 << 10
)

// NewTransport is what uploads are sent by.
func NewTransport(trust *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: connectLimit}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSClientConfig: trust,
		TLSHandshakeTimeout: connectLimit, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: idleConns, WriteBufferSize: sendBuffer,
	}
}
