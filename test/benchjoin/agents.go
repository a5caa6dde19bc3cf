package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// simulated is an agent on the wire: what it needs no server for is done before
// anything is timed, as it is on a machine that waits.
type simulated struct {
	name, mac, token string
	key              crypto.Signer
	csr              []byte
	leaf             *x509.Certificate
}

func nameOf(i int) string { return fmt.Sprintf("w%05d", i) }

func macOf(i int) string { return fmt.Sprintf("52:54:00:%02x:%02x:%02x", i>>16&255, i>>8&255, i&255) }

func newAgents(n int) ([]*simulated, error) {
	out := make([]*simulated, n)
	for i := range out {
		key, err := pki.NewKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			return nil, err
		}
		out[i] = &simulated{name: nameOf(i), mac: macOf(i), key: key, csr: csr}
	}
	return out, nil
}

// client has one connection of its own, with the agent's certificate if it has one.
func (a *simulated) client(roots *x509.CertPool) (*http.Client, func()) {
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	if a.leaf != nil {
		conf.Certificates = []tls.Certificate{{Certificate: [][]byte{a.leaf.Raw}, PrivateKey: a.key, Leaf: a.leaf}}
	}
	t := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	return &http.Client{Transport: t, Timeout: 2 * time.Minute}, t.CloseIdleConnections
}

// take checks a certificate as the real agent does, and that its CA is the server's.
func (a *simulated) take(pem []byte, roots *x509.CertPool, at time.Time) error {
	leaf, err := pki.ParseCertificatePEM(pem)
	if err != nil {
		return err
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(a.key.Public()) {
		return fmt.Errorf("%s was given a certificate for another key", a.name)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("the certificate of %s: %w", a.name, err)
	}
	a.leaf = leaf
	return nil
}

// pause waits as long as the real agent does after its nth failure.
func pause(ctx context.Context, n int) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(min(500*time.Millisecond<<min(n, 10), 30*time.Second)):
		return nil
	}
}

// enrol asks until the answer is final. asked is called when the server has the key
// on record, in whatever way.
func (a *simulated) enrol(ctx context.Context, url string, roots *x509.CertPool, asked func()) error {
	client, done := a.client(roots)
	defer done()
	service := apiconnect.NewEnrolServiceClient(client, url)
	for fails := 0; ; {
		resp, err := service.Enrol(ctx, connect.NewRequest(&api.EnrolRequest{
			CsrDer: a.csr, Mode: api.Mode_MODE_INSTALLER, AgentVersion: "bench", Token: a.token,
			Facts: &api.Facts{Interfaces: []*api.NetworkInterface{{Name: "eth0", Mac: a.mac, Up: true}}, Cpus: 2, MemoryBytes: 4 << 30, Firmware: "uefi", Kernel: "6.12"},
		}))
		switch {
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case connect.CodeOf(err) == connect.CodeResourceExhausted || connect.CodeOf(err) == connect.CodeUnavailable:
			if err := pause(ctx, fails); err != nil {
				return err
			}
			fails++
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", a.name, err)
		}
		asked()
		asked = func() {}
		switch m := resp.Msg; {
		case m.GetStatus() == api.EnrolResponse_STATUS_APPROVED && m.GetMachine() == a.name:
			return a.take([]byte(m.GetCertificatePem()), roots, time.Now())
		case m.GetStatus() != api.EnrolResponse_STATUS_PENDING || m.GetReasonCode() != enrol.CodePending:
			return fmt.Errorf("%s as %s: %s: %s", a.name, m.GetMachine(), m.GetReasonCode(), m.GetReason())
		default:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Duration(m.GetRetryAfterMs()) * time.Millisecond):
			}
		}
	}
}

// report is the first call with the certificate, over a connection of its own.
func (a *simulated) report(ctx context.Context, url string, roots *x509.CertPool) error {
	client, done := a.client(roots)
	defer done()
	_, err := apiconnect.NewAgentServiceClient(client, url).Sync(ctx, connect.NewRequest(&api.SyncRequest{
		BootId: a.name, Mode: api.Mode_MODE_INSTALLER, AgentVersion: "bench",
	}))
	if err != nil {
		return fmt.Errorf("the first report of %s: %w", a.name, err)
	}
	return nil
}

// result is how long each of many took.
type result struct {
	took time.Duration
	each []time.Duration // sorted
}

func (r result) rate() float64 { return float64(len(r.each)) / r.took.Seconds() }

func (r result) at(percent int) time.Duration {
	return r.each[min(len(r.each)*percent/100, len(r.each)-1)]
}

// all lets everybody do something at once and times it.
func all(ctx context.Context, agents []*simulated, f func(context.Context, *simulated) error) (result, error) {
	g, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	var r result
	begin := time.Now()
	for _, a := range agents {
		g.Go(func() error {
			if err := f(ctx, a); err != nil {
				return err
			}
			took := time.Since(begin)
			mu.Lock()
			defer mu.Unlock()
			r.each = append(r.each, took)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return r, err
	}
	if len(r.each) == 0 {
		return r, errors.New("nobody took part")
	}
	r.took = time.Since(begin)
	slices.Sort(r.each)
	return r, nil
}
