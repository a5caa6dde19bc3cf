package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// installer is what runs on a machine after its kernel has started: the agent's side of
// enrolling and installing, without a disk.
type installer struct {
	m       *machine
	rack    *rackServers
	key     crypto.Signer
	cert    *tls.Certificate
	clients []*http.Client
	// at is which of the servers is asked now.
	at int
}

// errRefused says that the servers gave an answer, and no installation.
var errRefused = errors.New("no server lets it install")

func (m *machine) installer(rack *rackServers) (*installer, error) {
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	i := &installer{m: m, rack: rack, key: key}
	i.connect()
	// It asks the server first that it was started by.
	for n, a := range m.storm.servers {
		if a == m.server {
			i.at = n
		}
	}
	return i, nil
}

// connect makes clients that call from the machine's address and show its certificate.
func (i *installer) connect() {
	i.close()
	i.clients = nil
	for range i.rack.urls {
		config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: i.rack.roots}
		if i.cert != nil {
			config.Certificates = []tls.Certificate{*i.cert}
		}
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: i.m.address.AsSlice()}, Timeout: 10 * time.Second}
		i.clients = append(i.clients, &http.Client{Timeout: 20 * time.Second,
			Transport: &http.Transport{TLSClientConfig: config, DialContext: dialer.DialContext, ForceAttemptHTTP2: true}})
	}
}

func (i *installer) close() {
	for _, c := range i.clients {
		c.CloseIdleConnections()
	}
}

// call asks one server after the other until one answers, as the agent does.
func (i *installer) call(ctx context.Context, f func(client *http.Client, url string) error) error {
	for {
		err := f(i.clients[i.at], i.rack.urls[i.at])
		switch code := connect.CodeOf(err); {
		case err == nil, ctx.Err() != nil:
			return errors.Join(err, ctx.Err())
		case elsewhere(err):
			i.at = (i.at + 1) % len(i.rack.urls)
		case code != connect.CodeResourceExhausted && code != connect.CodeUnauthenticated:
			return err
		}
		i.m.retries++
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
}

// elsewhere says that another server may do better: this one died, or does not
// coordinate.
func elsewhere(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeUnknown, connect.CodeCanceled:
		return true
	}
	return false
}

// enrol asks until the operator has approved the machine's key.
func (i *installer) enrol(ctx context.Context) error {
	i.m.at("enrolment")
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, i.key)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(i.key.Public())
	if err != nil {
		return err
	}
	code := enrol.Code(i.rack.ca, spki)
	for {
		var resp *connect.Response[api.EnrolResponse]
		err := i.call(ctx, func(client *http.Client, url string) (err error) {
			resp, err = apiconnect.NewEnrolServiceClient(client, url).Enrol(ctx, connect.NewRequest(&api.EnrolRequest{
				CsrDer: der, Mode: api.Mode_MODE_INSTALLER, Facts: &api.Facts{Interfaces: []*api.NetworkInterface{{Name: "eth0", Mac: i.m.mac.String()}}},
			}))
			return err
		})
		if err != nil {
			return fmt.Errorf("enrolling: %w", err)
		}
		if resp.Msg.GetStatus() == api.EnrolResponse_STATUS_APPROVED {
			leaf, err := pki.ParseCertificatePEM([]byte(resp.Msg.GetCertificatePem()))
			if err != nil {
				return err
			}
			i.cert = &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: i.key, Leaf: leaf}
			i.connect()
			return nil
		}
		if resp.Msg.GetReasonCode() != enrol.CodePending {
			return fmt.Errorf("enrolling: %s: %s", resp.Msg.GetReasonCode(), resp.Msg.GetReason())
		}
		// The operator reads the code on the console.
		select {
		case i.rack.consoles <- console{i.m.name, code}:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

func (i *installer) sync(ctx context.Context, installed bool) (*api.SyncResponse, error) {
	var resp *connect.Response[api.SyncResponse]
	err := i.call(ctx, func(client *http.Client, url string) (err error) {
		resp, err = apiconnect.NewAgentServiceClient(client, url).Sync(ctx, connect.NewRequest(&api.SyncRequest{
			Mode: api.Mode_MODE_INSTALLER, BootId: i.m.name, Installed: installed,
		}))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("asking what to do: %w", err)
	}
	return resp.Msg, nil
}

// install writes the disk once, and reports it until the server has understood. Then it
// does what must not work: it starts once more, with the same key, and asks every server
// that is left whether it may write.
func (i *installer) install(ctx context.Context) error {
	i.m.at("installation")
	for tries := 0; ; tries++ {
		d, err := i.sync(ctx, false)
		if err != nil {
			return err
		}
		if d.GetInstall() != nil {
			i.m.written(d.GetInstall().GetArmingId())
			break
		}
		if tries > 60 {
			return fmt.Errorf("%w: %v", errRefused, d)
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
	i.m.at("report of its installation")
	for {
		d, err := i.sync(ctx, true)
		if err != nil {
			return err
		}
		if d.GetReboot() != nil {
			break
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
	i.m.at("second installation")
	for range i.rack.urls {
		i.at = (i.at + 1) % len(i.rack.urls)
		d, err := i.sync(ctx, false)
		if err != nil {
			return err
		}
		if d.GetInstall() != nil {
			i.m.written(d.GetInstall().GetArmingId())
		}
	}
	return nil
}

// written notes that the machine's disk is written.
func (m *machine) written(arming string) {
	if m.writes++; m.writes > 1 {
		m.wrong("has its disk written a second time, by arming %s", arming)
	}
}
