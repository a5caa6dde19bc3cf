package serverapi

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
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

// Arming ten thousand machines takes longer than any answer may that does no work.
func TestCallsAboutManyMachinesMayTakeLong(t *testing.T) {
	t.Parallel()
	const limit = 50 * time.Millisecond
	srv := httptest.NewUnstartedServer(unhurried(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(4 * limit)
		io.WriteString(w, "done")
	})))
	srv.Config.WriteTimeout, srv.EnableHTTP2 = limit, true
	srv.StartTLS()
	defer srv.Close()
	for procedure, long := range map[string]bool{
		apiconnect.OperatorServiceArmMachineProcedure: true, apiconnect.OperatorServiceDisarmMachineProcedure: true, apiconnect.OperatorServiceApproveMachineProcedure: true,
		apiconnect.OperatorServiceRetireMachineProcedure: true, apiconnect.OperatorServiceStatusProcedure: false,
	} {
		resp, err := srv.Client().Post(srv.URL+procedure, "application/proto", nil)
		var body []byte
		if err == nil {
			body, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if got := err == nil && string(body) == "done"; got != long {
			t.Errorf("%s: got %q, %v", procedure, body, err)
		}
	}
}
