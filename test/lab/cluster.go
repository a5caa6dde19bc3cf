package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Prepare does what happens at a desk: validate, lock, build.
func (l *Lab) Prepare(ctx context.Context) error {
	for _, verb := range []string{"validate", "lock", "build"} {
		start := time.Now()
		if _, err := l.Imagectl(ctx, verb); err != nil {
			return err
		}
		l.Log("imagectl %s (%s)", verb, time.Since(start).Round(100*time.Millisecond))
	}
	return nil
}

// probeManifest runs a pod on one node that answers HTTP with its host name.
const probeManifest = `apiVersion: v1
kind: Pod
metadata:
  name: probe
spec:
  nodeName: %s
  containers:
    - name: probe
      image: docker.io/imagectl/probe:v1
      imagePullPolicy: Never
`

// RunProbe fetches a kubeconfig, starts a pod on a node and waits until it runs
// with an address of the pod network.
func (l *Lab) RunProbe(ctx context.Context, node string) error {
	if _, err := l.Imagectl(ctx, "kubeconfig", "--out", l.Kubeconfig()); err != nil {
		return err
	}
	manifest := filepath.Join(l.Work, "probe.yaml")
	if err := os.WriteFile(manifest, fmt.Appendf(nil, probeManifest, node), 0o644); err != nil {
		return err
	}
	if _, err := l.Kubectl(ctx, "apply", "-f", manifest); err != nil {
		return err
	}
	return Until(ctx, func() (bool, string, error) {
		out, err := l.Kubectl(ctx, "get", "pod", "probe", "-o", "json")
		if err != nil {
			return false, err.Error(), l.died()
		}
		var pod struct {
			Status struct{ Phase, PodIP string }
		}
		if err := json.Unmarshal([]byte(out), &pod); err != nil {
			return false, "", err
		}
		running := pod.Status.Phase == "Running" && strings.HasPrefix(pod.Status.PodIP, "10.244.")
		return running, fmt.Sprintf("waiting for the pod on %s, which is %s", node, pod.Status.Phase), nil
	})
}

// node is the part of a Kubernetes Node that the lab reads.
type node struct {
	Metadata struct{ Name string }
	Status   struct {
		NodeInfo   struct{ BootID string }
		Conditions []struct{ Type, Status string }
	}
}

func (n node) ready() bool {
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

func (l *Lab) nodes(ctx context.Context) (map[string]node, error) {
	out, err := l.Kubectl(ctx, "--request-timeout=20s", "get", "nodes", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []node }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, err
	}
	byName := map[string]node{}
	for _, n := range list.Items {
		byName[n.Metadata.Name] = n
	}
	return byName, nil
}

// Boots are the boot ids that Kubernetes knows of each node.
type Boots map[string]string

// Boots reads them.
func (l *Lab) Boots(ctx context.Context) (Boots, error) {
	nodes, err := l.nodes(ctx)
	if err != nil {
		return nil, err
	}
	boots := Boots{}
	for name, n := range nodes {
		boots[name] = n.Status.NodeInfo.BootID
	}
	return boots, nil
}

// WaitBack waits until every node is Ready again after another boot than the
// one in before, and the pod on the worker runs.
func (l *Lab) WaitBack(ctx context.Context, before Boots) error {
	return Until(ctx, func() (bool, string, error) {
		for _, m := range l.Active() {
			if bad := l.Guests[m.Name].Console.Bad(); len(bad) > 0 {
				return false, "", fmt.Errorf("the console of %s shows: %s", m.Name, strings.Join(bad, "; "))
			}
		}
		nodes, err := l.nodes(ctx)
		if err != nil {
			return false, fmt.Sprintf("waiting for the API server: %v", err), nil
		}
		for _, m := range l.Active() {
			n := nodes[m.Name]
			if n.Status.NodeInfo.BootID == before[m.Name] || !n.ready() {
				return false, "waiting for " + m.Name + " to be Ready after its reboot", nil
			}
		}
		return true, "", nil
	})
}
