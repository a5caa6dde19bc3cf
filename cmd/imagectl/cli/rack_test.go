package cli

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/store"
	testsite "github.com/imagectl/imagectl/test/site"
)

// siteWith is a directory with everything that serve reads: a cluster.yaml that ends
// with the given part, and more files if there are any. Files that only machines would
// read are small and made up.
func siteWith(t *testing.T, part string, more map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := testsite.Write(filepath.Join(dir, name), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	write("keys/flatcar.asc", "no key\n")
	write("bin/bootstrapd", "agent")
	write("addons/cni.yaml", "kind: ConfigMap\n")
	for name, text := range more {
		write(name, text)
	}
	write("cluster.yaml", `version: 1
cluster: demo
flatcar: {channel: stable, version: 4593.2.5, keyring: keys/flatcar.asc}
kubernetes: {version: v1.36.3, podCIDR: 10.128.0.0/12, serviceCIDR: 10.96.0.0/16}
etcd: {version: v3.6.5}
cni: {version: v1.9.1}
agent: {source: bin/bootstrapd}
addons:
  - {name: cni, source: addons/cni.yaml}
roles:
  control-plane: {kind: control-plane}
  worker: {kind: worker}
`+part)

	if err := testsite.Complete(dir, func(store.Format) int64 { return 100 }); err != nil {
		t.Fatal(err)
	}
	t.Setenv("IMAGECTL_CONFIG", filepath.Join(dir, "context.json"))
	t.Setenv("IMAGECTL_CACHE", filepath.Join(dir, "cache"))
	t.Setenv("SUDO_USER", "ada")
	return dir
}

// imagectl runs one command in this process.
func imagectl(t *testing.T, args ...string) (string, string, int) {
	t.Helper()
	var out, errs bytes.Buffer
	code := Main(t.Context(), Stdio{In: strings.NewReader(""), Out: &out, Err: &errs}, args)
	return out.String(), errs.String(), code
}
