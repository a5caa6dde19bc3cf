package serverapi

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// fetch gets a page and returns its status and body.
func fetch(t *testing.T, c *http.Client, method, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %.40s", resp.StatusCode, b)
}

// Every page × every kind of caller.
func TestWhoMaySeeWhat(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	show := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "may read ", MayRead(r)) })
	cfg.Pages = []Page{{Path: "/", Handler: show, Open: true}, {Path: "/metrics", Handler: show}}
	r := start(t, cfg)
	node := r.approvedMachine("cp1", "52:54:00:00:00:01")
	const no, who = `403 {"code":"permission_denied"`, `401 {"code":"unauthenticated"`
	for _, tt := range []struct {
		caller        string
		client        *http.Client
		open, guarded string
	}{
		{"nobody", r.client(nil), "200 may read false", who},
		{"node", r.client(node.cert), "200 may read false", no},
		{"reader", r.client(signed(t, r.signer(), pki.RoleReader)), "200 may read true", "200 may read true"},
		{"operator", r.client(signed(t, r.signer(), pki.RoleOperator)), "200 may read true", "200 may read true"},
		{"backup", r.client(signed(t, r.signer(), pki.RoleBackup)), "200 may read false", no},
	} {
		for path, want := range map[string]string{"/": tt.open, "/metrics": tt.guarded} {
			if got := fetch(t, tt.client, http.MethodGet, r.url+path); !strings.HasPrefix(got, want) {
				t.Errorf("%s fetches %s: got %s, want %s", tt.caller, path, got, want)
			}
		}
		if got := fetch(t, tt.client, http.MethodGet, r.url+"/other"); strings.HasPrefix(got, "200") {
			t.Errorf("%s fetches what is no page: %s", tt.caller, got)
		}
		if got := fetch(t, tt.client, http.MethodPost, r.url+"/"); !strings.HasPrefix(got, "405") {
			t.Errorf("%s posts to a page: %s", tt.caller, got)
		}
	}
}

func TestLookAndMetrics(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	asked := make(chan Asked, 16)
	cfg.Asked = func(a Asked) { asked <- a }
	r := start(t, cfg)
	r.approvedMachine("w1", "52:54:00:00:00:02") // asks twice
	stranger := r.machine("52:54:00:00:00:99")
	stranger.enrol()
	for _, want := range []string{"w1 false true enrol-pending", "w1 true false enrol-approved", " false false enrol-unknown-machine"} {
		a := <-asked
		if got := fmt.Sprint(a.Machine, " ", a.Approved, " ", a.Waits, " ", a.Code); got != want || a.Reason == "" || len(a.MACs) != 1 || a.At.IsZero() {
			t.Errorf("asked: got %+v, want %s", a, want)
		}
	}

	machines, ready, summary := r.Look()
	if len(machines) != 3 || ready || !strings.HasPrefix(summary, "to be armed: cp1, w1") {
		t.Fatalf("%d machines, %v, %s", len(machines), ready, summary)
	}
	if m := machines[0]; m.Name != "cp1" || m.State != "approved" || m.Role != "control-plane" || !m.Known || m.Reason != "not armed: it boots its own disk" || m.MACs[0] != "52:54:00:00:00:01" {
		t.Errorf("got %+v", m)
	}
	if m := machines[2]; m.Known || m.State != "discovered" || m.MACs[0] != "52:54:00:00:00:99" {
		t.Errorf("got %+v", m)
	}

	reg := prometheus.NewPedanticRegistry()
	for _, c := range r.Collectors() {
		if err := reg.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, f := range families {
		for _, m := range f.GetMetric() {
			fmt.Fprintf(&text, "%s", f.GetName())
			for _, l := range m.GetLabel() {
				fmt.Fprintf(&text, " %s=%s", l.GetName(), l.GetValue())
			}
			fmt.Fprintf(&text, " %v\n", m.GetGauge().GetValue()+m.GetCounter().GetValue())
		}
	}
	for _, want := range []string{
		"imagectl_api_calls_total code=ok procedure=/imagectl.v1.EnrolService/Enrol 3\n",
		"imagectl_machines listed=true state=approved 2\n", "imagectl_machines listed=false state=discovered 1\n",
		"imagectl_machines_waiting_for_approval 0\n", "imagectl_certificate_expiry_timestamp_seconds certificate=server ",
		"imagectl_certificate_expiry_timestamp_seconds certificate=ca-etcd ", "imagectl_node_certificate_expiry_timestamp_seconds machine=w1 ",
		"imagectl_store_size_bytes ", "imagectl_ready 1", "imagectl_coordinates 1", "imagectl_build_info cluster=demo goversion=go",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	for _, line := range strings.Split(text.String(), "\n") {
		if strings.Contains(line, "unknown-") || strings.Contains(line, "52:54") {
			t.Errorf("a stranger has a series: %s", line)
		}
	}
}

func TestActivityIsTheStepThatRunsOrFailed(t *testing.T) {
	t.Parallel()
	step := func(name, detail string, s api.StepStatus_State) *api.StepStatus {
		return &api.StepStatus{Name: name, Detail: detail, State: s}
	}
	for want, steps := range map[string][]*api.StepStatus{
		"":                      {step("disk", "", api.StepStatus_STATE_UNSPECIFIED)},
		"images: 2 of 3":        {step("disk", "", api.StepStatus_STATE_UNSPECIFIED), step("images", "2 of 3", api.StepStatus_STATE_RUNNING)},
		"kubelet failed: no CA": {step("kubelet", "no CA", api.StepStatus_STATE_FAILED)},
	} {
		if got := activityOf(&api.SyncRequest{Steps: steps}); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
