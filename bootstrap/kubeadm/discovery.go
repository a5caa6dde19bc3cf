package kubeadm

import _ "embed"

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
