//go:build root

package native

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// etcdManifest is the static pod that kubeadm makes of its own etcd; imagectl's control planes have none.
const etcdManifest = "/etc/kubernetes/manifests/etcd.yaml"

// mirror shows a static pod of a node to the API, as kubelet does with each. kubeadm join finds
// etcd's members by theirs and by nothing else (getRawEtcdEndpointsFromPodAnnotation in
// cmd/kubeadm/app/util/etcd/etcd.go of v1.36.3), so etcd's is the only one that anybody misses here.
func mirror(node string, manifest []byte) error {
	uid, err := kubectl(kubeletConf, "", "get", "node", node, "-o", "jsonpath={.metadata.uid}")
	if err != nil {
		return err
	}
	pod, err := mirrorOf(node, string(uid), manifest)
	if err != nil {
		return err
	}
	_, err = kubectl(kubeletConf, string(pod), "create", "--raw", "/api/v1/namespaces/kube-system/pods", "-f", "-")
	if err != nil && strings.Contains(err.Error(), "already exists") {
		return nil // of its process before
	}
	return err
}

// mirrorOf is what the API gets of a static pod: what the admission plug-in NodeRestriction wants
// of a node that makes a pod.
func mirrorOf(node, uid string, manifest []byte) ([]byte, error) {
	var pod map[string]any
	if err := yaml.Unmarshal(manifest, &pod); err != nil {
		return nil, err
	}
	meta, _ := pod["metadata"].(map[string]any)
	spec, _ := pod["spec"].(map[string]any)
	if meta == nil || spec == nil {
		return nil, errors.New("a static pod has metadata and a spec")
	}
	annotations, _ := meta["annotations"].(map[string]any)
	if annotations == nil {
		annotations = map[string]any{}
		meta["annotations"] = annotations
	}
	sum := sha256.Sum256(manifest)
	annotations["kubernetes.io/config.mirror"] = hex.EncodeToString(sum[:16])
	meta["name"] = fmt.Sprintf("%v-%s", meta["name"], node)
	meta["ownerReferences"] = []any{map[string]any{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid, "controller": true}}
	spec["nodeName"] = node
	return json.Marshal(pod)
}
