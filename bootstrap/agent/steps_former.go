package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"google.golang.org/protobuf/proto"
)

// formerNodes removes the Node objects of machines that were installed anew, so that they
// join at once: kubeadm refuses a name whose node is Ready, and Kubernetes takes a node for
// lost most of a minute after it is. Nothing is drained: what ran there is gone with its disk.
// So are those of machines that were retired or replaced.
func (n *node) formerNodes(run *api.Run) Step {
	want := run.GetKubernetes().GetFormer()
	return Step{
		Name: "former-nodes",
		Observe: func(context.Context) (bool, string, error) {
			for _, f := range want {
				if !n.isGone(f) {
					return false, "Kubernetes may know a former " + f.GetName(), nil
				}
			}
			return true, "", nil
		},
		Act: func(ctx context.Context) error {
			// A machine that says that it has booted, again and again, fills nobody's memory.
			n.formerGone = slices.DeleteFunc(n.formerGone, func(g *api.FormerNode) bool {
				return !slices.ContainsFunc(want, func(f *api.FormerNode) bool { return sameFormer(f, g) })
			})
			for _, f := range want {
				if n.isGone(f) {
					continue
				}
				outcome, err := n.removeFormer(ctx, f)
				if err != nil {
					return err
				}
				switch outcome {
				case api.FormerNode_OUTCOME_REMOVED:
					n.Log.Info("removed the Node object of a machine that was installed anew, retired or replaced", "node", f.GetName())
				case api.FormerNode_OUTCOME_KEPT:
					n.Log.Warn("a Node object is not of the system that it was to be of, and stays", "node", f.GetName())
				}
				gone := proto.CloneOf(f)
				gone.Outcome = outcome
				n.formerGone = append(n.formerGone, gone)
			}
			return nil
		},
	}
}

func (n *node) isGone(f *api.FormerNode) bool { return n.goneOf(f) != nil }

// goneOf is what became of a former node; nil while that is not known.
func (n *node) goneOf(f *api.FormerNode) *api.FormerNode {
	i := slices.IndexFunc(n.formerGone, func(g *api.FormerNode) bool { return sameFormer(f, g) })
	if i < 0 {
		return nil
	}
	return n.formerGone[i]
}

// sameFormer: what became of one is what became of the other.
func sameFormer(a, b *api.FormerNode) bool {
	return a.GetName() == b.GetName() && a.GetBootId() == b.GetBootId() && a.GetWasBootId() == b.GetWasBootId()
}

// goes says whether a Node object that has this boot is the former one.
func goes(f *api.FormerNode, bootID string) bool {
	if was := f.GetWasBootId(); was != "" {
		return bootID == was
	}
	return bootID != f.GetBootId()
}

// dropFormer removes a Node object if it is the former one, and says what became of it. What
// has changed since it was looked at is not removed.
func (a *Agent) dropFormer(ctx context.Context, f *api.FormerNode) (api.FormerNode_Outcome, error) {
	name := f.GetName()
	get := kubeCall{as: kubeadm.AdminConf, method: http.MethodGet, path: nodePath(name)}
	b, status, err := a.callKubernetes(ctx, get)
	switch {
	case err != nil:
		return 0, err
	case status == http.StatusNotFound:
		return api.FormerNode_OUTCOME_ABSENT, nil
	case status != http.StatusOK:
		return 0, get.refused(status, b)
	}
	var o nodeObject
	if err := json.Unmarshal(b, &o); err != nil {
		return 0, fmt.Errorf("reading node %s: %w", name, err)
	}
	if !goes(f, o.Status.NodeInfo.BootID) {
		return api.FormerNode_OUTCOME_KEPT, nil
	}
	options, err := json.Marshal(map[string]any{"preconditions": map[string]string{"uid": o.Metadata.UID, "resourceVersion": o.Metadata.ResourceVersion}})
	if err != nil {
		return 0, err
	}
	drop := kubeCall{as: kubeadm.AdminConf, method: http.MethodDelete, path: nodePath(name), body: options}
	b, status, err = a.callKubernetes(ctx, drop)
	if err == nil && status != http.StatusOK && status != http.StatusNotFound {
		err = drop.refused(status, b)
	}
	if err != nil {
		return 0, err
	}
	return api.FormerNode_OUTCOME_REMOVED, nil
}
