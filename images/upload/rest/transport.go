package rest

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/imagectl/imagectl/images/upload/stall"
)

const (
	connectLimit = 30 * time.Second
	// idleConns is more than any platform is sent at once: the library keeps two, and
	// opens and closes one for each block of the others.
	idleConns = 32
	// sendBuffer is between the file and the socket, in bytes.
	sendBuffer = 256 << 10
)

// NewTransport is what uploads are sent by. The watch, which may be nil, sees all bytes.
func NewTransport(trust *tls.Config, w *stall.Watch) *http.Transport {
	dial := w.Dialer((&net.Dialer{Timeout: connectLimit}).DialContext)
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: trust,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return conn{c}, nil
		},
		TLSHandshakeTimeout: connectLimit, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: idleConns, WriteBufferSize: sendBuffer,
	}
}

// inMemory is the body of a request.
type inMemory struct{ *bytes.Reader }

// Close implements io.Closer.
func (inMemory) Close() error { return nil }

// conn sends a body in memory as it is: package net copies it, 32 KiB at a time, and each of them
// wakes the other side.
type conn struct{ net.Conn }

// ReadFrom implements io.ReaderFrom.
func (c conn) ReadFrom(r io.Reader) (int64, error) {
	if l, ok := r.(*io.LimitedReader); ok {
		if b, ok := l.R.(inMemory); ok && int64(b.Len()) <= l.N {
			n, err := b.WriteTo(c.Conn)
			l.N -= n
			return n, err
		}
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}
