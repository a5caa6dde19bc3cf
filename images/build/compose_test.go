package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upstream"
	"github.com/imagectl/imagectl/test/baseimage"
)

// program is the beginning of an ELF program for a processor: 62 is x86-64, 183 is
// ARM64 (the ELF machine numbers).
func program(machine uint16, name string) string {
	head := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	binary.LittleEndian.PutUint16(head[18:], machine)
	return string(head) + strings.Repeat(name, 2000)
}

// release is an archive as other projects publish them: names and contents, in
// order. A content of "→x" is a link.
func (s *site) release(id lock.ID, source string, members ...string) lock.Blob {
	s.t.Helper()
	var buf bytes.Buffer
	z, err := zstd.NewWriter(&buf)
	if err != nil {
		s.t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for i := 0; i < len(members); i += 2 {
		h := tar.Header{Name: members[i], Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(members[i+1])), ModTime: time.Unix(1700000000, 0), Uid: 1000}
		if target, ok := strings.CutPrefix(members[i+1], "→"); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
		}
		if err := w.WriteHeader(&h); err != nil {
			s.t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, members[i+1]); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		s.t.Fatal(err)
	}
	return s.blob(id, source, buf.Bytes())
}

// made is an extension by a recipe of one input.
func (s *site) made(name string, inputs ...lock.Blob) build.Extension {
	s.t.Helper()
	r, err := upstream.Find(name)
	if err != nil {
		s.t.Fatal(err)
	}
	return build.Extension{Name: name, Recipe: &r, Inputs: inputs}
}

// gvisor has the layout of gVisor's gvisor.tar.zstd.
func (s *site) gvisor(machine uint16) lock.Blob {
	return s.release("extensions/gvisor/release", "gvisor.tar.zstd",
		"runsc", program(machine, "runsc"), "containerd-shim-runsc-v1", program(machine, "shim"),
		"gvisor-bin/gvisor_sentry", program(machine, "sentry"), "gvisor-bin/checkpointgofer", program(machine, "gofer"), "gvisor-bin/LICENSE", "text")
}

func TestExtensionsMadeByRecipesAreInTheImage(t *testing.T) {
	t.Parallel()
	s, out := newSite(t, t.TempDir(), baseimage.Options{}), t.TempDir()
	in := s.inputs(out)
	in.Sets, in.Only = []build.Set{build.SetRaw}, []string{"worker"}
	in.Roles[1].Extensions = []build.Extension{
		s.made("gvisor", s.gvisor(62)),
		s.made("wasmedge", s.release("extensions/wasmedge/release", "containerd-shim-wasmedge-x86_64-linux-musl.tar.gz",
			"./containerd-shim-wasmedge-v1", program(62, "shim"), "./containerd-shim-wasmedge-v1.sig", "sig")),
		s.made("nvidia",
			s.release("extensions/nvidia/driver", "driver.tar", "usr/lib/modules/6.12.102-flatcar/extra/nvidia.ko", "ko", "usr/lib/modules/6.12.102-flatcar/modules.dep.bin", "dep",
				"usr/bin/nvidia-modprobe", program(62, "modprobe"), "usr/lib64/libcuda.so.1", "lib", "usr/lib64/libcuda.so", "→libcuda.so.1"),
			s.release("extensions/nvidia/toolkit", "toolkit.tar", "usr/bin/nvidia-container-runtime", program(62, "runtime"))),
	}
	res, err := build.Run(context.Background(), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel of these inputs is none.
	if len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "kernel modules are for 6.12.102-flatcar; whether Flatcar 4593.2.5 has that kernel was not examined") {
		t.Errorf("got warnings %q", res.Warnings)
	}
	a := artefact(t, res.Manifest, "worker", store.Raw)
	var ids []string
	for _, i := range a.Inputs {
		ids = append(ids, string(i.ID))
	}
	for _, want := range []string{"extensions/gvisor/release", "extensions/nvidia/driver", "extensions/nvidia/toolkit", "recipes/gvisor"} {
		if !slices.Contains(ids, want) {
			t.Errorf("the manifest does not list %s: %q", want, ids)
		}
	}
	root := extract(t, filepath.Join(out, a.Name), "ROOT")
	unpacked := t.TempDir()
	for name, files := range map[string]map[string]string{
		"gvisor": {
			"usr/bin/runsc": program(62, "runsc"), "usr/bin/containerd-shim-runsc-v1": program(62, "shim"),
			"usr/bin/gvisor-bin/gvisor_sentry": program(62, "sentry"), "usr/bin/gvisor-bin/checkpointgofer": program(62, "gofer"), "usr/bin/gvisor-bin/LICENSE": "text",
			"usr/share/imagectl/gvisor/runsc.toml": "[runsc_config]\nsystemd-cgroup = \"true\"\n",
		},
		"wasmedge": {"usr/bin/containerd-shim-wasmedge-v1": program(62, "shim")},
		"nvidia": {
			"usr/lib64/libcuda.so": "lib", "usr/lib/modules/6.12.102-flatcar/modules.dep.bin": "dep",
			"usr/lib/systemd/system/multi-user.target.d/10-nvidia.conf": "[Unit]\nUpholds=nvidia.service\n",
		},
		"runtimes": {
			"usr/lib/systemd/system/containerd.service.d/10-imagectl-runtimes.conf": "[Service]\nEnvironment=CONTAINERD_CONFIG=/usr/share/imagectl/containerd/config.toml\n",
		},
	} {
		if got := tool(t, "debugfs", "-R", "stat /etc/extensions/"+name+".raw", root); !strings.Contains(got, "/opt/extensions/"+name+"/"+name+".raw") {
			t.Errorf("no link for extension %s: %s", name, got)
		}
		raw, dir := filepath.Join(unpacked, name+".raw"), filepath.Join(unpacked, name)
		tool(t, "debugfs", "-R", "dump /opt/extensions/"+name+"/"+name+".raw "+raw, root)
		tool(t, "unsquashfs", "-quiet", "-no-progress", "-d", dir, raw)
		files["usr/lib/extension-release.d/extension-release."+name] = "ID=_any\nARCHITECTURE=x86-64\nEXTENSION_RELOAD_MANAGER=1\n"
		for file, want := range files {
			if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != want {
				t.Errorf("%s: %s: got %.60q, %v; want %.60q", name, file, got, err, want)
			}
		}
		if listed := tool(t, "unsquashfs", "-lln", raw); strings.Contains(listed, "1000/") {
			t.Errorf("%s: not all is root's:\n%s", name, listed)
		}
	}
	for _, left := range []string{"wasmedge/usr/bin/containerd-shim-wasmedge-v1.sig"} {
		if _, err := os.Stat(filepath.Join(unpacked, left)); err == nil {
			t.Errorf("%s was taken, and nobody asked for it", left)
		}
	}
	config, err := os.ReadFile(filepath.Join(unpacked, "runtimes", upstream.ContainerdConfigPath))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`runtimes."gvisor"]` + "\nruntime_type = \"io.containerd.runsc.v1\"\n", `runtimes."nvidia".options]` + "\nBinaryName = \"/usr/bin/nvidia-container-runtime\"\nSystemdCgroup = true\n", `runtimes."wasmedge"]`, "runtimes.runc.options]\nSystemdCgroup = true\n"} {
		if !strings.Contains(string(config), want) {
			t.Errorf("containerd's configuration lacks %q:\n%s", want, config)
		}
	}
}

// kernel is the part of a bzImage that names its release.
func (s *site) kernel(release string) lock.Blob {
	b := make([]byte, 0x400)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x100)
	copy(b[0x300:], release+" (builder@host) #1 SMP")
	return s.blob(lock.FlatcarPXEKernel, "vmlinuz", b)
}

func TestExtensionsThatCannotBeMade(t *testing.T) {
	t.Parallel()
	s := newSite(t, t.TempDir(), baseimage.Options{})
	inputs := s.inputs("")
	modules := func(members ...string) build.Extension {
		return s.made("tree", s.release("extensions/tree/content", "m.tar", members...))
	}
	const ko, dep = "usr/lib/modules/6.12.102-flatcar/extra/x.ko.xz", "usr/lib/modules/6.12.102-flatcar/modules.dep.bin"
	for name, tc := range map[string]struct {
		e      build.Extension
		kernel string
		want   string
	}{
		"another processor":      {s.made("gvisor", s.gvisor(183)), "", "unpacking runsc: it is a program for EM_AARCH64, the machines are amd64"},
		"a missing program":      {s.made("gvisor", s.release("extensions/gvisor/release", "g.tar", "runsc", program(62, "x"))), "", "the archive lacks programs: it has no containerd-shim-runsc-v1"},
		"an error page":          {s.made("gvisor", s.blob("extensions/gvisor/release", "g.tar", []byte("<html>404</html>"))), "", "taking input release from g.tar: unpacking"},
		"a page as program":      {s.made("wasmedge", s.release("extensions/w/release", "w.tar", "containerd-shim-wasmedge-v1", "<html>not found</html>")), "", `it is no program: it begins with "<html>no"`},
		"files outside usr":      {modules("etc/x", "x"), "", "unpacking etc/x: it is outside usr/"},
		"nothing in it":          {modules(), "", "the archive is empty"},
		"what a recipe needs":    {s.made("nvidia", s.release("extensions/n/driver", "d.tar", "usr/bin/nvidia-modprobe", "x"), s.release("extensions/n/toolkit", "t.tar", "usr/bin/x", "x")), "", "nothing in it is usr/lib/modules/*/modules.dep.bin"},
		"modules without depmod": {modules(ko, "x"), "6.12.102-flatcar", "it holds kernel modules and no " + dep},
		"another kernel":         {modules(ko, "x", dep, "x"), "6.12.101-flatcar", "its kernel modules are for 6.12.102-flatcar, the kernel of Flatcar 4593.2.5 is 6.12.101-flatcar"},
		"this kernel":            {modules(ko, "x", dep, "x"), "6.12.102-flatcar", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := inputs
			in.Out = t.TempDir()
			in.Sets, in.Only = []build.Set{build.SetRaw}, []string{"worker"}
			in.Roles = slices.Clone(in.Roles)
			in.Roles[1].Extensions = []build.Extension{tc.e}
			if tc.kernel != "" {
				in.PXEKernel = s.kernel(tc.kernel)
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			_, err := build.Run(ctx, in, func(e build.Event) {
				// What is accepted need not become an image here.
				if strings.Contains(e.Step, "unpacking the base image") || strings.Contains(e.Step, "copying the base image") {
					cancel()
				}
			})
			if tc.want == "" {
				tc.want = context.Canceled.Error()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if left, _ := os.ReadDir(in.Out); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
