package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
)

// codeTLS is of UEFI that does not get through the handshake of HTTPS boot.
const codeTLS = "tls-handshake"

// handshakes returns a ConnState hook that tells which connections ended in their
// handshake, from which address and by what. The server logs it, and nobody there can
// tell which machine that was.
func handshakes(failed func(from netip.Addr, err error)) func(net.Conn, http.ConnState) {
	return func(c net.Conn, s http.ConnState) {
		conn, ok := c.(*tls.Conn)
		if !ok || s != http.StateClosed || conn.ConnectionState().HandshakeComplete {
			return
		}
		// The server has tried it: this is what it got, for whoever asks again.
		err := conn.Handshake()
		from, ok := c.RemoteAddr().(*net.TCPAddr)
		if err == nil || !ok || errors.Is(err, net.ErrClosed) { // closed by us: the server stops
			return
		}
		failed(from.AddrPort().Addr().Unmap(), err)
	}
}

// alert is what a client says of a handshake (RFC 5246 section 7.2, RFC 8446 section 6).
type alert struct {
	number  tls.AlertError
	meaning string
}

// alerts are those that certificates and suites cause. EDK2 checks certificates by
// OpenSSL, which chooses them by ssl_x509err2alert in ssl/statem/statem_lib.c.
func alerts() []alert {
	const look = "look at the clock of its firmware, and at the certificate: openssl x509 -noout -dates -ext subjectAltName"
	return []alert{
		{48, "its firmware does not have the CA of --boot-tls-cert: give it that one in its setup (TLS Auth Configuration, Server CA), as docs/netboot.md says"},
		{42, "its firmware refuses the certificate of --boot-tls-cert: " + look},
		{43, "its firmware does not take a certificate of this kind: it wants RSA"},
		{44, "its firmware takes the certificate of --boot-tls-cert for revoked"},
		{45, "its firmware takes the certificate of --boot-tls-cert for expired: " + look},
		{46, "its firmware refuses the certificate of --boot-tls-cert: " + look},
		{51, "its firmware cannot check the signature of the certificate of --boot-tls-cert: make it with SHA-256 and RSA of 2048 bits"},
		{70, "its firmware speaks no TLS 1.2"},
		{71, "its firmware wants stronger algorithms than it is offered"},
		{40, "its firmware and this server have no algorithm in common"},
	}
}

// handshakeFailure says in one sentence what a handshake ended with and what to do.
func handshakeFailure(err error) string {
	const says = "HTTPS boot does not come about: %s (%v)"
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		for _, a := range alerts() {
			if op.Err.Error() == a.number.Error() {
				return fmt.Sprintf(says, a.meaning, fmt.Sprintf("TLS alert %d, %v", uint8(a.number), op.Err))
			}
		}
		return fmt.Sprintf(says, "its firmware says no", op.Err)
	}
	var header tls.RecordHeaderError
	switch {
	case op != nil && op.Op == "local error" && op.Err.Error() == tls.AlertError(20).Error():
		// OpenSSL's alert about a certificate is not encrypted yet where TLS 1.3 wants it to be.
		return fmt.Sprintf(says, "its firmware broke off when it saw the certificate, and its alert cannot be read: most likely it does not have the CA of --boot-tls-cert; "+
			"give it that one in its setup (TLS Auth Configuration, Server CA), as docs/netboot.md says", err)
	case errors.As(err, &header):
		return fmt.Sprintf(says, "it does not speak TLS; a URL in its setup has to begin with https://", err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf(says, "it did not end in 30 s: packets are lost on the way, or full ones do not arrive", err)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return fmt.Sprintf(says, "its firmware closed the connection without a word: it may have no CA at all in its setup (TLS Auth Configuration, Server CA)", err)
	}
	return fmt.Sprintf(says, "its firmware and this server do not agree: it needs TLS 1.2 or newer with RSA", err)
}
