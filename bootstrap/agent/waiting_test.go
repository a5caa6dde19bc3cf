package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

// A node that waits for something looks at that and at nothing else: each look at all starts
// programs, and while a machine starts everything they are in its way. It looks at all again
// after a while, and for another directive.
func TestANodeThatWaitsLooksOnlyForWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	n := l.newNode()
	asked := 0
	n.askNode = func(context.Context, string) (kubeNode, error) {
		asked++
		return kubeNode{labels: map[string]string{kubeadm.RoleLabel: ""}, ready: "False", why: "no CNI"}, nil
	}
	run := initRun(l)
	work := func(want string) {
		t.Helper()
		asked = 0
		l.node.Ran()
		n.publish(n.observe(t.Context(), run, n.work(t.Context(), run)))
		if last := n.news().steps; last[len(last)-2].GetDetail() != "the node is not Ready: no CNI" {
			t.Fatalf("it does not wait for Ready: %v", last)
		}
		if got := fmt.Sprintf("%d times, %s", asked, strings.Join(l.node.Ran(), "; ")); got != want {
			t.Errorf("it asked Kubernetes %s\nwant %s", got, want)
		}
	}

	n.publish(n.observe(t.Context(), run, n.work(t.Context(), run)))
	for range 3 {
		work("1 times, ")
	}
	all := "2 times, systemctl is-active containerd.service; systemctl is-active etcd.service; systemctl is-active kubelet.service"
	l.set(func() { l.now = resettle })
	work(all)
	work("1 times, ")
	run = initRun(l) // as if it had come from the server
	work(all)
	work("1 times, ")
}

// Looking at Kubernetes again and again takes one connection, until other credentials are
// there.
func TestKubernetesIsAskedOnOneConnection(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var opened atomic.Int32
	s := l.demanding(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateActive {
			return
		}
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	l.kubeconfigAt(kubeadm.KubeletConf, s)
	a := l.agent(nodeconf.Node)
	ask := func(want int32) {
		t.Helper()
		for range 5 {
			if _, err := a.getNode(t.Context(), "cp1"); err != nil {
				t.Fatal(err)
			}
		}
		if got := opened.Load(); got != want {
			t.Errorf("%d connections, want %d", got, want)
		}
	}
	ask(1)
	l.kubeconfigAt(kubeadm.KubeletConf, s) // with another key
	ask(2)
}

// What is skipped is only what was done just before.
func TestGoingOnSkipsWhatIsDone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var looked []string
	step := func(name string, done bool) Step {
		return Step{Name: name, Observe: func(context.Context) (bool, string, error) {
			looked = append(looked, name)
			if !done {
				return false, "", waiting("its turn")
			}
			return true, "", nil
		}}
	}
	const done, pending, failed = api.StepStatus_STATE_DONE, api.StepStatus_STATE_PENDING, api.StepStatus_STATE_FAILED
	for _, c := range []struct {
		before []api.StepStatus_State
		want   []string
	}{
		{nil, []string{"a", "b", "c"}},
		{[]api.StepStatus_State{done, done, pending}, []string{"c"}},
		{[]api.StepStatus_State{done, failed, done}, []string{"b", "c"}},
		{[]api.StepStatus_State{pending, done, done}, []string{"a", "b", "c"}},
	} {
		var before []*api.StepStatus
		for i, s := range c.before {
			before = append(before, &api.StepStatus{Name: string(rune('a' + i)), State: s})
		}
		looked = nil
		out := runSteps(t.Context(), l.agent(nodeconf.Node).Log, []Step{step("a", true), step("b", true), step("c", false)}, before, true, func([]*api.StepStatus) {})
		if out.done || !slices.Equal(looked, c.want) {
			t.Errorf("after %v it looked at %v, want %v", c.before, looked, c.want)
		}
	}
}
