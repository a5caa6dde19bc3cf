//go:build judge

package kubeadm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// TestKubeletReadsWhatKubeadmWrites has the real kubeadm write kubelet's files from our
// configuration, and the real kubelet, which lies beside it, read them: it knows every field
// and flag and takes every value. Kubelet ends where it would ask API servers about its
// callers, since it is told of none: after it has set up TLS, before it does anything to the
// machine.
func TestKubeletReadsWhatKubeadmWrites(t *testing.T) {
	kubeadm := judge(t)
	for name, content := range goldens(t) {
		if !strings.HasPrefix(name, "init") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := initPhase(t, kubeadm, content, "kubelet-start")
			out := kubelet(t, filepath.Join(filepath.Dir(kubeadm), "kubelet"), dir)
			if !strings.Contains(out, "failed to run Kubelet: no client provided, cannot use webhook authentication") {
				t.Errorf("kubelet does not take its configuration: %s", out)
			}
			// It says so, and leaves out what it does not know.
			if strings.Contains(out, "strict decoding") {
				t.Errorf("kubelet does not know all of its configuration: %s", out)
			}
		})
	}
}

// TestKubeadmMakesTheManifestsThatWeWant has the real kubeadm write the static pods with our
// patches: they fit what this version writes, and the API server's is what Apply would make of
// it, or agents would write it again.
func TestKubeadmMakesTheManifestsThatWeWant(t *testing.T) {
	dir := initPhase(t, judge(t), goldens(t)["init-policy.yaml"], "control-plane", "all")
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		manifest, err := os.ReadFile(filepath.Join(dir, name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var pod struct {
			Spec struct {
				Containers []struct {
					LivenessProbe struct {
						FailureThreshold int `json:"failureThreshold"`
					} `json:"livenessProbe"`
				} `json:"containers"`
			} `json:"spec"`
		}
		if err := yaml.Unmarshal(manifest, &pod); err != nil || len(pod.Spec.Containers) != 1 {
			t.Fatalf("%s has not one container: %v: %s", name, err, manifest)
		}
		if got := pod.Spec.Containers[0].LivenessProbe.FailureThreshold; got != livenessFailures {
			t.Errorf("%s is ended after %d failed probes, want %d", name, got, livenessFailures)
		}
		if name != "kube-apiserver" {
			continue
		}
		again, err := policy().Apply(manifest)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, manifest) {
			t.Errorf("agents would write it again: got %s, want %s", manifest, again)
		}
	}
}

// initPhase has kubeadm write what one of its phases of init writes to a new directory, which is
// returned.
func initPhase(t *testing.T, kubeadm string, golden []byte, phase ...string) string {
	t.Helper()
	dir := t.TempDir()
	patches := filepath.Join(dir, "patches")
	if err := os.Mkdir(patches, 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := policy().Patches()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(patches, filepath.Base(f.Path)), f.Content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(dir, "init.yaml")
	golden = bytes.ReplaceAll(golden, []byte(PatchDir), []byte(patches))
	if err := os.WriteFile(conf, ofVersion(t, kubeadm, golden), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(kubeadm, append(append([]string{"init", "phase"}, phase...), "--dry-run", "--config", conf)...)
	cmd.Env = append(os.Environ(), "KUBEADM_INIT_DRYRUN_DIR="+dir)
	// What it does not know of kubelet's it warns of and leaves out.
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("unknown field")) {
		t.Fatalf("kubeadm's phase %v: %v: %s", phase, err, out)
	}
	return dir
}

// kubelet starts kubelet on the files that kubeadm wrote to dir, with all that is in other
// places of a node in dir too, and returns what it says before it ends.
func kubelet(t *testing.T, program, dir string) string {
	t.Helper()
	serving := filepath.Join(dir, "serving.pem")
	if err := os.WriteFile(serving, selfSigned(t), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile(filepath.Join(dir, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range [][2]string{{Serving, serving}, {CAPath, serving}, {Manifests, dir + "/manifests"}, {volumePlugins, dir + "/plugins"}, {criSocket, "unix://" + dir + "/cri.sock"}} {
		if !bytes.Contains(conf, []byte(m[0])) {
			t.Fatalf("kubelet's configuration does not have %s: %s", m[0], conf)
		}
		conf = bytes.ReplaceAll(conf, []byte(m[0]), []byte(m[1]))
	}
	file := filepath.Join(dir, "kubelet.yaml")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	env, err := os.ReadFile(filepath.Join(dir, "kubeadm-flags.env"))
	if err != nil {
		t.Fatal(err)
	}
	_, flags, ok := strings.Cut(strings.TrimSpace(string(env)), `="`)
	if !ok {
		t.Fatalf("kubeadm's flags for kubelet are not understood: %s", env)
	}
	args := append(strings.Fields(strings.TrimSuffix(flags, `"`)), "--config", file, "--root-dir", dir, "--cert-dir", dir,
		// The machine that runs this may have the old cgroups.
		"--fail-cgroupv1=false")
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if err == nil {
		t.Fatalf("kubelet ended well: %s", out)
	}
	return string(out)
}

// selfSigned is a certificate with its key, which is all that kubelet wants of one here.
func selfSigned(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
}
