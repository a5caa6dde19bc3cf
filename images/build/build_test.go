package build_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/disk"
	"github.com/imagectl/imagectl/images/extent"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/baseimage"
)

// site is a set of locked inputs in a store.
type site struct {
	t     testing.TB
	store *store.Store
	base  string
	// packed is the base image as it is published.
	packed func() ([]byte, error)
}

func newSite(t testing.TB, cache string, o baseimage.Options) *site {
	t.Helper()
	s, err := store.Open(cache, nil)
	if err != nil {
		t.Fatal(err)
	}
	base := baseimage.Make(t, t.TempDir(), o)
	return siteOf(t, s, base)
}

// siteOf packs a base image once, however often its inputs are asked for.
func siteOf(t testing.TB, s *store.Store, base string) *site {
	return &site{t: t, store: s, base: base, packed: sync.OnceValues(func() ([]byte, error) {
		return exec.Command("lbzip2", "-n", "1", "-c", base).Output() // Flatcar's packer
	})}
}

func (s *site) blob(id lock.ID, source string, content []byte) lock.Blob {
	s.t.Helper()
	b, err := s.store.Put(context.Background(), content)
	if err != nil {
		s.t.Fatal(err)
	}
	return lock.Blob{ID: id, Source: source, SHA256: b.SHA256, Size: b.Size}
}

func (s *site) archive(names ...string) []byte {
	s.t.Helper()
	return s.archived(func(name string) string { return strings.Repeat(name, 3000) }, names...)
}

// archived makes a tar.gz of programs.
func (s *site) archived(of func(name string) string, names ...string) []byte {
	s.t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, n := range names {
		content := of(n)
		if err := w.WriteHeader(&tar.Header{Name: "x/" + n, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content)), ModTime: time.Unix(1600000000, 0)}); err != nil {
			s.t.Fatal(err)
		}
		io.WriteString(w, content)
	}
	w.Close()
	z.Close()
	return buf.Bytes()
}

// extension has mksquashfs make an extension of empty files.
func (s *site) extension(name string, files ...string) lock.Blob {
	s.t.Helper()
	dir := s.t.TempDir()
	for _, f := range append(files, "usr/lib/extension-release.d/extension-release."+name) {
		p := filepath.Join(dir, "tree", f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("ID=_any\n"), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	tool(s.t, "mksquashfs", filepath.Join(dir, "tree"), filepath.Join(dir, "raw"), "-quiet", "-no-progress")
	b, err := os.ReadFile(filepath.Join(dir, "raw"))
	if err != nil {
		s.t.Fatal(err)
	}
	return s.blob(lock.ExtensionPrefix+lock.ID(name), name+".raw", b)
}

func (s *site) inputs(out string) build.Inputs {
	s.t.Helper()
	bz2, err := s.packed()
	if err != nil {
		s.t.Fatal(err)
	}
	image := s.blob(lock.FlatcarImage, "flatcar_production_image.bin.bz2", bz2)
	image.Signer = &lock.Signer{SignedAt: "2026-08-13T10:00:00Z"}
	program := func(id lock.ID) lock.Blob {
		return s.blob(id, string(id), []byte(strings.Repeat(string(id)+"\n", 20000)))
	}
	file := func(id lock.ID, path string) lock.Blob {
		b, err := os.ReadFile(path)
		if err != nil {
			s.t.Fatalf("%v: apt-get install -y $(cat images/medium/apt-packages.txt)", err)
		}
		return s.blob(id, path, b)
	}
	const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	return build.Inputs{
		Cluster: "demo", Flatcar: "4593.2.5", Kubernetes: "v1.36.3", Arch: "amd64",
		Image: image, PXEKernel: file(lock.FlatcarPXEKernel, stub), // an EFI program, as a kernel is
		PXEInitrd: program(lock.FlatcarPXEInitrd),
		Kubeadm:   program(lock.Kubeadm), Kubelet: program(lock.Kubelet), Kubectl: program(lock.Kubectl), Agent: program(lock.Agent),
		CNIArchive:  s.blob(lock.CNIArchive, "cni.tgz", s.archive("bridge", "loopback")),
		EtcdArchive: s.blob(lock.EtcdArchive, "etcd.tar.gz", s.archive("etcd", "etcdctl", "etcdutl", "README.md")),
		Images:      []lock.Blob{program("images/kubernetes")},
		Medium: &build.Medium{
			ConfigIgn: []byte(`{"ignition":{"version":"3.4.0"}}`), Args: []string{"flatcar.first_boot=1", "console=ttyS0"},
			Stub: file(lock.ISOStub, stub), ISOLINUX: file(lock.ISOLINUX, "/usr/lib/ISOLINUX/isolinux.bin"),
			LDLINUX: file(lock.ISOLDLINUX, "/usr/lib/syslinux/modules/bios/ldlinux.c32"), MBR: file(lock.ISOMBR, "/usr/lib/ISOLINUX/isohdpfx.bin"),
		},
		Roles: []build.Role{
			{Name: "control-plane", ControlPlane: true, ConfigIgn: []byte(`{"ignition":{"version":"3.4.0"}}`), GrubCfg: []byte("set linux_append=\"quiet\"\n")},
			{Name: "worker", ConfigIgn: []byte(`{"ignition":{"version":"3.4.0"},"systemd":{}}`), GrubCfg: []byte("set linux_append=\"console=ttyS0\"\n")},
		},
		Sets: []build.Set{build.SetRaw, build.SetPXE}, Out: out, Store: s.store, Builder: "test",
	}
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := os.Stat("/usr/sbin/" + name); err == nil {
		name = "/usr/sbin/" + name
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// extract copies a partition into a file of its own.
func extract(t testing.TB, img, label string) string {
	t.Helper()
	f, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := disk.ReadTable(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range table.Partitions {
		if p.Label == label {
			path := filepath.Join(t.TempDir(), label)
			out, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			if _, err := io.Copy(out, io.NewSectionReader(f, p.Offset, p.Length)); err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	t.Fatalf("%s has no partition %s", img, label)
	return ""
}

func artefact(t testing.TB, m store.Manifest, role string, f store.Format) store.Artefact {
	t.Helper()
	a, ok := m.Find(role, f)
	if !ok {
		t.Fatalf("the manifest has no %s of role %q: %+v", f, role, m)
	}
	return a
}

func TestForeignToolsAcceptWhatWeWrote(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]baseimage.Options{"4593": {}, "4081": {Small: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, out := newSite(t, t.TempDir(), o), t.TempDir()
			res, err := build.Run(context.Background(), s.inputs(out), nil)
			if err != nil {
				t.Fatal(err)
			}
			raw := artefact(t, res.Manifest, "control-plane", store.Raw)
			if raw.Name != "demo-control-plane-4593.2.5-v1.36.3.raw" {
				t.Errorf("got name %s", raw.Name)
			}
			img := filepath.Join(out, raw.Name)
			root := judge(t, img)
			for _, x := range []string{"etcd", "images", "imagectl", "kubernetes"} {
				if got := tool(t, "debugfs", "-R", "stat /etc/extensions/"+x+".raw", root); !strings.Contains(got, "/opt/extensions/"+x+"/"+x+".raw") {
					t.Errorf("no link for extension %s: %s", x, got)
				}
				raw := filepath.Join(t.TempDir(), x)
				tool(t, "debugfs", "-R", "dump /opt/extensions/"+x+"/"+x+".raw "+raw, root)
				tool(t, "unsquashfs", "-l", raw)
			}
			worker := extract(t, filepath.Join(out, artefact(t, res.Manifest, "worker", store.Raw).Name), "ROOT")
			if got := tool(t, "debugfs", "-R", "ls -p /opt/extensions", worker); strings.Contains(got, "etcd") {
				t.Error("a worker has etcd")
			}
			onlyOEMAndRootDiffer(t, s.base, img)
		})
	}
}

// judge has foreign tools examine an image of inputs' control plane, and returns
// its ROOT as a file.
func judge(t *testing.T, img string) (root string) {
	t.Helper()
	tool(t, "sfdisk", "--verify", img)
	if got := tool(t, "sgdisk", "-v", img); !strings.Contains(got, "No problems found") {
		t.Errorf("sgdisk -v: %s", got)
	}
	oem := extract(t, img, "OEM")
	root = extract(t, img, "ROOT")
	tool(t, "btrfs", "check", oem)
	tool(t, "e2fsck", "-fn", root)
	tool(t, "fsck.fat", "-n", extract(t, img, "EFI-SYSTEM"))
	if got := tool(t, "grub-fstest", oem, "cat", "/grub.cfg"); got != "set linux_append=\"quiet\"\n" {
		t.Errorf("GRUB reads %q", got)
	}
	if got := tool(t, "grub-fstest", oem, "cat", "/config.ign"); got != `{"ignition":{"version":"3.4.0"}}` {
		t.Errorf("GRUB reads config.ign as %q", got)
	}
	// One image is for every platform: neither grub.cfg nor a file of OEM's names one.
	if got := tool(t, "grub-fstest", oem, "ls", "/"); !slices.Equal(slices.Sorted(strings.FieldsSeq(got)), []string{"config.ign", "grub.cfg"}) {
		t.Errorf("GRUB lists %q on OEM, want config.ign and grub.cfg alone", got)
	}
	return root
}

// onlyOEMAndRootDiffer compares everything in front of ROOT with the base, but
// OEM and the partition table's numbers, which growing ROOT changes.
func onlyOEMAndRootDiffer(t *testing.T, base, img string) {
	t.Helper()
	a, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := disk.ReadLayout(f)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, l.Root.Offset)
	g, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := g.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int64{{0, 446}, {34 * 512, l.OEM.Offset}, {l.OEM.Offset + l.OEM.Length, l.Root.Offset}} {
		if !bytes.Equal(a[r[0]:r[1]], b[r[0]:r[1]]) {
			t.Errorf("bytes %d to %d differ from the base image", r[0], r[1])
		}
	}
}

func TestTheInstallStreamIsTheImage(t *testing.T) {
	t.Parallel()
	s, out := newSite(t, t.TempDir(), baseimage.Options{}), t.TempDir()
	res, err := build.Run(context.Background(), s.inputs(out), nil)
	if err != nil {
		t.Fatal(err)
	}
	a := artefact(t, res.Manifest, "worker", store.RawZstd)
	f, err := os.Open(filepath.Join(out, a.Name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := extent.Decompress(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	r := extent.NewReader(z)
	got := make([]byte, a.RawSize)
	for {
		off, data, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		copy(got[off:], data)
	}
	want, err := os.ReadFile(filepath.Join(out, artefact(t, res.Manifest, "worker", store.Raw).Name))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) || r.Size() != a.RawSize || r.SHA256() != a.RawSHA256 {
		t.Errorf("the stream (%d bytes, %s) is not the image (%d bytes, %s)", r.Size(), r.SHA256(), a.RawSize, a.RawSHA256)
	}
}

func digests(m store.Manifest) string {
	var b strings.Builder
	for _, a := range m.Artefacts {
		fmt.Fprintln(&b, a.Name, a.SHA256, a.RawSHA256)
	}
	return b.String()
}

// Not parallel: it changes umask, time zone and processors of the process.
func TestTwoBuildsElsewhereAndLaterGiveTheSameBytes(t *testing.T) {
	s := newSite(t, t.TempDir(), baseimage.Options{})
	firstIn := s.inputs(t.TempDir())
	firstIn.Sets = build.Sets()
	first, err := build.Run(context.Background(), firstIn, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Umask(syscall.Umask(0o077))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer func(old *time.Location) { time.Local = old }(time.Local)
	time.Local = time.FixedZone("elsewhere", 9*3600+1800)
	t.Setenv("TZ", "Asia/Tokyo")
	// Another cache too: nothing may be left over from the first build.
	cache, err := store.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	in := siteOf(t, cache, s.base).inputs(t.TempDir())
	in.Sets = build.Sets()
	in.Builder = "the same code, compiled elsewhere"
	second, err := build.Run(context.Background(), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := digests(second.Manifest), digests(first.Manifest); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for _, a := range second.Manifest.Artefacts {
		if st, err := os.Stat(filepath.Join(in.Out, a.Name)); err != nil || st.Mode().Perm() != 0o644 {
			t.Errorf("%s: got mode %v, want 0644: %v", a.Name, st.Mode(), err)
		}
	}
}

// carriers counts artefacts without the documents about them.
func carriers(m store.Manifest) int {
	n := 0
	for _, a := range m.Artefacts {
		if a.Format.Carries() {
			n++
		}
	}
	return n
}

func TestASecondBuildMakesOnlyWhatChanged(t *testing.T) {
	t.Parallel()
	ctx, s, out := context.Background(), newSite(t, t.TempDir(), baseimage.Options{}), t.TempDir()
	in := s.inputs(out)
	first, err := build.Run(ctx, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := build.Run(ctx, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(again.Built) != 0 || len(again.Unchanged) != carriers(first.Manifest) {
		t.Errorf("a second build made %v", again.Built)
	}
	in.Roles[1].GrubCfg = []byte("set linux_append=\"console=ttyS1\"\n")
	changed, err := build.Run(ctx, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	worker := []string{"demo-worker-4593.2.5-v1.36.3.raw", "demo-worker-4593.2.5-v1.36.3.raw.zst"}
	if !slices.Equal(changed.Built, worker) {
		t.Errorf("another grub.cfg for workers made %v", changed.Built)
	}
	// Somebody boots an image.
	cp := filepath.Join(out, artefact(t, changed.Manifest, "control-plane", store.Raw).Name)
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(cp, later, later); err != nil {
		t.Fatal(err)
	}
	repaired, err := build.Run(ctx, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(repaired.Built, filepath.Base(cp)) {
		t.Errorf("an image that was written to was taken for up to date: built %v", repaired.Built)
	}
	// One role alone, while the other's configuration is out of date: the manifest
	// must not promise what the file no longer is.
	in.Roles[0].GrubCfg = []byte("set linux_append=\"x\"\n")
	in.Only = []string{"worker"}
	one, err := build.Run(ctx, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := one.Manifest.Find("control-plane", store.Raw); ok {
		t.Error("the manifest lists an image of an outdated configuration")
	}
	if _, ok := one.Manifest.Find("", store.Sysext); !ok {
		t.Error("the manifest lost the agent extension")
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	vendor := t.TempDir()
	for name, content := range map[string]string{"oem-release": "ID=vmware\n", "grub.cfg": "set linux_append=\"$linux_append flatcar.autologin\"\n"} {
		if err := os.WriteFile(filepath.Join(vendor, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	good := newSite(t, t.TempDir(), baseimage.Options{})
	withVendor := newSite(t, t.TempDir(), baseimage.Options{OEM: vendor})
	withRoot := newSite(t, t.TempDir(), baseimage.Options{Root: vendor})
	for name, tc := range map[string]struct {
		site   *site
		change func(in *build.Inputs)
		want   string
	}{
		"a vendor's base with autologin":    {withVendor, func(*build.Inputs) {}, `it holds "grub.cfg", "oem-release"`},
		"a base image with content in ROOT": {withRoot, func(*build.Inputs) {}, `examining ROOT`},
		"an unknown role":                   {good, func(in *build.Inputs) { in.Only = []string{"db"} }, `no such role, it has ["control-plane" "worker"]`},
		"another format":                    {good, func(in *build.Inputs) { in.Sets = []build.Set{"qcow3"} }, `"qcow3" is not known; known are raw, pxe, `},
		"an input that is not there": {good, func(in *build.Inputs) { in.Agent.SHA256 = strings.Repeat("a", 64) },
			"agent/bootstrapd (sha256 aaaa"},
		"an extension with our name": {good, func(in *build.Inputs) {
			in.Roles[0].Extensions = []build.Extension{{Name: "etcd", Blob: in.Agent}}
		}, "that name is ours"},
		"an extension that is none": {good, func(in *build.Inputs) {
			in.Roles[0].Extensions = []build.Extension{{Name: "gvisor", Blob: in.Agent}}
		}, "building role control-plane: examining extension gvisor"},
		"an extension with a file of ours": {good, func(in *build.Inputs) {
			in.Roles[1].Extensions = []build.Extension{{Name: "mine", Blob: good.extension("mine", "usr/bin/kubelet", "usr/bin/x")}}
		}, "building role worker: extensions are in each other's way: kubernetes and mine both hold usr/bin/kubelet"},
		"two extensions with the same file": {good, func(in *build.Inputs) {
			in.Roles[1].Extensions = []build.Extension{{Name: "a", Blob: good.extension("a", "usr/lib/x")}, {Name: "b", Blob: good.extension("b", "usr/lib/x")}}
		}, "a and b both hold usr/lib/x"},
		"an etcd archive without etcd": {good, func(in *build.Inputs) { in.EtcdArchive = in.CNIArchive }, "lacks programs: etcd, etcdctl, etcdutl"},
		"a truncated base image": {good, func(in *build.Inputs) {
			b, err := os.ReadFile(good.store.Path(in.Image.SHA256))
			if err != nil {
				t.Fatal(err)
			}
			in.Image = good.blob(lock.FlatcarImage, "flatcar_production_image.bin.bz2", b[:len(b)-50])
		}, "unpacking flatcar_production_image.bin.bz2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := t.TempDir()
			in := tc.site.inputs(out)
			tc.change(&in)
			_, err := build.Run(context.Background(), in, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if left, _ := os.ReadDir(out); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestTwoBuildsIntoOneDirectoryExcludeEachOther(t *testing.T) {
	t.Parallel()
	s, out := newSite(t, t.TempDir(), baseimage.Options{}), t.TempDir()
	in := s.inputs(out)
	d, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := build.Run(context.Background(), in, nil); err == nil || !strings.Contains(err.Error(), "another build") {
		t.Errorf("got %v", err)
	}
	// Closing alone would leave the lock with a program that another test is starting.
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	d.Close()
	ctx, cancel := context.WithCancel(context.Background())
	_, err = build.Run(ctx, in, func(e build.Event) {
		if strings.Contains(e.Step, "making") {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled build: got %v", err)
	}
	if left, _ := os.ReadDir(out); len(left) != 0 {
		t.Errorf("a cancelled build left %v", left)
	}
}
