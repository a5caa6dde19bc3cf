package serverapi

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Wiping an installed machine takes the word for it, also when the installer's last
// report got lost.
func TestALostReportDoesNotMakeAnInstalledMachineNew(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	r.arm("w1", false)
	if d := f.sync(installer()); d.GetInstall() == nil {
		t.Fatalf("want an Install directive, got %v", d)
	}
	// The image is written and the machine starts from it; nobody heard the installer say so.
	f.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE})
	f.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE, Failure: "its disk is full"})
	if s := r.store.State("w1"); s != machine.Failed {
		t.Fatalf("it is %s, want failed", s)
	}
	if o := r.arm("w1", false); o.GetReasonCode() != "needs-reinstall" {
		t.Errorf("arming it without --reinstall: %v", o)
	}
}

// pipes is a listener whose connections are in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// Arming ten thousand machines takes longer than any answer may that does no work. The clock is the
// test's: a real limit that is worth waiting for is shorter than a handshake on a busy machine.
func TestCallsAboutManyMachinesMayTakeLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = time.Minute
		var h2 http.Protocols
		h2.SetUnencryptedHTTP2(true)
		srv := &http.Server{WriteTimeout: limit, Protocols: &h2, Handler: unhurried(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(4 * limit)
			io.WriteString(w, "done")
		}))}
		l := make(pipes)
		done := make(chan error, 1)
		go func() { done <- srv.Serve(l) }()
		var conns []net.Conn
		tr := &http.Transport{Protocols: &h2, DialContext: func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			conns = append(conns, here)
			l <- there
			return here, nil
		}}
		for procedure, long := range map[string]bool{
			apiconnect.OperatorServiceArmMachineProcedure: true, apiconnect.OperatorServiceDisarmMachineProcedure: true, apiconnect.OperatorServiceApproveMachineProcedure: true,
			apiconnect.OperatorServiceRetireMachineProcedure: true, apiconnect.OperatorServiceStatusProcedure: false,
		} {
			resp, err := (&http.Client{Transport: tr}).Post("http://server"+procedure, "application/proto", nil)
			var body []byte
			if err == nil {
				body, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if got := err == nil && string(body) == "done"; got != long {
				t.Errorf("%s: got %q, %v", procedure, body, err)
			}
		}
		time.Sleep(4 * limit) // what was cut off runs to its end
		for _, c := range conns {
			c.Close()
		}
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
}
