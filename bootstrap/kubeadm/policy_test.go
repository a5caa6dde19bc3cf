package kubeadm

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func policy() Policy {
	return Policy{Enforce: "baseline", Audit: "restricted", Warn: "restricted", Exempt: []string{"rook-ceph", "kube-system"}}
}

func key(name string, of byte) EncryptionKey {
	return EncryptionKey{name, bytes.Repeat([]byte{of}, 32)}
}

func TestEncryptionKeysAreReadBackInTheirOrder(t *testing.T) {
	t.Parallel()
	for _, want := range [][]string{{"k-1"}, {PlainKey, "k-1"}, {"k-1", PlainKey}, {"k-1", "k-2"}, {"k-2", PlainKey, "k-1"}} {
		var keys []EncryptionKey
		for i, name := range want {
			k := key(name, byte(i))
			if name == PlainKey {
				k.Secret = nil
			}
			keys = append(keys, k)
		}
		file, err := Encryption(keys)
		if err != nil {
			t.Fatal(err)
		}
		got, err := EncryptionKeyNames(file)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, %v, want %v of\n%s", got, err, want, file)
		}
	}
}

func TestEncryptionRefusals(t *testing.T) {
	t.Parallel()
	for want, keys := range map[string][]EncryptionKey{
		`configuring encryption at rest: there is no key`:                 nil,
		`configuring encryption at rest: key "k-1" has 16 bytes, want 32`: {{"k-1", make([]byte, 16)}},
		`configuring encryption at rest: key "k-1" has 0 bytes, want 32`:  {{Name: PlainKey}, {Name: "k-1"}},
		`configuring encryption at rest: key "k-2" has 33 bytes, want 32`: {key("k-1", 1), {"k-2", make([]byte, 33)}},
	} {
		if _, err := Encryption(keys); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	for want, file := range map[string]string{
		"reading the configuration of encryption at rest: it is for 0 lists of resources, want 1":                                     "kind: EncryptionConfiguration\n",
		"reading the configuration of encryption at rest: there is a provider that is neither secretbox nor identity":                 "resources:\n- resources: [secrets]\n  providers: [{}]\n",
		`reading the configuration of encryption at rest: error unmarshaling JSON: while decoding JSON: json: unknown field "aescbc"`: "resources:\n- resources: [secrets]\n  providers: [{aescbc: {}}]\n",
	} {
		if _, err := EncryptionKeyNames([]byte(file)); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// manifestOf kubeadm 1.36.3, shortened.
const manifestOf = `apiVersion: v1
kind: Pod
metadata:
  name: kube-apiserver
spec:
  containers:
  - command:
    - kube-apiserver
    - --audit-log-maxage=1
    - --secure-port=6443
    name: kube-apiserver
    volumeMounts:
    - mountPath: /etc/kubernetes/pki
      name: k8s-certs
      readOnly: true
  volumes:
  - hostPath:
      path: /etc/kubernetes/pki
      type: DirectoryOrCreate
    name: k8s-certs
`

type staticPod struct {
	Spec struct {
		Containers []struct {
			Command      []string         `json:"command"`
			VolumeMounts []map[string]any `json:"volumeMounts"`
		} `json:"containers"`
		Volumes []map[string]any `json:"volumes"`
	} `json:"spec"`
}

func TestPolicyIsAppliedOnce(t *testing.T) {
	t.Parallel()
	once, err := policy().Apply([]byte(manifestOf))
	if err != nil {
		t.Fatal(err)
	}
	twice, err := policy().Apply(once)
	if err != nil || !bytes.Equal(once, twice) {
		t.Errorf("applied again it changes: %v\n%s\n%s", err, once, twice)
	}
	var pod staticPod
	if err := yaml.Unmarshal(once, &pod); err != nil {
		t.Fatal(err)
	}
	c := pod.Spec.Containers[0]
	for _, want := range []string{"kube-apiserver", "--secure-port=6443", "--audit-log-maxage=30", "--audit-log-path=" + AuditLog, "--encryption-provider-config=" + EncryptionPath} {
		if n := strings.Count(strings.Join(c.Command, "\n")+"\n", want+"\n"); n != 1 {
			t.Errorf("%s is there %d times: %v", want, n, c.Command)
		}
	}
	if len(c.VolumeMounts) != 2 || len(pod.Spec.Volumes) != 2 {
		t.Errorf("volumes: %v, mounts: %v", pod.Spec.Volumes, c.VolumeMounts)
	}
	// Another policy has files of other names, and so another manifest.
	other := policy()
	other.Enforce = "restricted"
	changed, err := other.Apply(once)
	if err != nil || bytes.Equal(changed, once) {
		t.Errorf("another level changes nothing: %v", err)
	}
	if n := strings.Count(string(changed), "--admission-control-config-file="); n != 1 {
		t.Errorf("the flag is there %d times", n)
	}
}

// What kubeadm's patch adds is what Apply looks for: the API server of a new control plane has
// nothing to be changed.
func TestPolicyPatchIsWhatApplyWants(t *testing.T) {
	t.Parallel()
	ops, err := policy().patch()
	if err != nil {
		t.Fatal(err)
	}
	var pod map[string]any
	if err := yaml.Unmarshal([]byte(strings.Replace(manifestOf, "    - --audit-log-maxage=1\n", "", 1)), &pod); err != nil {
		t.Fatal(err)
	}
	spec := pod["spec"].(map[string]any)
	container := spec["containers"].([]any)[0].(map[string]any)
	for _, op := range ops {
		in, key := spec, strings.TrimSuffix(op.Path[strings.LastIndex(op.Path[:len(op.Path)-2], "/")+1:], "/-")
		if strings.HasPrefix(op.Path, "/spec/containers/0/") {
			in = container
		}
		in[key] = append(in[key].([]any), op.Value)
	}
	patched, err := yaml.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := policy().Apply(patched); err != nil || !bytes.Equal(got, patched) {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, patched)
	}
}

// An API server that is to run with other CAs of etcd has another manifest, by kubeadm's patch too.
func TestAnAPIServerIsMarkedWithEtcdsCAs(t *testing.T) {
	t.Parallel()
	marked := policy()
	marked.EtcdCA = "0123abcd"
	manifest := strings.Replace(manifestOf, "metadata:\n", "metadata:\n  annotations: {kubeadm: x}\n", 1)
	plain, err := policy().Apply([]byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	once, err := marked.Apply(plain)
	if err != nil || bytes.Equal(once, plain) {
		t.Fatalf("it changes nothing: %v", err)
	}
	if twice, err := marked.Apply(once); err != nil || !bytes.Equal(once, twice) {
		t.Errorf("applied again it changes: %v\n%s\n%s", err, once, twice)
	}
	var pod struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal(once, &pod); err != nil || pod.Metadata.Annotations["imagectl/etcd-ca"] != "0123abcd" || pod.Metadata.Annotations["kubeadm"] != "x" {
		t.Errorf("%v: %v", err, pod)
	}
	other := marked
	other.EtcdCA = "0123abce"
	if changed, err := other.Apply(once); err != nil || bytes.Equal(changed, once) {
		t.Errorf("other CAs change nothing: %v", err)
	}
	ops, err := marked.patch()
	if err != nil {
		t.Fatal(err)
	}
	// RFC 6901: a slash in a name is ~1.
	if last := ops[len(ops)-1]; last != (patchOperation{"add", "/metadata/annotations/imagectl~1etcd-ca", "0123abcd"}) {
		t.Errorf("kubeadm's patch ends with %v", last)
	}
	if ops, err := policy().patch(); err != nil || strings.Contains(fmt.Sprint(ops), "annotations") {
		t.Errorf("where nothing was replaced: %v %v", err, ops)
	}
}

func TestPolicyRefusals(t *testing.T) {
	t.Parallel()
	bad := policy()
	bad.Warn = "strict"
	if _, err := bad.Files(); err == nil || err.Error() != `configuring Pod Security: "strict" is no level: want privileged, baseline or restricted` {
		t.Error(err)
	}
	for want, manifest := range map[string]string{
		"reading the API server's manifest: it has not one container":                                                    "spec: {}\n",
		"reading the API server's manifest: its container has no command":                                                "spec: {containers: [{name: x}]}\n",
		"reading the API server's manifest: error converting YAML to JSON: yaml: line 2: found unexpected end of stream": "spec: \"\n",
	} {
		if _, err := policy().Apply([]byte(manifest)); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// The first rule that fits a request decides; the audit policy is read as API servers read it.
func TestAuditPolicyNeverHasSecretsBodies(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("audit-policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		OmitStages []string `json:"omitStages"`
		Rules      []struct {
			Level           string   `json:"level"`
			Users           []string `json:"users"`
			UserGroups      []string `json:"userGroups"`
			Verbs           []string `json:"verbs"`
			NonResourceURLs []string `json:"nonResourceURLs"`
			Resources       []struct {
				Group     string   `json:"group"`
				Resources []string `json:"resources"`
			} `json:"resources"`
		} `json:"rules"`
	}
	if err := yaml.UnmarshalStrict(text, &p, yaml.DisallowUnknownFields); err != nil {
		t.Fatal(err)
	}
	first := p.Rules[0]
	if first.Level != "Metadata" || len(first.Users)+len(first.UserGroups)+len(first.Verbs)+len(first.NonResourceURLs) != 0 {
		t.Errorf("the first rule is not for everybody: %+v", first)
	}
	var named []string
	for _, r := range first.Resources {
		named = append(named, r.Resources...)
	}
	for _, want := range []string{"secrets", "configmaps", "serviceaccounts/token", "tokenreviews"} {
		if !slices.Contains(named, want) {
			t.Errorf("the first rule does not have %s", want)
		}
	}
	for i, r := range p.Rules {
		if r.Level == "RequestResponse" {
			t.Errorf("rule %d logs what is answered", i+1)
		}
		if r.Level != "Request" {
			continue
		}
		for _, of := range r.Resources {
			if of.Group == "" {
				t.Errorf("rule %d logs bodies of the core group", i+1)
			}
		}
	}
	if last := p.Rules[len(p.Rules)-1]; last.Level != "Metadata" || len(last.Resources)+len(last.Verbs)+len(last.Users)+len(last.UserGroups) != 0 {
		t.Errorf("the last rule does not catch the rest: %+v", last)
	}
}
