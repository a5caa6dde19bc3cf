package sysext_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
		{agent, err1, []string{"usr/bin/bootstrapd"}, "bootstrapd.service", "\nType=notify\nNotifyAccess=main\n"},
		{kube, err2, []string{"usr/bin/kubeadm", "usr/bin/kubelet", "usr/bin/kubectl", "usr/lib/imagectl/cni/bridge", "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf"}, "kubelet.service", "ExecStart="},
		{etcd, err3, []string{"usr/bin/etcd"}, "etcd.service", "\nType=notify\n"},
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
		if err := sysext.Inspect(path, tc.e.Name, "amd64"); err != nil {
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

func TestInspectSaysWhyANodeWouldNotMergeIt(t *testing.T) {
	t.Parallel()
	mk := func(release string, name string) string {
		dir := t.TempDir()
		p := filepath.Join(dir, "x/usr/lib/extension-release.d")
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p, "extension-release."+name), []byte(release), 0o644); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(dir, "img")
		if b, err := exec.Command("mksquashfs", filepath.Join(dir, "x"), out, "-quiet", "-no-progress").CombinedOutput(); err != nil {
			t.Fatalf("mksquashfs: %v\n%s", err, b)
		}
		return out
	}
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ path, want string }{
		"good":              {mk("ID=flatcar\nSYSEXT_LEVEL=1.0\nARCHITECTURE=x86-64\n", "gvisor"), ""},
		"any":               {mk("ID=_any\n", "gvisor"), ""},
		"another name":      {mk("ID=_any\n", "wasmedge"), "extension-release.gvisor"},
		"another system":    {mk("ID=debian\n", "gvisor"), "ID=debian"},
		"no level":          {mk("ID=flatcar\n", "gvisor"), "SYSEXT_LEVEL=1.0"},
		"another processor": {mk("ID=_any\nARCHITECTURE=arm64\n", "gvisor"), "it is for arm64"},
		"no image at all":   {junk, "no squashfs"},
	} {
		err := sysext.Inspect(tc.path, "gvisor", "amd64")
		if tc.want == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if tc.want != "" && (!errors.Is(err, sysext.ErrNotMerged) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want ErrNotMerged with %q", name, err, tc.want)
		}
	}
}

func TestMembersOfAnArchive(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, h := range []tar.Header{
		{Name: "etcd-v3/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etcd-v3/etcd", Typeflag: tar.TypeReg, Mode: 0o755, Size: 3},
		{Name: "etcd-v3/README.md", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3},
		{Name: "etcd-v3/evil", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			io.WriteString(w, "abc")
		}
	}
	w.Close()
	z.Close()
	var got []string
	take := func(m sysext.Member, content io.Reader) error {
		b, err := io.ReadAll(content)
		if m.Executable {
			got = append(got, m.Name+"="+string(b))
		}
		return err
	}
	if err := sysext.Members(bytes.NewReader(buf.Bytes()), take); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []string{"etcd=abc"}) {
		t.Errorf("got %v", got)
	}
	if err := sysext.Members(bytes.NewReader(buf.Bytes()[:buf.Len()/2]), take); err == nil {
		t.Error("a truncated archive was accepted")
	}
}
