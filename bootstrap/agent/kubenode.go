package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// kubeNode is what the agent wants to know of its Node object.
type kubeNode struct {
	labels map[string]string
	// ready is the status of the condition Ready: True, False, Unknown, or empty
	// before kubelet has said anything; why is its message.
	ready, why string
}

// nodeObject is the part of v1.Node that is read.
type nodeObject struct {
	Metadata struct {
		Labels          map[string]string `json:"labels"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
	} `json:"metadata"`
	Status struct {
		NodeInfo struct {
			BootID string `json:"bootID"`
		} `json:"nodeInfo"`
		Conditions []struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Message string `json:"message"`
		} `json:"conditions"`
	} `json:"status"`
}

// nodePath returns the path of a Node object.
func nodePath(name string) string { return "/api/v1/nodes/" + url.PathEscape(name) }

// getNode asks Kubernetes about a Node with kubelet's credentials. A kubectl for
// each look would take more of the processor than everything else the agent does.
func (a *Agent) getNode(ctx context.Context, name string) (kubeNode, error) {
	call := kubeCall{as: kubeadm.KubeletConf, method: http.MethodGet, path: nodePath(name)}
	b, status, err := a.callKubernetes(ctx, call)
	if err == nil && status != http.StatusOK {
		err = call.refused(status, b)
	}
	if err != nil {
		return kubeNode{}, err
	}
	var o nodeObject
	if err := json.Unmarshal(b, &o); err != nil {
		return kubeNode{}, fmt.Errorf("reading node %s: %w", name, err)
	}
	out := kubeNode{labels: o.Metadata.Labels}
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" {
			out.ready, out.why = c.Status, c.Message
		}
	}
	return out, nil
}
