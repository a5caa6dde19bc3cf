package agent

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// kubePods is an API server with one node, w1, and pods on it. Only one goroutine uses it.
type kubePods struct {
	t    *testing.T
	pods []string // NAMESPACE/NAME
	kind map[string]string
	// budget holds pods.
	budget map[string]bool
	asked  []string
	patch  int
}

func (k *kubePods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		k.t.Error(err)
	}
	switch {
	case r.Method == http.MethodPatch && r.URL.Path == "/api/v1/nodes/w1":
		if got := r.Header.Get("Content-Type"); got != "application/merge-patch+json" {
			k.t.Errorf("a patch of type %s", got)
		}
		k.asked = append(k.asked, string(body))
		if k.patch != 0 {
			w.WriteHeader(k.patch)
		}
		fmt.Fprint(w, "{}")
	case r.Method == http.MethodGet && r.URL.Path == "/api/v1/pods":
		if got := r.URL.Query().Get("fieldSelector"); got != "spec.nodeName=w1" {
			k.t.Errorf("pods of %q", got)
		}
		// One on each page.
		at := 0
		if _, err := fmt.Sscan(r.URL.Query().Get("continue"), &at); err != nil {
			at = 0
		}
		next, items := "", []string{}
		if at < len(k.pods) {
			items = append(items, k.pod(k.pods[at]))
		}
		if at+1 < len(k.pods) {
			next = fmt.Sprint(at + 1)
		}
		fmt.Fprintf(w, `{"metadata":{"continue":%q},"items":[%s]}`, next, strings.Join(items, ","))
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/eviction"):
		f := strings.Split(r.URL.Path, "/")
		name := f[4] + "/" + f[6]
		var e struct {
			Kind     string `json:"kind"`
			Version  string `json:"apiVersion"`
			Metadata struct {
				Name, Namespace string
			} `json:"metadata"`
			Options struct {
				Preconditions struct {
					UID string `json:"uid"`
				} `json:"preconditions"`
			} `json:"deleteOptions"`
		}
		if err := json.Unmarshal(body, &e); err != nil || e.Kind != "Eviction" || e.Version != "policy/v1" || e.Metadata.Namespace+"/"+e.Metadata.Name != name || e.Options.Preconditions.UID != "uid of "+name {
			k.t.Errorf("%s is evicted by %s", name, body)
		}
		k.asked = append(k.asked, "evict "+name)
		if k.budget[name] {
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprint(w, `{"message":"Cannot evict pod as it would violate the pod's disruption budget."}`)
			return
		}
		k.kind[name] = "ending"
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, "{}")
	default:
		k.t.Errorf("%s %s", r.Method, r.URL)
		w.WriteHeader(http.StatusNotImplemented)
	}
}

func (k *kubePods) pod(name string) string {
	namespace, short, _ := strings.Cut(name, "/")
	owner := `[{"kind":"ReplicaSet","controller":true}]`
	extra, phase := "", "Running"
	switch k.kind[name] {
	case "daemon":
		owner = `[{"kind":"DaemonSet","controller":true}]`
	case "bare":
		owner = "[]"
	case "static":
		owner, extra = `[{"kind":"Node","controller":true}]`, `,"annotations":{"kubernetes.io/config.mirror":"x"}`
	case "ended":
		phase = "Succeeded"
	case "ending":
		extra = `,"deletionTimestamp":"2026-01-01T00:00:00Z"`
	}
	return fmt.Sprintf(`{"metadata":{"name":%q,"namespace":%q,"uid":%q,"ownerReferences":%s%s},"status":{"phase":%q}}`, short, namespace, "uid of "+name, owner, extra, phase)
}

func TestANodeIsDrained(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	k := &kubePods{t: t, pods: []string{"kube-system/proxy", "kube-system/apiserver", "a/job", "a/bare", "a/web-1", "a/web-2"},
		kind:   map[string]string{"kube-system/proxy": "daemon", "kube-system/apiserver": "static", "a/job": "ended", "a/bare": "bare"},
		budget: map[string]bool{"a/web-2": true}}
	l.kubeconfigAt(kubeadm.AdminConf, l.demanding(k.ServeHTTP))
	n := l.newNode()
	run := initRun(l)
	drain := &api.Drain{Name: "w1", Id: "d1", Until: timestamppb.New(l.clock().Add(time.Minute))}
	run.Kubernetes.Drains = []*api.Drain{drain}
	step := func(when string, done bool, says string, asked ...string) {
		t.Helper()
		k.asked = nil
		out := runSteps(t.Context(), n.Log, []Step{n.drainedNodes(run)}, nil, false, func([]*api.StepStatus) {})
		said := n.observe(t.Context(), run, out).kubernetes.GetDrains()
		if len(said) != 1 || said[0].GetDone() != done || said[0].GetDetail() != says || said[0].GetId() != drain.GetId() {
			t.Errorf("%s: it says %v, want %v %q", when, said, done, says)
		}
		if out.done != done {
			t.Errorf("%s: the step is %v", when, out.steps)
		}
		if !slices.Equal(k.asked, asked) {
			t.Errorf("%s: it asked for %q, want %q", when, k.asked, asked)
		}
	}
	const off, on = `{"spec":{"unschedulable":true}}`, `{"spec":{"unschedulable":false}}`
	step("at first", false, "2 pods are left, of which may not go now: a/web-2 (Cannot evict pod as it would violate the pod's disruption budget.)", off, "evict a/web-1", "evict a/web-2")
	step("one is ending", false, "2 pods are left, of which may not go now: a/web-2 (Cannot evict pod as it would violate the pod's disruption budget.)", off, "evict a/web-2")
	k.pods = []string{"kube-system/proxy", "a/bare", "a/web-2"}
	k.budget = nil
	step("the budget allows it", false, "1 pods are left: a/web-2", off, "evict a/web-2")
	k.pods = k.pods[:2]
	step("all are gone", true, "", off)
	step("and again", true, "")

	drain.Undo, drain.Id = true, "d2"
	step("undone", true, "", on)

	drain.Undo, drain.Id, k.pods, k.budget, k.kind = false, "d3", []string{"a/web-2"}, map[string]bool{"a/web-2": true}, map[string]string{}
	step("held again", false, "1 pods are left, of which may not go now: a/web-2 (Cannot evict pod as it would violate the pod's disruption budget.)", off, "evict a/web-2")
	l.set(func() { l.now = 2 * time.Minute })
	step("too late", true, "time is up: 1 pods are left, of which may not go now: a/web-2 (Cannot evict pod as it would violate the pod's disruption budget.)", off, "evict a/web-2")

	drain.Id, k.patch = "d4", http.StatusNotFound
	step("no such node", true, "", off)
	drain.Id, k.patch, drain.Until = "d5", http.StatusServiceUnavailable, timestamppb.New(l.clock().Add(time.Minute))
	step("nobody answers", false, "calling PATCH /api/v1/nodes/w1: 503 Service Unavailable: {}", off)
}
