package kubeadm

import (
	_ "embed"
	"encoding/base64"
	"fmt"

	"sigs.k8s.io/yaml"
)

// bindings are what kubeadm's bootstrap-token phase allows joining nodes, without
// its token and without its anonymous cluster-info: create a request for a
// certificate, have it approved, read nodes.
//
//go:embed bindings.yaml
var bindings []byte

// Bindings returns the manifest to apply after init.
func Bindings() []byte { return append([]byte(nil), bindings...) }

// authentication is kube-apiserver's --authentication-config: who has no
// certificate may ask for health only, which kubeadm's probes need.
//
//go:embed authentication.yaml
var authentication []byte

// Authentication returns the file for AuthPath.
func Authentication() []byte { return append([]byte(nil), authentication...) }

// DiscoveryConfig is a kubeconfig with embedded credentials for file discovery.
// All arguments are PEM; it is a secret.
func DiscoveryConfig(ca, certificate, key []byte) ([]byte, error) {
	type named map[string]any
	b64 := base64.StdEncoding.EncodeToString
	b, err := yaml.Marshal(named{
		"apiVersion": "v1", "kind": "Config", "current-context": "join",
		"clusters": []named{{"name": "cluster", "cluster": named{"server": "https://" + Endpoint, "certificate-authority-data": b64(ca)}}},
		"users":    []named{{"name": "node", "user": named{"client-certificate-data": b64(certificate), "client-key-data": b64(key)}}},
		"contexts": []named{{"name": "join", "context": named{"cluster": "cluster", "user": "node"}}},
	})
	if err != nil {
		return nil, fmt.Errorf("writing the discovery kubeconfig: %w", err)
	}
	return b, nil
}
