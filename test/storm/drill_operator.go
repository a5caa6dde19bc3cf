package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
)

// dialer calls from a machine's address, which is what the wire carries.
func (d *drill) dialer() *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: d.machines[0].address.AsSlice()}, Timeout: 5 * time.Second}
}

// operator calls whichever server answers.
func (d *drill) operator(ctx context.Context, f func(apiconnect.OperatorServiceClient) error) error {
	b, err := os.ReadFile(d.context(0))
	if err != nil {
		return err
	}
	var c struct{ Certificate, Key string }
	if err := json.Unmarshal(b, &c); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair([]byte(c.Certificate), []byte(c.Key))
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: d.dialer().DialContext, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: d.roots, Certificates: []tls.Certificate{pair}}}}
	defer client.CloseIdleConnections()
	for i := 0; ; i++ {
		err := f(apiconnect.NewOperatorServiceClient(client, d.urls[i%len(d.urls)]))
		if err == nil || ctx.Err() != nil || !elsewhere(err) {
			return err
		}
		if err := sleep(ctx, 300*time.Millisecond); err != nil {
			return err
		}
	}
}

// approve plays the operator, who compares codes and types them.
func (d *drill) approve(ctx context.Context) {
	for {
		select {
		case c := <-d.consoles:
			err := d.operator(ctx, func(o apiconnect.OperatorServiceClient) error {
				resp, err := o.ApproveMachine(ctx, connect.NewRequest(&api.ApproveMachineRequest{
					Selection: &api.Selection{Names: []string{c.machine}}, Codes: map[string]string{c.machine: c.code}}))
				if err != nil {
					return err
				}
				return refused(resp.Msg.GetOutcomes())
			})
			if err != nil && ctx.Err() == nil {
				d.note("approving %s: %v", c.machine, err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// refused is an error where something was not done for another reason than that it had
// been done before.
func refused(outcomes []*api.Outcome) error {
	var errs []error
	for _, o := range outcomes {
		if o.GetReasonCode() == "storage" {
			errs = append(errs, fmt.Errorf("%s: %s", o.GetMachine(), o.GetMessage()))
		}
	}
	return errors.Join(errs...)
}
