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

// judge is the path of the real kubeadm, in IMAGECTL_KUBEADM.
func judge(t *testing.T) string {
	t.Helper()
	kubeadm := os.Getenv("IMAGECTL_KUBEADM")
	if kubeadm == "" {
		t.Fatal("IMAGECTL_KUBEADM does not say where kubeadm is")
	}
	return kubeadm
}

// ofVersion is a golden for a cluster of the version that kubeadm has.
func ofVersion(t *testing.T, kubeadm string, golden []byte) []byte {
	t.Helper()
	version, err := exec.Command(kubeadm, "version", "--output", "short").Output()
	if err != nil {
		t.Fatalf("asking %s for its version: %v", kubeadm, err)
	}
	return bytes.ReplaceAll(golden, []byte(cluster().Version), bytes.TrimSpace(version))
}

// TestKubeadmAcceptsOurFiles asks the real kubeadm.
func TestKubeadmAcceptsOurFiles(t *testing.T) {
	kubeadm := judge(t)
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
		if err := os.WriteFile(f, ofVersion(t, kubeadm, content), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(kubeadm, "config", "validate", "--config", f).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		} else {
			t.Logf("%s: %s", name, out)
		}
	}
}
