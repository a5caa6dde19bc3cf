package serverapi

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func TestWhatIsLeftToDoForOtherHardware(t *testing.T) {
	t.Parallel()
	byMAC, bySelector := Machine{Name: "w1", MACs: []string{"52:54:00:00:00:02"}}, Machine{Name: "w1"}
	const file, approve = "put the new hardware's MAC address into cluster.yaml, restart imagectl serve, ", "imagectl machines approve w1 --code w1=CODE"
	for _, tc := range []struct {
		m                          Machine
		armed, netbooted, approved bool
		want                       string
	}{
		{byMAC, false, false, false, "its old key and certificates are refused; next: " + file + "imagectl machines arm w1, netboot it, " + approve},
		{byMAC, true, false, false, "its old key and certificates are refused, and its next netboot may install it, once; next: " + file + "netboot it, " + approve},
		{byMAC, true, true, false, "its old key and certificates are refused, it is armed and its BMC starts it from the network; next: " + file + approve},
		{bySelector, true, true, false, "its old key and certificates are refused, it is armed and its BMC starts it from the network; next: " + approve},
		{bySelector, true, false, false, "its old key and certificates are refused, and its next netboot may install it, once; next: netboot it, " + approve},
		{byMAC, false, false, true, "its old key and certificates are refused and the new key is approved; next: imagectl machines arm w1"},
		{byMAC, true, false, true, "its old key and certificates are refused and the new key is approved, and its next netboot may install it, once"},
		{byMAC, true, true, true, "its old key and certificates are refused and the new key is approved, it is armed and its BMC starts it from the network"},
	} {
		if got := replaceNext(tc.m, tc.armed, tc.netbooted, tc.approved); got != tc.want {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
}

// One call has the old hardware refused, the new one armed and its BMC start it. That the new one
// gets in is a person's word all the same; and what cannot be done leaves the old one as it was.
func TestOtherHardwareInOneCall(t *testing.T) {
	t.Parallel()
	r, bmcs := startWithBMCs(t)
	r.netboots()
	replace := func(req *api.ReplaceMachineRequest) *api.Outcome {
		t.Helper()
		resp, err := r.operator(pki.RoleOperator).ReplaceMachine(t.Context(), connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Msg.GetOutcome()
	}
	other := r.approvedMachine("cp1", "52:54:00:00:00:01")
	if o := replace(&api.ReplaceMachineRequest{Machine: "cp1", Netboot: true}); o.GetReasonCode() != codeNoBMC {
		t.Errorf("without a BMC: %v", o)
	}
	if m, _ := r.store.Machine("cp1"); m.Key == nil || m.Arming != nil || len(r.audited("machine-replaced")) != 0 {
		t.Errorf("what was refused has changed it: %+v", m)
	}
	other.sync(installer()) // its certificate is as good as ever

	old := r.approvedMachine("w1", "52:54:00:00:00:02")
	o := replace(&api.ReplaceMachineRequest{Machine: "w1", Netboot: true, Reason: "its board died"})
	if !o.GetOk() || o.GetState() != "armed" || !strings.HasPrefix(o.GetMessage(), "its old key and certificates are refused, it is armed and its BMC starts it from the network; next: ") {
		t.Fatalf("got %v", o)
	}
	order := <-bmcs.boots
	if order.machine != "w1" || order.still() != nil {
		t.Errorf("the BMC of %s, %v", order.machine, order.still())
	}
	order.end <- nil
	call := ""
	for _, action := range []string{"machine-replaced", "machine-armed", "netboot-asked"} {
		e := r.audited(action)
		if len(e) != 1 || e[0].Machine != "w1" || e[0].Arguments == "" || call != "" && e[0].Arguments != call {
			t.Fatalf("%s: %+v", action, e)
		}
		call = e[0].Arguments
	}
	if _, err := old.agent().Sync(t.Context(), connect.NewRequest(installer())); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("the old hardware: %v", err)
	}
	next := r.machine("52:54:00:00:00:02")
	if got := next.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_PENDING {
		t.Errorf("the new hardware is not asked for: %v", got)
	}
	if o := r.approve("w1", next.console(), false); !o.GetOk() || o.GetState() != "armed" {
		t.Fatal(o)
	}
	next.enrol()
	if got := next.sync(installer()); got.GetInstall() == nil {
		t.Errorf("it is not installed: %v", got)
	}
}

// Whom an operator rejected stays out when the machine gets other hardware.
func TestAReplacedMachineRemembersWhomItRejected(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	thief := r.machine("52:54:00:00:00:02")
	thief.enrol()
	if _, err := r.operator(pki.RoleOperator).RejectMachine(t.Context(), connect.NewRequest(&api.RejectMachineRequest{Selection: &api.Selection{Names: []string{"w1"}}})); err != nil {
		t.Fatal(err)
	}
	if o := r.replace("w1", ""); !o.GetOk() {
		t.Fatal(o)
	}
	if got := thief.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_REJECTED {
		t.Errorf("got %v", got)
	}
}
