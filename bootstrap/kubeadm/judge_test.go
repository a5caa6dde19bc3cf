//go:build judge

package kubeadm

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestKubeadmAcceptsOurFiles asks the real kubeadm, whose path is in
// IMAGECTL_KUBEADM.
func TestKubeadmAcceptsOurFiles(t *testing.T) {
	kubeadm := os.Getenv("IMAGECTL_KUBEADM")
	if kubeadm == "" {
		t.Fatal("IMAGECTL_KUBEADM does not say where kubeadm is")
	}
	all := goldens(t)
	// kubeadm looks whether the discovery file exists, wherever the test runs.
	discovery := filepath.Join(t.TempDir(), "discovery.conf")
	if err := os.WriteFile(discovery, all["discovery.conf"], 0o600); err != nil {
		t.Fatal(err)
	}
	for name, content := range all {
		content = bytes.ReplaceAll(content, []byte(Discovery), []byte(discovery))
		if !strings.HasSuffix(name, ".yaml") || strings.HasPrefix(name, "policy-") || name == "encryption.yaml" {
			continue
		}
		f := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(f, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(kubeadm, "config", "validate", "--config", f).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		} else {
			t.Logf("%s: %s", name, out)
		}
	}
}
