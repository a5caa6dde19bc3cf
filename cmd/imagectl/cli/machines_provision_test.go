package cli

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// Every stage is said once, with the time since the beginning, and a server that is
// away for a while is waited for.
func TestProvisioningSaysEveryStage(t *testing.T) {
	begun := time.Unix(1_800_000_000, 0)
	now := begun
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(begun.Add(d)) }
	looks := [][]*api.MachineView{
		{{Name: "w1", State: "armed", Reason: "waits for redfish 10.9.0.1"}, {Name: "w2", State: "armed", Reason: "waits for redfish 10.9.0.2"}, {Name: "other", State: "failed"}},
		{{Name: "w1", State: "armed", Reason: "redfish 10.9.0.1: switching it on", BootStage: "ignition", BootStageAt: at(-time.Hour)}, {Name: "w2", State: "approved", Reason: "disarmed again: its BMC did not start it: x"}},
		{{Name: "w1", State: "armed", Reason: "redfish 10.9.0.1 started it", BootStage: "dhcp", BootStageAt: at(time.Minute)}},
		nil,
		nil,
		{{Name: "w1", State: "armed", BootStage: "ignition", BootStageAt: at(2 * time.Minute), PendingCode: "7K3M0QZD9X2V", LastSeen: at(3 * time.Minute)}},
		{{Name: "w1", State: "installing"}},
		{{Name: "w1", State: "installing"}},
		{{Name: "w1", State: "enrolled"}},
	}
	i := -1
	ask := func(context.Context) ([]*api.MachineView, error) {
		i++
		if looks[i] == nil {
			return nil, errors.New("no imagectl serve answers")
		}
		return looks[i], nil
	}
	next := func(context.Context) error { now = now.Add(time.Minute); return nil }
	var out strings.Builder
	err := waitInstalled(t.Context(), &out, func() time.Time { return now }, map[string]bool{"w1": true, "w2": true}, ask, next)
	if err == nil || err.Error() != "1 machines were not installed" {
		t.Errorf("got %v", err)
	}
	want := `w1: waits for redfish 10.9.0.1 (0s)
w2: waits for redfish 10.9.0.2 (0s)
w1: redfish 10.9.0.1: switching it on (1m0s)
w2: not armed: disarmed again: its BMC did not start it: x (1m0s)
w1: boots from the network: dhcp (2m0s)
waiting for the server: no imagectl serve answers
w1: waits for its code to be compared with its console: imagectl machines approve w1 --code w1=CODE (5m0s)
w1: writes its disk (6m0s)
w1: installed (8m0s)
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

// Quirk firmware-update-reorders-boot: who waits is told where to look.
func TestSilenceOnTheBootNetworkIsExplained(t *testing.T) {
	begun := time.Unix(1_800_000_000, 0)
	m := &api.MachineView{Name: "w1", State: "armed", Reason: "redfish 10.9.0.1 started it from the network at 10:00:00 UTC"}
	stage, end, ok := stageOf(m, begun, begun.Add(silentBoot+time.Second))
	want := "nothing on the boot network for 8m0s (redfish 10.9.0.1 started it from the network at 10:00:00 UTC): look at its console; firmware tries other interfaces first for minutes each, or boots its disk"
	if stage != want || end || !ok {
		t.Errorf("got %q, %v, %v", stage, end, ok)
	}
}
