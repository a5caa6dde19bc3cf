package cluster

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPodSecurity(t *testing.T) {
	t.Parallel()
	parse := func(text string) (PodSecurity, []string) {
		text = edit(t, "  podCIDR:", "  podSecurity: "+text+"\n  podCIDR:")
		spec, found := Parse(fake{"cluster.yaml": text}.read, "cluster.yaml")
		return spec.Kubernetes.PodSecurity, texts(found)
	}
	for text, want := range map[string]PodSecurity{
		"{}": {Enforce: "baseline", Audit: "restricted", Warn: "restricted"},
		"{enforce: restricted, audit: baseline, warn: privileged, exempt: [rook-ceph, kube-flannel]}": {Enforce: "restricted", Audit: "baseline", Warn: "privileged", Exempt: []string{"rook-ceph", "kube-flannel"}},
	} {
		got, said := parse(text)
		if diff := cmp.Diff(want, got); diff != "" || len(said) > 0 {
			t.Errorf("%s: %s %q", text, diff, said)
		}
	}
	for text, want := range map[string]string{
		"{enforce: baselin}":           `error: kubernetes.podSecurity.enforce: "baselin" is not one of privileged, baseline, restricted`,
		"{enforce: privileged}":        "warning: kubernetes.podSecurity.enforce: every pod may take its node over",
		"{exempt: [Rook]}":             `error: kubernetes.podSecurity.exempt[0]: "Rook" is not a name: want 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit`,
		"{exempt: [a, b, a]}":          "error: kubernetes.podSecurity.exempt[2]: namespace a is used twice: first at cluster.yaml:17:26 (kubernetes.podSecurity.exempt[0])",
		"{enforce: baseline, warn: 1}": `error: kubernetes.podSecurity.warn: 1 is a number for YAML, want text`,
	} {
		if _, said := parse(text); len(said) != 1 || said[0] != want {
			t.Errorf("%s:\ngot  %q\nwant %q", text, said, want)
		}
	}
}
