package sysext_test

import (
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/sysext"
)

func program(s string) fstree.Content { return fstree.Bytes(strings.Repeat(s, 50000)) }

func write(t *testing.T, e sysext.Extension, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), e.Name+".raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := sysext.Write(f, e, "amd64", time.Unix(1700000000, 0))
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := f.Stat(); st.Size() != size {
		t.Errorf("got a file of %d bytes, want %d", st.Size(), size)
	}
	return path
}

func unpack(t *testing.T, path string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "x")
	if out, err := exec.Command("unsquashfs", "-no-progress", "-quiet", "-d", dir, path).CombinedOutput(); err != nil {
		t.Fatalf("unsquashfs: %v\n%s", err, out)
	}
	return dir
}

func TestEachExtensionHoldsWhatANodeNeeds(t *testing.T) {
	t.Parallel()
	agent, err1 := sysext.Agent(program("agent"))
	kube, err2 := sysext.Kubernetes(program("k"), program("k"), program("k"), []sysext.File{{Name: "bridge", Content: program("b"), ModTime: time.Unix(1600000000, 0)}})
	etcd, err3 := sysext.Etcd([]sysext.File{{Name: "etcd", Content: program("e")}})
	images, err4 := sysext.Images([]sysext.File{{Name: "kubernetes.tar", Content: program("i")}})
	for _, tc := range []struct {
		e     sysext.Extension
		err   error
		files []string
		unit  string
		says  string
	}{
		{agent, err1, []string{"usr/bin/bootstrapd", sysext.FirewallPath, "usr/lib/systemd/system/imagectl-firewall.service"}, "bootstrapd.service", "\nType=notify\nNotifyAccess=main\n"},
		{kube, err2, []string{"usr/bin/kubeadm", "usr/bin/kubelet", "usr/bin/kubectl", "usr/lib/imagectl/cni/bridge", "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf"}, "kubelet.service", "\nRequires=imagectl-firewall.service\n"},
		{etcd, err3, []string{"usr/bin/etcd"}, "etcd.service", "\nRequires=imagectl-firewall.service\n"},
		{images, err4, []string{"usr/share/imagectl/images/kubernetes.tar"}, "", ""},
	} {
		path := write(t, tc.e, tc.err)
		dir := unpack(t, path)
		for _, f := range append(tc.files, "usr/lib/extension-release.d/extension-release."+tc.e.Name) {
			if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
				t.Errorf("%s: %v", tc.e.Name, err)
			}
		}
		if top, _ := os.ReadDir(dir); len(top) != 1 || top[0].Name() != "usr" {
			t.Errorf("%s: got %v at the top, want only usr", tc.e.Name, top)
		}
		if tc.unit != "" {
			system := filepath.Join(dir, "usr/lib/systemd/system")
			upholds, err := os.ReadFile(filepath.Join(system, "multi-user.target.d/10-"+tc.e.Name+".conf"))
			if err != nil || !strings.Contains(string(upholds), "Upholds="+tc.unit+"\n") {
				t.Errorf("%s: got %q %v, want Upholds=%s", tc.e.Name, upholds, err, tc.unit)
			}
			unit, err := os.ReadFile(filepath.Join(system, tc.unit))
			if err != nil || !strings.Contains(string(unit), tc.says) {
				t.Errorf("%s: got %q %v, want %q in it", tc.unit, unit, err, tc.says)
			}
		}
		if _, err := sysext.Inspect(path, tc.e.Name, host); err != nil {
			t.Errorf("our own extension: %v", err)
		}
	}
}

func TestTheSameExtensionGivesTheSameBytes(t *testing.T) {
	t.Parallel()
	var sums [][32]byte
	for range 2 {
		e, err := sysext.Agent(program("agent"))
		b, err := os.ReadFile(write(t, e, err))
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, sha256.Sum256(b))
	}
	if sums[0] != sums[1] {
		t.Error("two writes differ")
	}
}
