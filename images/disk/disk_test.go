package disk_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/disk"
	"github.com/imagectl/imagectl/test/baseimage"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// judge runs a partitioning tool that must be content.
func judge(t *testing.T, name string, args ...string) string {
	t.Helper()
	if p := filepath.Join("/usr/sbin", name); len(name) > 0 {
		if _, err := os.Stat(p); err == nil {
			name = p
		}
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestBothLayoutsAreFoundByLabelAndType(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]baseimage.Options{
		"4593": {}, "4081": {Small: true}, "4593 for arm64": {Arch: "arm64"}, "4081 for arm64": {Small: true, Arch: "arm64"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t, baseimage.Make(t, t.TempDir(), o))
			l, err := disk.ReadLayout(f)
			if err != nil {
				t.Fatal(err)
			}
			if l.Table.DiskGUID != "00000000-0000-0000-0000-000000000001" {
				t.Errorf("got disk GUID %s", l.Table.DiskGUID)
			}
			if l.OEM.Number != 6 || l.Root.Number != 9 || l.Root.Length != 32<<20 {
				t.Errorf("got OEM %+v and ROOT %+v", l.OEM, l.Root)
			}
			if got, want := l.Table.Partitions[2].Attributes, uint64(0x0101000000000000); got != want {
				t.Errorf("got USR-A's attributes %x, want %x", got, want)
			}
			if err := disk.CheckEmpty(f, l); err != nil {
				t.Errorf("a fresh image: %v", err)
			}
			want := "amd64"
			if o.Arch != "" {
				want = o.Arch
			}
			if arch, err := disk.Arch(f, l); arch != want || err != nil {
				t.Errorf("got architecture %q, %v, want %s", arch, err, want)
			}
		})
	}
}

func TestGrowingRootKeepsEverythingElse(t *testing.T) {
	t.Parallel()
	path := baseimage.Make(t, t.TempDir(), baseimage.Options{})
	f := open(t, path)
	before, err := disk.ReadLayout(f)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, before.Root.Offset)
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	after, err := disk.GrowRoot(f, before, 100<<20+1)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := after.Root.Length, int64(101<<20); got != want {
		t.Errorf("got ROOT of %d bytes, want %d", got, want)
	}
	if after.Table.Size%(1<<20) != 0 {
		t.Errorf("got a disk of %d bytes, want whole MiB", after.Table.Size)
	}
	for i, p := range after.Table.Partitions {
		want := before.Table.Partitions[i]
		if p.Label == "ROOT" {
			want.Length = p.Length
		}
		if p != want {
			t.Errorf("got partition %+v, want %+v", p, want)
		}
	}
	now := make([]byte, before.Root.Offset)
	if _, err := f.ReadAt(now, 0); err != nil {
		t.Fatal(err)
	}
	// Behind the MBR's partition entries and the table there is nothing that may
	// change.
	if !bytes.Equal(now[:446], head[:446]) || !bytes.Equal(now[34*512:], head[34*512:]) {
		t.Error("something outside the partition table changed")
	}
	tail := make([]byte, 36<<20)
	if _, err := f.ReadAt(tail, before.Root.Offset+before.Root.Length); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(tail, []byte("EFI PART")) {
		t.Error("the old backup table is still inside ROOT")
	}
	judge(t, "sfdisk", "--verify", path)
	if out := judge(t, "sgdisk", "-v", path); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v says %s", out)
	}
	again, err := disk.GrowRoot(f, after, 50<<20)
	if err != nil {
		t.Fatal(err)
	}
	if again.Table.Size != after.Table.Size {
		t.Error("a ROOT that is long enough was grown")
	}
}

func TestAPartitionThatHoldsSomethingIsRefused(t *testing.T) {
	t.Parallel()
	vendor := t.TempDir()
	for _, n := range []string{"oem-release", "grub.cfg"} {
		if err := os.WriteFile(filepath.Join(vendor, n), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	hidden := t.TempDir()
	if err := os.Mkdir(filepath.Join(hidden, ".d"), 0o755); err != nil {
		t.Fatal(err)
	}
	many := t.TempDir()
	for i := range 900 {
		if err := os.WriteFile(filepath.Join(many, strings.Repeat("n", 100)+string(rune('a'+i%26))+string(rune('a'+i/26))), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	booted := t.TempDir()
	for _, n := range []string{"etc/machine-id", "var/lib/a/b/c"} {
		path := filepath.Join(booted, n)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	linked := t.TempDir()
	if err := os.Symlink("/usr/lib", filepath.Join(linked, "lib")); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		o    baseimage.Options
		want string
	}{
		"a ROOT that was booted":       {baseimage.Options{Root: booted}, `examining ROOT`},
		"files deep in ROOT":           {baseimage.Options{Root: booted}, `it holds "etc/machine-id", "var/lib/a/b/c"`},
		"a link in ROOT":               {baseimage.Options{Root: linked}, `"lib"`},
		"an indexed directory in ROOT": {baseimage.Options{Root: many, RootMiB: 128}, "and 895 more"},
		"a ROOT that is no ext4":       {baseimage.Options{RootFile: []byte("XFSB and so on")}, "no ext4"},
		"a vendor's files":             {baseimage.Options{OEM: vendor}, `"oem-release"`},
		"an empty hidden directory":    {baseimage.Options{OEM: hidden}, `".d"`},
		"a tree of more than one leaf": {baseimage.Options{OEM: many}, "and 895 more"},
		"something that is no btrfs":   {baseimage.Options{OEMFile: []byte("ext4 or so")}, "no btrfs"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := open(t, baseimage.Make(t, t.TempDir(), tc.o))
			l, err := disk.ReadLayout(f)
			if err != nil {
				t.Fatal(err)
			}
			err = disk.CheckEmpty(f, l)
			if !errors.Is(err, disk.ErrNotEmpty) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "generic") {
				t.Errorf("got %v, want ErrNotEmpty with %q", err, tc.want)
			}
		})
	}
}

func TestAnOEMOfZerosCountsAsEmptyAndADamagedOneDoesNot(t *testing.T) {
	t.Parallel()
	f := open(t, baseimage.Make(t, t.TempDir(), baseimage.Options{OEMFile: []byte{0}}))
	l, err := disk.ReadLayout(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.CheckEmpty(f, l); err != nil {
		t.Error(err)
	}
	g := open(t, baseimage.Make(t, t.TempDir(), baseimage.Options{}))
	// One bit in the superblock.
	b := make([]byte, 1)
	at := l.OEM.Offset + 64<<10 + 0x70
	if _, err := g.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := g.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := disk.CheckEmpty(g, l); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("got %v, want a complaint about the checksum", err)
	}
}

func TestAnESPWithoutBootProgramsIsOfNoArchitecture(t *testing.T) {
	t.Parallel()
	f := open(t, baseimage.Make(t, t.TempDir(), baseimage.Options{}))
	l, err := disk.ReadLayout(f)
	if err != nil {
		t.Fatal(err)
	}
	// Programs for both: no layout of Flatcar's.
	esp := f.Name() + "@@" + strconv.FormatInt(l.ESP.Offset, 10)
	judge(t, "mcopy", "-i", esp, "::EFI/boot/bootx64.efi", "::EFI/boot/bootaa64.efi")
	if _, err := disk.Arch(f, l); err == nil || !strings.Contains(err.Error(), "two kinds of processors") {
		t.Errorf("got %v", err)
	}
	judge(t, "mdeltree", "-i", esp, "::EFI/boot")
	if arch, err := disk.Arch(f, l); arch != "" || err != nil {
		t.Errorf("without EFI/boot: got %q, %v", arch, err)
	}
	if _, err := f.WriteAt(make([]byte, 512), l.ESP.Offset); err != nil {
		t.Fatal(err)
	}
	if arch, err := disk.Arch(f, l); arch != "" || err != nil {
		t.Errorf("without a file system: got %q, %v", arch, err)
	}
}

func TestWhatIsNoFlatcarImageIsRefused(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.ReadLayout(open(t, empty)); err == nil || !strings.Contains(err.Error(), "there is no GPT") {
		t.Errorf("zeros: got %v", err)
	}
	path := baseimage.Make(t, t.TempDir(), baseimage.Options{})
	judge(t, "sgdisk", "-c", "6:oem", "-t", "9:8300", path)
	_, err := disk.ReadLayout(open(t, path))
	if !errors.Is(err, disk.ErrNotFlatcar) || !strings.Contains(err.Error(), "0 partitions labelled OEM") || !strings.Contains(err.Error(), "partition ROOT has type") {
		t.Errorf("other labels: got %v", err)
	}
	f := open(t, path)
	if _, err := f.WriteAt([]byte{0x11}, 2*512+40); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.ReadLayout(f); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("a damaged table: got %v", err)
	}
}
