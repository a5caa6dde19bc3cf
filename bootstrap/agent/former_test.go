package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// A Node object goes when it is of another boot, as it was when it was looked at.
func TestAFormerNodeIsRemoved(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var status int
	var answer, asked string
	s := l.demanding(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			asked = r.URL.Path + " " + string(b)
			w.WriteHeader(status)
			fmt.Fprint(w, answer)
			return
		}
		if answer == "" {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprint(w, answer)
	})
	n := l.newNode()
	now, was := &api.FormerNode{Name: "w3", BootId: "boot-2"}, &api.FormerNode{Name: "w3", WasBootId: "boot-1"}
	if _, err := n.dropFormer(t.Context(), now); err == nil || !strings.Contains(err.Error(), kubeadm.AdminConf) {
		t.Errorf("without a kubeconfig: %v", err)
	}
	l.kubeconfigAt(kubeadm.AdminConf, s)
	node := func(boot string) string {
		return `{"metadata":{"uid":"u1","resourceVersion":"7"},"status":{"nodeInfo":{"bootID":"` + boot + `"}}}`
	}
	const removes = `/api/v1/nodes/w3 {"preconditions":{"resourceVersion":"7","uid":"u1"}}`
	const none, removed, absent, kept = api.FormerNode_OUTCOME_UNSPECIFIED, api.FormerNode_OUTCOME_REMOVED, api.FormerNode_OUTCOME_ABSENT, api.FormerNode_OUTCOME_KEPT
	for what, c := range map[string]struct {
		former *api.FormerNode
		answer string
		status int
		want   api.FormerNode_Outcome
		asked  string
		err    string
	}{
		"there is none":                      {now, "", 200, absent, "", ""},
		"of the former system":               {now, node("boot-1"), 200, removed, removes, ""},
		"of the system of now":               {now, node("boot-2"), 200, kept, "", ""},
		"of no kubelet at all":               {now, node(""), 200, removed, removes, ""},
		"gone meanwhile":                     {now, node("boot-1"), 404, removed, removes, ""},
		"changed meanwhile":                  {now, node("boot-1"), 409, none, removes, "calling DELETE /api/v1/nodes/w3: 409 Conflict"},
		"what is no node":                    {now, "<html>", 200, none, "", "reading node w3"},
		"who may not":                        {now, node("boot-1"), 403, none, removes, "calling DELETE /api/v1/nodes/w3: 403 Forbidden"},
		"of a retired machine":               {was, node("boot-1"), 200, removed, removes, ""},
		"of a retired machine, gone already": {was, "", 200, absent, "", ""},
		"of whoever has its name now":        {was, node("boot-2"), 200, kept, "", ""},
		"of whoever has its name soon":       {was, node(""), 200, kept, "", ""},
	} {
		answer, status, asked = c.answer, c.status, ""
		got, err := n.dropFormer(t.Context(), c.former)
		if got != c.want || asked != c.asked || c.err == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, asked %q, %v", what, got, asked, err)
		}
	}
}

// A machine that is not Ready itself, for want of a network plugin for instance, removes them
// all the same: others wait for that.
func TestFormerNodesAreRemovedByOneThatIsNotReady(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	n := l.newNode()
	n.askNode = func(context.Context, string) (kubeNode, error) {
		return kubeNode{labels: map[string]string{kubeadm.RoleLabel: ""}, ready: "False", why: "no CNI"}, nil
	}
	asked := 0
	n.removeFormer = func(context.Context, *api.FormerNode) (api.FormerNode_Outcome, error) {
		asked++
		return api.FormerNode_OUTCOME_REMOVED, nil
	}
	run := initRun(l)
	run.Kubernetes.Former = []*api.FormerNode{{Name: "w3", BootId: "1"}}
	for range 2 {
		n.publish(n.observe(t.Context(), run, n.work(t.Context(), run)))
	}
	if gone := n.news().kubernetes.GetFormerGone(); asked != 1 || len(gone) != 1 {
		t.Errorf("asked %d times, reports %v: %v", asked, gone, n.news().steps)
	}
}

// The step tries again until Kubernetes does not know it, and asks once for each boot.
func TestFormerNodesAreRemovedOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.newNode()
	var asked []string
	fails := errors.New("the API server does not answer")
	n.removeFormer = func(_ context.Context, f *api.FormerNode) (api.FormerNode_Outcome, error) {
		asked = append(asked, f.GetName()+"/"+f.GetBootId()+f.GetWasBootId())
		return api.FormerNode_OUTCOME_REMOVED, fails
	}
	run := initRun(l)
	step := func(want string, former ...*api.FormerNode) {
		t.Helper()
		asked, run.Kubernetes.Former = nil, former
		out := runSteps(t.Context(), n.Log, []Step{n.formerNodes(run)}, nil, false, func([]*api.StepStatus) {})
		got := fmt.Sprint(out.done, asked)
		for _, f := range n.observe(t.Context(), run, out).kubernetes.GetFormerGone() {
			got += " " + f.GetName() + "/" + f.GetBootId() + f.GetWasBootId()
			if f.GetOutcome() != api.FormerNode_OUTCOME_REMOVED {
				got += " " + f.GetOutcome().String()
			}
		}
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	w3, again := &api.FormerNode{Name: "w3", BootId: "1"}, &api.FormerNode{Name: "w3", BootId: "2"}
	step("false [w3/1]", w3)
	fails = nil
	step("true [w3/1] w3/1", w3)
	step("true [] w3/1", w3)
	step("true [w3/2] w3/2", again)
	step("true [w3/1] w3/1", &api.FormerNode{Name: "w3", WasBootId: "1"})
	step("true []")
}

// A machine waits for this one to look, whatever does not end well here: an add-on that needs
// a webhook which runs on that machine, for instance.
func TestFormerNodesAreRemovedThoughAnotherStepFails(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.newNode()
	tries, fails := 0, error(nil)
	n.removeFormer = func(context.Context, *api.FormerNode) (api.FormerNode_Outcome, error) {
		tries++
		return api.FormerNode_OUTCOME_REMOVED, fails
	}
	run := initRun(l)
	run.Kubernetes.Action = api.KubernetesWanted_ACTION_UNSPECIFIED // no step is done behind this one
	run.Kubernetes.Former = []*api.FormerNode{{Name: "w3", BootId: "1"}}
	out := n.work(t.Context(), run)
	if out.done || tries != 1 || len(n.observe(t.Context(), run, out).kubernetes.GetFormerGone()) != 1 {
		t.Errorf("done %v, %d tries, %v", out.done, tries, out.steps)
	}
}

// A node that has lost its directive is no machine that was installed anew.
func TestANodeWithoutItsDirectiveSaysThatItHasJoined(t *testing.T) {
	t.Parallel()
	for _, joined := range []bool{true, false} {
		l := newLab(t)
		l.put(RunPath, "{damaged")
		if joined {
			l.put(joinedPath, "kubeadm join")
		}
		n := l.newNode()
		if err := n.remember(); err != nil {
			t.Fatal(err)
		}
		n.look(t.Context(), nil)
		if got := n.news().kubernetes.GetJoined(); got != joined {
			t.Errorf("joined %v: it reports %v", joined, got)
		}
	}
}

// A node that is not ours any more may say that it boots all day.
func TestFormerNodesAreForgotten(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.newNode()
	n.removeFormer = func(context.Context, *api.FormerNode) (api.FormerNode_Outcome, error) {
		return api.FormerNode_OUTCOME_REMOVED, nil
	}
	run := initRun(l)
	for boot := range 100 {
		run.Kubernetes.Former = []*api.FormerNode{{Name: "w3", BootId: fmt.Sprint(boot)}, {Name: "w4", BootId: "1"}}
		if out := runSteps(t.Context(), n.Log, []Step{n.formerNodes(run)}, nil, false, func([]*api.StepStatus) {}); !out.done || len(n.formerGone) != 2 {
			t.Fatalf("boot %d: done %v, %d are remembered", boot, out.done, len(n.formerGone))
		}
	}
}
