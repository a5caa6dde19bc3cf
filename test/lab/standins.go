package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// StandIns fills an empty directory, for Lab.Upstream, with what stands in for
// Kubernetes and etcd. A machine does not need them before it is told to join, and
// images are made and read in a fraction of the time.
func StandIns(dir string) error {
	for name, content := range map[string]string{
		"kubernetes/v1.36.3/bin/linux/amd64/kubeadm": "kubeadm",
		"kubernetes/v1.36.3/bin/linux/amd64/kubectl": "kubectl",
		"kubernetes/v1.36.3/bin/linux/amd64/kubelet": "#!/bin/sh\necho Kubernetes v1.36.3\n",
		"addons/flannel.yaml":                        "apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-flannel}\n",
		"programs/etcd":                              "etcd",
		"programs/etcdctl":                           "etcdctl",
		"programs/etcdutl":                           "etcdutl",
		"programs/bridge":                            "bridge",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			return err
		}
	}
	for _, sub := range []string{"etcd/v3.6.10", "cni/v1.9.1", "images"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	programs := filepath.Join(dir, "programs")
	for _, argv := range [][]string{
		{"tar", "-cz", "-f", filepath.Join(dir, "etcd/v3.6.10/etcd-v3.6.10-linux-amd64.tar.gz"), "-C", programs, "etcd", "etcdctl", "etcdutl"},
		{"tar", "-cz", "-f", filepath.Join(dir, "cni/v1.9.1/cni-plugins-linux-amd64-v1.9.1.tgz"), "-C", programs, "bridge"},
		{"tar", "-c", "-f", filepath.Join(dir, "images/kubernetes-v1.36.3.tar"), "-T", "/dev/null"},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("running %v: %w: %s", argv, err, out)
		}
	}
	return nil
}
