package serverapi

import (
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// A control plane that was to run kubeadm init is retired and taken out of cluster.yaml: another one
// runs it.
func TestAnotherOneTakesOverFromOneThatIsNotListed(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	first := r.choices.KubernetesFirst // who called first
	var left []Machine
	for _, m := range all {
		if m.Name != first {
			left = append(left, m)
		}
	}
	if o := r.retire(first, ""); !o.GetOk() {
		t.Fatal(o)
	}
	r.restart(config(left...))
	inits := 0
	for range 3 {
		inits = 0
		for _, m := range left {
			if nodes[m.Name].sync(voter("cp1", "cp2", "cp3")).GetRun().GetKubernetes().GetAction() == api.KubernetesWanted_ACTION_INIT {
				inits++
			}
		}
	}
	if inits != 1 || r.choices.KubernetesFirst == first {
		t.Errorf("%d machines run kubeadm init; %+v", inits, r.choices)
	}
}
