package cli

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func TestHealthInWords(t *testing.T) {
	t.Parallel()
	step := func(name string, state api.StepStatus_State, detail string) *api.StepStatus {
		return &api.StepStatus{Name: name, State: state, Detail: detail}
	}
	for _, tc := range []struct {
		health *api.HealthResponse
		want   string
	}{
		{&api.HealthResponse{Healthy: true, Steps: []*api.StepStatus{step("etcd-running", api.StepStatus_STATE_DONE, "")}},
			"STEP          STATE  DETAIL\netcd-running  done   -\ncp1 is healthy\n"},
		{&api.HealthResponse{Steps: []*api.StepStatus{step("kubelet", api.StepStatus_STATE_FAILED, "no\x1b room")}, Warnings: []string{"it ends\x07 soon"}},
			"STEP     STATE   DETAIL\nkubelet  failed  no  room\nwarning: it ends  soon\n"},
	} {
		var b bytes.Buffer
		if err := printHealth(&b, "cp1", tc.health); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, b.String()); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	}
}
