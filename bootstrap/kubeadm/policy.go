package kubeadm

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

const (
	// AuditDir is where API servers keep their audit log, on the node.
	AuditDir = "/var/log/kubernetes"
	// AuditLog is its file.
	AuditLog = AuditDir + "/audit.log"
	// PatchDir has what kubeadm changes in the manifests that it writes.
	PatchDir = "/var/lib/imagectl/patches"
	// APIServerManifest is the static pod that Policy is about.
	APIServerManifest = Manifests + "/kube-apiserver.yaml"
	// policyVolume is AuditDir's in the static pod.
	policyVolume = "imagectl-audit"
	// policyFiles are those of Policy.Files in PKIDir.
	policyFiles = PKIDir + "/imagectl-"
)

// auditPolicy is kube-apiserver's --audit-policy-file.
//
//go:embed audit-policy.yaml
var auditPolicy []byte

// Policy is what API servers log, which pods they take, and that they encrypt Secrets. It is
// neither in kubeadm's ClusterConfiguration nor in the cluster: each control plane has it from
// the server, so that one that joins has what is right now and not what was when kubeadm init
// ran.
type Policy struct {
	// Enforce, Audit and Warn are levels of Pod Security: privileged, baseline, restricted.
	Enforce, Audit, Warn string
	// Exempt are namespaces without Pod Security, besides kube-system.
	Exempt []string
	// EtcdCA names the CAs of etcd that it is to run with, which it reads at its start: with others
	// its manifest is another one, and kubelet starts it anew. Empty where etcd's CA was never
	// replaced.
	EtcdCA string
}

// etcdCAAnnotation of the API server's static pod is Policy.EtcdCA.
const etcdCAAnnotation = "imagectl/etcd-ca"

// PolicyFile is a file that a Policy needs. Its name has the digest of its content: what an
// API server runs with is seen by the names in its manifest, and another content is another
// manifest, for which kubelet starts it anew.
type PolicyFile struct {
	Path    string
	Content []byte
}

type podSecurity struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Defaults   struct {
		Enforce        string `json:"enforce"`
		EnforceVersion string `json:"enforce-version"`
		Audit          string `json:"audit"`
		AuditVersion   string `json:"audit-version"`
		Warn           string `json:"warn"`
		WarnVersion    string `json:"warn-version"`
	} `json:"defaults"`
	Exemptions struct {
		Namespaces []string `json:"namespaces"`
	} `json:"exemptions"`
}

type admissionConfiguration struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Plugins    []admissionPlugin `json:"plugins"`
}

type admissionPlugin struct {
	Name          string      `json:"name"`
	Configuration podSecurity `json:"configuration"`
}

func (p Policy) admission() ([]byte, error) {
	for _, level := range []string{p.Enforce, p.Audit, p.Warn} {
		if !slices.Contains([]string{"privileged", "baseline", "restricted"}, level) {
			return nil, fmt.Errorf("configuring Pod Security: %q is no level: want privileged, baseline or restricted", level)
		}
	}
	s := podSecurity{APIVersion: "pod-security.admission.config.k8s.io/v1", Kind: "PodSecurityConfiguration"}
	d := &s.Defaults
	d.Enforce, d.EnforceVersion = p.Enforce, "latest"
	d.Audit, d.AuditVersion = p.Audit, "latest"
	d.Warn, d.WarnVersion = p.Warn, "latest"
	s.Exemptions.Namespaces = slices.Compact(slices.Sorted(slices.Values(append([]string{"kube-system"}, p.Exempt...))))
	b, err := yaml.Marshal(admissionConfiguration{APIVersion: "apiserver.config.k8s.io/v1", Kind: "AdmissionConfiguration", Plugins: []admissionPlugin{{"PodSecurity", s}}})
	if err != nil {
		return nil, fmt.Errorf("configuring Pod Security: %w", err)
	}
	return b, nil
}

func policyFile(name string, content []byte) PolicyFile {
	sum := sha256.Sum256(content)
	return PolicyFile{policyFiles + name + "-" + hex.EncodeToString(sum[:4]) + ".yaml", content}
}

// Files returns the files of a policy. They hold no secret.
func (p Policy) Files() ([]PolicyFile, error) {
	admission, err := p.admission()
	if err != nil {
		return nil, err
	}
	return []PolicyFile{policyFile("admission", admission), policyFile("audit", auditPolicy)}, nil
}

// flags are kube-apiserver's, in the order in which a manifest gets them. The limits of the log
// are those of the CIS benchmark: 30 days, 10 files of 100 MB.
func (p Policy) flags() ([]arg, error) {
	files, err := p.Files()
	if err != nil {
		return nil, err
	}
	return []arg{
		{"admission-control-config-file", files[0].Path},
		{"audit-policy-file", files[1].Path},
		{"audit-log-path", AuditLog},
		{"audit-log-maxage", "30"},
		{"audit-log-maxbackup", "10"},
		{"audit-log-maxsize", "100"},
		{"encryption-provider-config", EncryptionPath},
		{"encryption-provider-config-automatic-reload", "true"},
		// Tokens of service accounts live as long as they say, not a year.
		{"service-account-extend-token-expiration", "false"},
		{"tls-cipher-suites", strings.Join(cipherSuites(), ",")},
	}, nil
}

// cipherSuites are for TLS 1.2, which is the least that API servers take: those with forward
// secrecy and authenticated encryption. Those of TLS 1.3 cannot be chosen.
func cipherSuites() []string {
	return []string{
		"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
		"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
	}
}

func auditVolume() (volume, mount map[string]any) {
	return map[string]any{"name": policyVolume, "hostPath": map[string]any{"path": AuditDir, "type": "DirectoryOrCreate"}},
		map[string]any{"name": policyVolume, "mountPath": AuditDir}
}

// Apply returns the API server's manifest with a policy. One that has it comes back as it is,
// byte for byte.
func (p Policy) Apply(manifest []byte) ([]byte, error) {
	flags, err := p.flags()
	if err != nil {
		return nil, err
	}
	var pod map[string]any
	if err := yaml.Unmarshal(manifest, &pod); err != nil {
		return nil, fmt.Errorf("reading the API server's manifest: %w", err)
	}
	spec, _ := pod["spec"].(map[string]any)
	containers, _ := spec["containers"].([]any)
	if len(containers) != 1 {
		return nil, errors.New("reading the API server's manifest: it has not one container")
	}
	container, _ := containers[0].(map[string]any)
	command, _ := container["command"].([]any)
	if len(command) == 0 {
		return nil, errors.New("reading the API server's manifest: its container has no command")
	}
	changed := false
	for _, f := range flags {
		want, found := "--"+f.Name+"="+f.Value, false
		for i, have := range command {
			if text, _ := have.(string); strings.HasPrefix(text, "--"+f.Name+"=") {
				found = true
				changed = changed || text != want
				command[i] = want
			}
		}
		if !found {
			command, changed = append(command, want), true
		}
	}
	container["command"] = command
	volume, mount := auditVolume()
	addTo := func(in map[string]any, key string, what map[string]any) {
		list, _ := in[key].([]any)
		if slices.ContainsFunc(list, func(one any) bool { m, _ := one.(map[string]any); return m["name"] == policyVolume }) {
			return
		}
		in[key], changed = append(list, what), true
	}
	addTo(container, "volumeMounts", mount)
	addTo(spec, "volumes", volume)
	out := manifest
	if changed {
		if out, err = yaml.Marshal(pod); err != nil {
			return nil, fmt.Errorf("writing the API server's manifest: %w", err)
		}
	}
	if p.EtcdCA == "" {
		return out, nil
	}
	return Annotated(out, etcdCAAnnotation, p.EtcdCA)
}
