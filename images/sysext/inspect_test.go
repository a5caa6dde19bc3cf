package sysext_test

import (
	"errors"
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

var host = sysext.Host{Arch: "amd64", Flatcar: "4593.2.5"}

const anywhere = "ID=_any\n"

// image has a foreign program make an image of files; a content of "→x" is a link.
// maker is mksquashfs or mkfs.erofs with options.
func image(t *testing.T, files map[string]string, maker ...string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, "x", name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "→"); ok {
			err = os.Symlink(target, p)
		} else {
			err = os.WriteFile(p, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out, tree := filepath.Join(dir, "img"), filepath.Join(dir, "x")
	cmd := exec.Command(maker[0], append([]string{tree, out, "-quiet", "-no-progress"}, maker[1:]...)...)
	if maker[0] != "mksquashfs" {
		cmd = exec.Command(maker[0], append(maker[1:], out, tree)...)
	}
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: apt-get install -y $(cat images/*/apt-packages.txt)\n%s", maker, err, b)
	}
	return out
}

func releaseOf(name, content string) map[string]string {
	return map[string]string{"usr/lib/extension-release.d/extension-release." + name: content}
}

func with(files map[string]string, more ...string) map[string]string {
	for i := 0; i < len(more); i += 2 {
		files[more[i]] = more[i+1]
	}
	return files
}

func TestInspectSaysWhyANodeCouldNotUseIt(t *testing.T) {
	t.Parallel()
	good := releaseOf("gvisor", anywhere)
	for name, tc := range map[string]struct {
		files map[string]string
		maker []string
		host  sysext.Host
		want  string
	}{
		"any":                    {files: good},
		"any architecture":       {files: releaseOf("gvisor", "ID=_any\nARCHITECTURE=_any\n")},
		"a level":                {files: releaseOf("gvisor", "ID=\"flatcar\"\nSYSEXT_LEVEL='1.0'\nARCHITECTURE=x86-64\n")},
		"a level goes first":     {files: releaseOf("gvisor", "ID=flatcar\nSYSEXT_LEVEL=1.0\nVERSION_ID=1.2.3\n")},
		"this version":           {files: releaseOf("gvisor", "# made for\nID=flatcar\nVERSION_ID=4593.2.5\n")},
		"another version":        {files: releaseOf("gvisor", "ID=flatcar\nVERSION_ID=4593.2.4\n"), want: "VERSION_ID=4593.2.4, flatcar.version is 4593.2.5"},
		"another level":          {files: releaseOf("gvisor", "ID=flatcar\nSYSEXT_LEVEL=2.0\n"), want: "SYSEXT_LEVEL=2.0, Flatcar has 1.0"},
		"neither":                {files: releaseOf("gvisor", "ID=flatcar\n"), want: "neither SYSEXT_LEVEL nor VERSION_ID"},
		"another system":         {files: releaseOf("gvisor", "ID=debian\n"), want: "ID=debian, want _any or flatcar"},
		"no system":              {files: releaseOf("gvisor", "NAME=x\n"), want: "no ID"},
		"another processor":      {files: releaseOf("gvisor", "ID=_any\nARCHITECTURE=arm64\n"), want: "ARCHITECTURE=arm64, the machines are x86-64"},
		"for the initrd":         {files: releaseOf("gvisor", "ID=_any\nSYSEXT_SCOPE=initrd\n"), want: "SYSEXT_SCOPE=initrd"},
		"another name":           {files: releaseOf("wasmedge", anywhere), want: "extension-release.gvisor, it holds extension-release.wasmedge; its name in cluster.yaml"},
		"no release":             {files: map[string]string{"usr/bin/runsc": "x"}, want: "it holds no usr/lib/extension-release.d/extension-release.gvisor;"},
		"files outside usr":      {files: with(releaseOf("gvisor", anywhere), "etc/runsc.toml", "x", "srv/y", "x"), want: "not merged: etc/runsc.toml, srv/y"},
		"opt":                    {files: with(releaseOf("gvisor", anywhere), "opt/bin/runsc", "x"), want: "makes the node's /opt read-only"},
		"an os-release":          {files: with(releaseOf("gvisor", anywhere), "usr/lib/os-release", "x"), want: "usr/lib/os-release, which systemd-sysext forbids"},
		"a hidden directory":     {files: with(releaseOf("gvisor", anywhere), "usr/bin", "→sbin"), want: "usr/bin is a file or a link and would hide"},
		"lzma":                   {files: good, maker: []string{"mksquashfs", "-comp", "lzma"}, want: "method 2 (2 is lzma), which no kernel mounts"},
		"lz4":                    {files: good, maker: []string{"mksquashfs", "-comp", "lz4"}, want: "compressed with lz4"},
		"gzip":                   {files: good, maker: []string{"mksquashfs", "-comp", "gzip"}},
		"xz":                     {files: good, maker: []string{"mksquashfs", "-comp", "xz", "-Xbcj", "x86"}},
		"lzo":                    {files: good, maker: []string{"mksquashfs", "-comp", "lzo"}},
		"zstd":                   {files: good, maker: []string{"mksquashfs", "-comp", "zstd"}},
		"not compressed":         {files: good, maker: []string{"mksquashfs", "-noI", "-noD", "-noF"}},
		"EROFS":                  {files: good, maker: []string{"mkfs.erofs"}},
		"EROFS with lz4":         {files: good, maker: []string{"mkfs.erofs", "-zlz4hc"}},
		"EROFS of another name":  {files: releaseOf("wasmedge", anywhere), maker: []string{"mkfs.erofs", "-zlz4hc"}, want: "it holds extension-release.wasmedge"},
		"EROFS on LTS":           {files: good, maker: []string{"mkfs.erofs"}, host: sysext.Host{Arch: "amd64", Flatcar: "4081.3.10"}, want: "an EROFS image, which Flatcar 4081.3.10 cannot mount"},
		"EROFS on an old stable": {files: good, maker: []string{"mkfs.erofs"}, host: sysext.Host{Arch: "amd64", Flatcar: "4230.2.4"}, want: "cannot mount"},
		"EROFS on an alpha":      {files: good, maker: []string{"mkfs.erofs"}, host: sysext.Host{Arch: "amd64", Flatcar: "4284.0.0"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.maker == nil {
				tc.maker = []string{"mksquashfs"}
			}
			if tc.host.Arch == "" {
				tc.host = host
			}
			c, err := sysext.Inspect(image(t, tc.files, tc.maker...), "gvisor", tc.host)
			switch {
			case tc.want != "":
				if !errors.Is(err, sysext.ErrNotMerged) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want ErrNotMerged with %q", err, tc.want)
				}
			case err != nil:
				t.Error(err)
			case c.Unread != "" || !slices.Contains(c.Files, "usr/lib/extension-release.d/extension-release.gvisor") || !slices.Contains(c.Dirs, "usr/lib"):
				t.Errorf("got %+v", c)
			}
		})
	}
}

func TestInspectOfWhatItCannotRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string, size, at int64, magic string) string {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(magic), at); err != nil {
			t.Fatal(err)
		}
		return f.Name()
	}
	for path, want := range map[string]string{
		file("ddi", 1<<20, 512, "EFI PART"):   "imagectl does not read GPT images",
		file("ext4", 1<<20, 1080, "\x53\xef"): "imagectl does not read ext4 images",
	} {
		c, err := sysext.Inspect(path, "x", host)
		if err != nil || !strings.Contains(c.Unread, want) {
			t.Errorf("%s: got %+v, %v; want it accepted and %q", path, c, err, want)
		}
	}
	for path, want := range map[string]string{
		file("junk", 100, 0, "hello"):                 "it is no squashfs",
		file("empty", 0, 0, ""):                       "it is no squashfs",
		file("short", 50, 0, "hsqs"):                  "reading the squashfs superblock",
		file("erofs", 4096, 1024, "\xe2\xe1\xf5\xe0"): "",
	} {
		if _, err := sysext.Inspect(path, "x", host); !errors.Is(err, sysext.ErrNotMerged) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want ErrNotMerged with %q", path, err, want)
		}
	}
	whole, err := os.ReadFile(image(t, releaseOf("x", anywhere), "mksquashfs"))
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(dir, "half")
	if err := os.WriteFile(half, whole[:100], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := sysext.Inspect(half, "x", host); err == nil || !strings.Contains(err.Error(), "it is cut off: it has 100 of its") {
		t.Errorf("got %v", err)
	}
}

// An image comes from a URL of the user's: whatever it is, there is a verdict.
func FuzzInspect(f *testing.F) {
	e, err := sysext.Agent(fstree.Bytes("agent"))
	if err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(f.TempDir(), "agent")
	out, err := os.Create(path)
	if err != nil {
		f.Fatal(err)
	}
	defer out.Close()
	if _, err := sysext.Write(out, e, "amd64", time.Unix(0, 0)); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	// Damage in the superblock and in the tables, as a download may have it.
	for i := 8; i < len(b) && i < 1000; i += 24 {
		damaged := slices.Clone(b)
		damaged[i] ^= 0xff
		f.Add(damaged)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := sysext.Inspect(path, "imagectl", host)
		if err == nil && c.Unread == "" && !slices.Contains(c.Files, "usr/lib/extension-release.d/extension-release.imagectl") {
			t.Errorf("accepted without extension-release: %+v", c)
		}
	})
}

func TestConflictsNameBothExtensionsAndThePath(t *testing.T) {
	t.Parallel()
	a := sysext.Contents{Name: "a", Files: []string{"usr/bin/kubelet", "usr/bin/x"}, Dirs: []string{"usr", "usr/bin", "usr/share"}}
	b := sysext.Contents{Name: "b", Files: []string{"usr/bin/kubelet", "usr/share"}, Dirs: []string{"usr", "usr/bin"}}
	c := sysext.Contents{Name: "c", Files: []string{"usr/bin/c"}, Dirs: []string{"usr", "usr/bin"}}
	if err := sysext.Conflicts([]sysext.Contents{c, a}); err != nil {
		t.Error(err)
	}
	err := sysext.Conflicts([]sysext.Contents{c, b, a})
	const want = "extensions are in each other's way: a and b both hold usr/bin/kubelet, usr/share"
	if !errors.Is(err, sysext.ErrConflict) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
