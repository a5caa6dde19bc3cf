package agent

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// Where an API server hangs, status shall not look as if nothing were going on.
func TestALookThatTakesLongIsTold(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		takes  time.Duration
		before []*api.StepStatus
		want   []string
	}{
		{"a quick one", lookPatience - time.Second, nil, []string{"STATE_DONE "}},
		{"a slow one", lookPatience + time.Second, nil, []string{"STATE_PENDING " + slowLook, "STATE_DONE "}},
		{"a slow one at what was done", lookPatience + time.Second, []*api.StepStatus{{Name: "a", State: api.StepStatus_STATE_DONE}}, nil},
		{"a slow one at what has failed", lookPatience + time.Second, []*api.StepStatus{{Name: "a", State: api.StepStatus_STATE_FAILED, Detail: "so"}}, []string{"STATE_DONE "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var told []string
				step := Step{Name: "a", Observe: func(context.Context) (bool, string, error) {
					time.Sleep(c.takes)
					return true, "", nil
				}}
				out := runSteps(t.Context(), slog.New(slog.DiscardHandler), []Step{step}, c.before, false, func(s []*api.StepStatus) {
					told = append(told, s[0].GetState().String()+" "+s[0].GetDetail())
				})
				if !out.done || !slices.Equal(told, c.want) {
					t.Errorf("done %t, told %q, want %q", out.done, told, c.want)
				}
			})
		})
	}
}
