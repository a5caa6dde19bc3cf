package serverapi

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Somebody had a reason against it, or it was tried.
func TestWhatCameToNothingWasRefusedOrHasFailed(t *testing.T) {
	t.Parallel()
	failed := []connect.Code{connect.CodeCanceled, connect.CodeUnknown, connect.CodeDeadlineExceeded, connect.CodeInternal, connect.CodeUnavailable, connect.CodeDataLoss}
	for code := connect.CodeCanceled; code <= connect.CodeUnauthenticated; code++ {
		got := nothingCameOf("ArmMachine", fmt.Errorf("arming: %w", connect.NewError(code, errors.New("so"))))
		if want := (refusal{what: "ArmMachine: so", result: code.String(), failed: slices.Contains(failed, code)}); got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	if got, want := nothingCameOf("ArmMachine", errors.New("so")), (refusal{what: "ArmMachine: so", result: "unknown", failed: true}); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestOutcomesThatAreNotWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	good := &api.Outcome{Machine: "w1", Ok: true}
	bad := &api.Outcome{Machine: "w2", ReasonCode: enrol.CodeNothing, Message: "it has not asked yet"}
	broken := &api.Outcome{Machine: "w3", ReasonCode: codeStorage, Message: "no space"}
	refused := refusal{what: "Call: it has not asked yet", machine: "w2", result: enrol.CodeNothing}
	for what, c := range map[string]struct {
		answer any
		want   []refusal
	}{
		"many": {&api.ApproveMachineResponse{Outcomes: []*api.Outcome{good, bad, broken}},
			[]refusal{refused, {what: "Call: no space", machine: "w3", result: codeStorage, failed: true}}},
		"one":           {&api.ReplaceMachineResponse{Outcome: bad}, []refusal{refused}},
		"one as wanted": {&api.ReplaceMachineResponse{Outcome: good}, nil},
		"none":          {&api.StatusResponse{}, nil},
	} {
		if got := refusedOutcomes("Call", c.answer); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %+v, want %+v", what, got, c.want)
		}
	}
}

// Each kind of caller has its own room, and each caller its own share of it; what was left out is
// told once.
func TestRoomForRefusedCalls(t *testing.T) {
	t.Parallel()
	node := pki.Identity{Cluster: "demo", Kind: pki.KindNode, Name: "w1"}
	other := pki.Identity{Cluster: "demo", Kind: pki.KindNode, Name: "w2"}
	person := pki.Identity{Cluster: "demo", Kind: pki.KindOperator, Name: "ada"}
	var r refusals
	began := time.Now()
	take := func(who pki.Identity, at time.Time, times int) (room, before int) {
		for range times {
			if ok, left := r.take(who, at); ok {
				room, before = room+1, before+left
			}
		}
		return room, before
	}
	for _, c := range []struct {
		what         string
		who          pki.Identity
		after        time.Duration
		times        int
		room, before int
	}{
		{"a stranger", pki.Identity{}, 0, 100, strangersBurst, 0},
		{"a machine", node, 0, 10, machinesBurst, 0},
		{"another machine", other, 0, 3, 3, 0},
		{"a person", person, 0, 100, personsBurst, 0},
		{"the machine, within the hour", node, machinesEvery - time.Second, 1, 0, 0},
		{"the machine, an hour later", node, machinesEvery, 1, 1, 3},
		{"the machine, two hours later", node, 2 * machinesEvery, 1, 1, 0},
		{"the person, a minute later", person, personsEvery, 2, 1, 40},
	} {
		if room, before := take(c.who, began.Add(c.after), c.times); room != c.room || before != c.before {
			t.Errorf("%s: %d are in the log and %d were left out, want %d and %d", c.what, room, before, c.room, c.before)
		}
	}
}
