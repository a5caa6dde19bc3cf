package rest

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
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
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dial, TLSClientConfig: trust,
		TLSHandshakeTimeout: connectLimit, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: idleConns, WriteBufferSize: sendBuffer,
	}
}

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: connectLimit}).DialContext(ctx, network, address)
	if t, ok := c.(*net.TCPConn); ok {
		return conn{t}, err
	}
	return c, err
}

// inMemory is the body of a request.
type inMemory struct{ *bytes.Reader }

// Close implements io.Closer.
func (inMemory) Close() error { return nil }

// conn sends a body in memory as it is: package net copies it, 32 KiB at a time, and each of them
// wakes the other side.
type conn struct{ *net.TCPConn }

// ReadFrom implements io.ReaderFrom.
func (c conn) ReadFrom(r io.Reader) (int64, error) {
	if l, ok := r.(*io.LimitedReader); ok {
		if b, ok := l.R.(inMemory); ok && int64(b.Len()) <= l.N {
			n, err := b.WriteTo(c.TCPConn)
			l.N -= n
			return n, err
		}
	}
	return c.TCPConn.ReadFrom(r)
}
