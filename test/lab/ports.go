package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"
)

// OpenTCPPorts tries every TCP port of an address and returns those that accept.
func OpenTCPPorts(ctx context.Context, address string) ([]int, error) {
	var (
		mu   sync.Mutex
		open []int
		wg   sync.WaitGroup
	)
	ports := make(chan int)
	failed := make(chan error, 1)
	for range 256 {
		wg.Go(func() {
			for port := range ports {
				ok, err := accepts(ctx, net.JoinHostPort(address, strconv.Itoa(port)))
				if err != nil {
					select {
					case failed <- err:
					default:
					}
				}
				if ok {
					mu.Lock()
					open = append(open, port)
					mu.Unlock()
				}
			}
		})
	}
	for port := 1; port <= 65535; port++ {
		ports <- port
	}
	close(ports)
	wg.Wait()
	select {
	case err := <-failed:
		return nil, err
	default:
		return open, nil
	}
}

// accepts tells whether a port accepts. Silence is not an answer: a firewall
// that drops would hide a door, so it is an error here.
func accepts(ctx context.Context, address string) (bool, error) {
	var last error
	for range 3 {
		d := net.Dialer{Timeout: 20 * time.Second}
		conn, err := d.DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
			return true, nil
		}
		var op *net.OpError
		if errors.As(err, &op) && !op.Timeout() {
			return false, nil
		}
		last = err
	}
	return false, fmt.Errorf("trying %s: neither open nor closed: %w", address, last)
}

// RefusesStrangers returns nil when a port speaks TLS and ends the handshake with a
// client that shows no certificate.
func RefusesStrangers(ctx context.Context, address string) error {
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		if isAlert(err) {
			return nil
		}
		return fmt.Errorf("%s does not speak TLS: %w", address, err)
	}
	defer conn.Close()
	// In TLS 1.3 the server judges the client's certificate after the client is
	// done: the refusal comes with the first read.
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	_, err = conn.Read(make([]byte, 1))
	switch {
	case isAlert(err):
		return nil
	case err != nil:
		return fmt.Errorf("%s neither refuses nor answers: %w", address, err)
	}
	return fmt.Errorf("%s speaks to a stranger", address)
}

// isAlert tells whether the peer refused us in the TLS protocol itself.
func isAlert(err error) bool {
	var alert tls.AlertError
	var op *net.OpError
	return errors.As(err, &alert) || (errors.As(err, &op) && op.Op == "remote error")
}
