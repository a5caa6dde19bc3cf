package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// drainedNodes has pods leave the nodes that the directive names, by the eviction API, which
// keeps to PodDisruptionBudgets. Each attempt asks once for each pod that is still there; the step
// waits in between, and nothing after it waits for it.
func (n *node) drainedNodes(run *api.Run) Step {
	want := run.GetKubernetes().GetDrains()
	return Step{
		Name: "drained-nodes",
		Observe: func(context.Context) (bool, string, error) {
			for _, d := range want {
				if said := n.drainOf(d); !said.GetDone() {
					return false, "pods are to leave " + d.GetName(), nil
				}
			}
			return true, "", nil
		},
		Act: func(ctx context.Context) error {
			n.mu.Lock()
			n.drains = slices.DeleteFunc(slices.Clone(n.drains), func(said *api.Drain) bool {
				return !slices.ContainsFunc(want, func(d *api.Drain) bool { return d.GetId() == said.GetId() })
			})
			n.mu.Unlock()
			var open []string
			for _, d := range want {
				if n.drainOf(d).GetDone() {
					continue
				}
				left, err := n.drain(ctx, d)
				switch late := !n.Now().Before(d.GetUntil().AsTime()); {
				case err != nil && !late:
					left = err.Error()
				case err != nil:
					left = "time is up: " + err.Error()
				case left != "" && late:
					left = "time is up: " + left
				}
				said := proto.CloneOf(d)
				said.Detail, said.Done = left, left == "" || strings.HasPrefix(left, "time is up: ")
				n.saidOfDrain(said)
				if !said.Done {
					open = append(open, d.GetName()+": "+left)
				} else {
					n.Log.Info("a drain has ended", "node", d.GetName(), "undo", d.GetUndo(), "left", left)
				}
			}
			if len(open) > 0 {
				return waiting(strings.Join(open, "; "))
			}
			return nil
		},
	}
}

// drainOf is what this node last said of a drain; nil for nothing.
func (n *node) drainOf(d *api.Drain) *api.Drain {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, said := range n.drains {
		if said.GetId() == d.GetId() {
			return said
		}
	}
	return nil
}

func (n *node) saidOfDrain(d *api.Drain) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drains = append(slices.DeleteFunc(slices.Clone(n.drains), func(o *api.Drain) bool { return o.GetId() == d.GetId() }), d)
}

// pod is the part of v1.Pod that is read.
type pod struct {
	Metadata struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		UID         string            `json:"uid"`
		Annotations map[string]string `json:"annotations"`
		Deletion    string            `json:"deletionTimestamp"`
		Owners      []struct {
			Kind       string `json:"kind"`
			Controller bool   `json:"controller"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Status struct {
		Phase string `json:"phase"`
	} `json:"status"`
}

// mirror is what kubelet writes on the pods that it makes for static ones.
const mirror = "kubernetes.io/config.mirror"

// leaves says whether a pod is to go. Static pods and those of DaemonSets come with the node,
// what has ended holds nobody up, and what nobody would start elsewhere is better off with the
// node: it starts again with it, or goes with it.
func (p pod) leaves() bool {
	if p.Metadata.Annotations[mirror] != "" || p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed" {
		return false
	}
	for _, o := range p.Metadata.Owners {
		if o.Controller {
			return o.Kind != "DaemonSet"
		}
	}
	return false
}

// drain takes one step of a drain and says what is left; empty for nothing.
func (a *Agent) drain(ctx context.Context, d *api.Drain) (string, error) {
	gone, err := a.cordon(ctx, d.GetName(), !d.GetUndo())
	if err != nil || gone || d.GetUndo() {
		return "", err
	}
	pods, err := a.podsOn(ctx, d.GetName())
	if err != nil {
		return "", err
	}
	var left, held []string
	for _, p := range pods {
		if !p.leaves() {
			continue
		}
		name := p.Metadata.Namespace + "/" + p.Metadata.Name
		left = append(left, name)
		if p.Metadata.Deletion != "" {
			continue // it is ending
		}
		why, err := a.evict(ctx, p)
		if err != nil {
			return "", err
		}
		if why != "" {
			held = append(held, fmt.Sprintf("%s (%s)", name, why))
		}
	}
	switch {
	case len(left) == 0:
		return "", nil
	case len(held) > 0:
		return fmt.Sprintf("%d pods are left, of which may not go now: %s", len(left), few(held)), nil
	}
	return fmt.Sprintf("%d pods are left: %s", len(left), few(left)), nil
}

// few names the first three.
func few(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}

// cordon lets a node take pods, or not. gone says that Kubernetes does not know it.
func (a *Agent) cordon(ctx context.Context, name string, off bool) (gone bool, err error) {
	call := kubeCall{as: kubeadm.AdminConf, method: http.MethodPatch, path: nodePath(name),
		contentType: mergePatch, body: fmt.Appendf(nil, `{"spec":{"unschedulable":%v}}`, off)}
	b, status, err := a.callKubernetes(ctx, call)
	switch {
	case err != nil:
		return false, err
	case status == http.StatusNotFound:
		return true, nil
	case status != http.StatusOK:
		return false, call.refused(status, b)
	}
	return false, nil
}

func (a *Agent) podsOn(ctx context.Context, name string) ([]pod, error) {
	var all []pod
	for next := ""; ; {
		q := url.Values{"fieldSelector": {"spec.nodeName=" + name}, "limit": {"200"}}
		if next != "" {
			q.Set("continue", next)
		}
		call := kubeCall{as: kubeadm.AdminConf, method: http.MethodGet, path: "/api/v1/pods?" + q.Encode()}
		b, status, err := a.callKubernetes(ctx, call)
		if err != nil {
			return nil, err
		}
		if status != http.StatusOK {
			return nil, call.refused(status, b)
		}
		var list struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []pod `json:"items"`
		}
		if err := json.Unmarshal(b, &list); err != nil {
			return nil, fmt.Errorf("reading the pods of node %s: %w", name, err)
		}
		all = append(all, list.Items...)
		if next = list.Metadata.Continue; next == "" {
			return all, nil
		}
	}
}

// evict asks for one pod to go. why is what holds it for now, such as a PodDisruptionBudget.
func (a *Agent) evict(ctx context.Context, p pod) (why string, err error) {
	body, err := json.Marshal(map[string]any{
		"apiVersion": "policy/v1", "kind": "Eviction",
		"metadata":      map[string]string{"name": p.Metadata.Name, "namespace": p.Metadata.Namespace},
		"deleteOptions": map[string]any{"preconditions": map[string]string{"uid": p.Metadata.UID}},
	})
	if err != nil {
		return "", err
	}
	path := fmt.Sprintf("/api/v1/namespaces/%s/pods/%s/eviction", url.PathEscape(p.Metadata.Namespace), url.PathEscape(p.Metadata.Name))
	call := kubeCall{as: kubeadm.AdminConf, method: http.MethodPost, path: path, body: body}
	b, status, err := a.callKubernetes(ctx, call)
	switch {
	case err != nil:
		return "", err
	case status == http.StatusCreated, status == http.StatusOK, status == http.StatusNotFound, status == http.StatusConflict:
		return "", nil // on its way, gone, or another pod of that name
	case status == http.StatusTooManyRequests || status == http.StatusForbidden || status == http.StatusInternalServerError:
		var said struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(b, &said) != nil || said.Message == "" {
			said.Message = http.StatusText(status)
		}
		return said.Message, nil
	}
	return "", call.refused(status, b)
}
