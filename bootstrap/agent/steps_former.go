package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// formerNodes removes the Node objects of machines that were installed anew, so that they
// join at once: kubeadm refuses a name whose node is Ready, and Kubernetes takes a node for
// lost most of a minute after it is. Nothing is drained: what ran there is gone with its disk.
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
				return !slices.ContainsFunc(want, func(f *api.FormerNode) bool { return f.GetName() == g.GetName() && f.GetBootId() == g.GetBootId() })
			})
			for _, f := range want {
				if n.isGone(f) {
					continue
				}
				removed, err := n.removeFormer(ctx, f.GetName(), f.GetBootId())
				if err != nil {
					return err
				}
				if removed {
					n.Log.Info("removed the Node object of a machine that was installed anew", "node", f.GetName())
				}
				n.formerGone = append(n.formerGone, f)
			}
			return nil
		},
	}
}

func (n *node) isGone(f *api.FormerNode) bool {
	return slices.ContainsFunc(n.formerGone, func(g *api.FormerNode) bool {
		return g.GetName() == f.GetName() && g.GetBootId() == f.GetBootId()
	})
}

// dropFormer removes a Node object unless it is of this boot, and says whether there was one
// to remove. What has changed since it was looked at is not removed.
func (a *Agent) dropFormer(ctx context.Context, name, bootID string) (bool, error) {
	b, status, err := a.nodeCall(ctx, kubeadm.AdminConf, http.MethodGet, name, nil)
	switch {
	case err != nil:
		return false, err
	case status == http.StatusNotFound:
		return false, nil
	case status != http.StatusOK:
		return false, refusedCall(http.MethodGet, name, status, b)
	}
	var o nodeObject
	if err := json.Unmarshal(b, &o); err != nil {
		return false, fmt.Errorf("reading node %s: %w", name, err)
	}
	if o.Status.NodeInfo.BootID == bootID {
		return false, nil
	}
	options, err := json.Marshal(map[string]any{"preconditions": map[string]string{"uid": o.Metadata.UID, "resourceVersion": o.Metadata.ResourceVersion}})
	if err != nil {
		return false, err
	}
	b, status, err = a.nodeCall(ctx, kubeadm.AdminConf, http.MethodDelete, name, options)
	if err == nil && status != http.StatusOK && status != http.StatusNotFound {
		err = refusedCall(http.MethodDelete, name, status, b)
	}
	return err == nil, err
}
