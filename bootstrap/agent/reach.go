package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"
)

// reachTime bounds one attempt to reach one server.
const reachTime = 5 * time.Second

// reached shakes hands with the servers, one after the other and anew each time, until one
// of them is of this cluster. It returns this machine's own address on the way there.
func (s *servers) reached(ctx context.Context) (own netip.Addr, err error) {
	var failed error
	for _, e := range s.list {
		own, err := s.reach(ctx, e.url)
		if err == nil {
			return own, nil
		}
		failed = errors.Join(failed, err)
	}
	return netip.Addr{}, failed
}

func (s *servers) reach(ctx context.Context, at string) (netip.Addr, error) {
	u, err := url.Parse(at)
	if err != nil {
		return netip.Addr{}, err
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	// No certificate is shown: whether this machine has one does not matter here.
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, VerifyConnection: s.verify}}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("reaching the server %s: %w", at, err)
	}
	defer c.Close()
	own, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return netip.Addr{}, err
	}
	return own.Addr().Unmap(), nil
}
