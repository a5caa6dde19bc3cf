package kubeadm

import (
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// livenessFailures is after how many failed liveness probes in a row, one each 10 s, kubelet ends
// an API server, a controller-manager or a scheduler. kubeadm has 8 (LivenessProbe in
// cmd/kubeadm/app/util/staticpod/utils.go, 1.36): on a busy node the programs that are slow are
// ended then, and start with more to do than they had. One that hangs loses nothing by four minutes:
// it is not ready, and balancers leave it.
const livenessFailures = 24

type patchOperation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// patch is what kubeadm adds to the API server's manifest.
func (p Policy) patch() ([]patchOperation, error) {
	flags, err := p.flags()
	if err != nil {
		return nil, err
	}
	var ops []patchOperation
	add := func(path string, value any) { ops = append(ops, patchOperation{"add", path, value}) }
	for _, f := range flags {
		add("/spec/containers/0/command/-", "--"+f.Name+"="+f.Value)
	}
	volume, mount := auditVolume()
	add("/spec/containers/0/volumeMounts/-", mount)
	add("/spec/volumes/-", volume)
	if p.EtcdCA != "" {
		// kubeadm gives this pod annotations of its own (KubeAPIServerAdvertiseAddressEndpointAnnotationKey).
		add("/metadata/annotations/"+strings.ReplaceAll(etcdCAAnnotation, "/", "~1"), p.EtcdCA)
	}
	return ops, nil
}

func livenessPatch() patchOperation {
	return patchOperation{"replace", "/spec/containers/0/livenessProbe/failureThreshold", livenessFailures}
}

// Patches returns the files for PatchDir, by which kubeadm changes the manifests of static pods
// as it writes them: the API server's has the policy, and all are given time (livenessFailures).
func (p Policy) Patches() ([]PolicyFile, error) {
	flags, err := p.patch()
	if err != nil {
		return nil, err
	}
	var out []PolicyFile
	for _, f := range []struct {
		pod string
		ops []patchOperation
	}{
		{"kube-apiserver", append(flags, livenessPatch())},
		{"kube-controller-manager", []patchOperation{livenessPatch()}},
		{"kube-scheduler", []patchOperation{livenessPatch()}},
	} {
		b, err := yaml.Marshal(f.ops)
		if err != nil {
			return nil, fmt.Errorf("writing kubeadm's patch of %s: %w", f.pod, err)
		}
		out = append(out, PolicyFile{PatchDir + "/" + f.pod + "+json.yaml", b})
	}
	return out, nil
}
