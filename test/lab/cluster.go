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
			return false, "", err
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
