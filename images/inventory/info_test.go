package inventory

import (
	"runtime/debug"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What "go version -m" shows of a program with a replaced module, and one
// replaced by a directory, which has no version of its own.
func TestModulesAreTheOnesLinkedIn(t *testing.T) {
	t.Parallel()
	info, err := debug.ParseBuildInfo("path\tk8s.io/kubernetes/cmd/kubelet\n" +
		"mod\tk8s.io/kubernetes\tv1.36.3\t\n" +
		"dep\tk8s.io/api\tv0.0.0\n=>\t./staging/src/k8s.io/api\t(devel)\t\n" +
		"dep\tgithub.com/b/b\tv1.0.0\n=>\tgithub.com/fork/b\tv1.0.1\th1:x=\n" +
		"dep\tgithub.com/a/a\tv2.0.0+incompatible\th1:y=\n")
	if err != nil {
		t.Fatal(err)
	}
	info.GoVersion = "go1.26.0"
	want := Program{
		Path: "usr/bin/kubelet", Package: "k8s.io/kubernetes/cmd/kubelet", Main: Module{"k8s.io/kubernetes", "v1.36.3"}, Go: "go1.26.0",
		Modules: []Module{{"github.com/a/a", "v2.0.0+incompatible"}, {"github.com/fork/b", "v1.0.1"}, {"k8s.io/api", "v0.0.0"}},
	}
	if diff := cmp.Diff(fromInfo("usr/bin/kubelet", info), want); diff != "" {
		t.Error(diff)
	}
}
