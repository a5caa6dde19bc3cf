package kubeadm

import (
	"errors"
	"fmt"

	"sigs.k8s.io/yaml"
)

// Annotated returns a static pod's manifest with an annotation. A manifest that has it
// comes back as it is, byte for byte; another one is another pod to kubelet, which ends
// the old one and starts it.
func Annotated(manifest []byte, name, value string) ([]byte, error) {
	var pod map[string]any
	if err := yaml.Unmarshal(manifest, &pod); err != nil {
		return nil, fmt.Errorf("reading a static pod's manifest: %w", err)
	}
	metadata, ok := pod["metadata"].(map[string]any)
	if !ok {
		return nil, errors.New("reading a static pod's manifest: it has no metadata")
	}
	annotations, ok := metadata["annotations"].(map[string]any)
	if !ok {
		annotations = map[string]any{}
		metadata["annotations"] = annotations
	}
	if annotations[name] == value {
		return manifest, nil
	}
	annotations[name] = value
	out, err := yaml.Marshal(pod)
	if err != nil {
		return nil, fmt.Errorf("writing a static pod's manifest: %w", err)
	}
	return out, nil
}
