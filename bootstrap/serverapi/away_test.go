package serverapi

import (
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// Who was told to reboot is not there for etcd, whatever it said before.
func TestNothingIsTakenAwayWhileAVoterReboots(t *testing.T) {
	t.Parallel()
	r, _, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	for name, n := range nodes {
		n.sync(obeying("boot of "+name, "cp1", "cp2", "cp3"))
	}
	if o := r.act(api.ActMachineRequest_ACTION_REBOOT, false, "cp1")[0]; !o.GetOk() {
		t.Fatal(o)
	}
	for what, o := range map[string]*api.Outcome{
		"arming":    r.arm("cp2", true),
		"replacing": r.replace("cp2", ""),
		"retiring":  r.retire("cp2", ""),
	} {
		if o.GetReasonCode() != "would-lose-etcd" {
			t.Errorf("%s: %v", what, o)
		}
	}
	if o := r.arm("cp1", true); !o.GetOk() {
		t.Errorf("the one that reboots: %v", o)
	}
}
