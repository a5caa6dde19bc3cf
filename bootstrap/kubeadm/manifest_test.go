package kubeadm

import (
	"testing"
)

func TestAnAnnotationMakesAnotherPodOnce(t *testing.T) {
	t.Parallel()
	const manifest = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: kube-scheduler\n  annotations: {a: b}\nspec:\n  containers: [{name: s, command: [kube-scheduler, --port=0]}]\n"
	const want = `apiVersion: v1
kind: Pod
metadata:
  annotations:
    a: b
    imagectl/certificates: "1"
  name: kube-scheduler
spec:
  containers:
  - command:
    - kube-scheduler
    - --port=0
    name: s
`
	got, err := Annotated([]byte(manifest), "imagectl/certificates", "1")
	if err != nil || string(got) != want {
		t.Fatalf("got %v\n%s\nwant\n%s", err, got, want)
	}
	if again, err := Annotated(got, "imagectl/certificates", "1"); err != nil || string(again) != want {
		t.Errorf("again: %v\n%s", err, again)
	}
	for in, want := range map[string]string{
		"kind: Pod\n": "reading a static pod's manifest: it has no metadata",
		"half of: [":  "reading a static pod's manifest: error converting YAML to JSON: yaml: line 1: did not find expected node content",
	} {
		if _, err := Annotated([]byte(in), "a", "b"); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", in, err, want)
		}
	}
}
