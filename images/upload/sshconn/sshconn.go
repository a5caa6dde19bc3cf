// Package sshconn connects to a host by SSH for as long as a context lasts.
package sshconn

import (
	"context"
	"net"
	"time"

	"golang.org/x/crypto/ssh"
)

// limit is how long one try to connect may take.
const limit = 15 * time.Second

// Dialer opens a connection, as net.Dialer does.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// Dial connects to HOST:PORT and logs in. The context and a limit of its own end the
// attempt; the connection that it returns is the caller's to close.
func Dial(ctx context.Context, dial Dialer, address string, conf *ssh.ClientConfig) (*ssh.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	c, channels, requests, err := ssh.NewClientConn(conn, address, conf)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), nil
}
