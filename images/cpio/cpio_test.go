package cpio_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/cpio"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
)

// unpack lets GNU cpio restore an archive.
func unpack(t testing.TB, archive []byte) string {
	t.Helper()
	tool, err := fstreetest.Tool("cpio", "cpio")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(tool, "--extract", "--preserve-modification-time", "--no-absolute-filenames", "--quiet")
	cmd.Dir = dir
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("cpio -i: %v\n%s", err, out)
	}
	return dir
}

func archive(t testing.TB, tree *fstree.Tree) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := cpio.Write(&b, tree, cpio.Options{ModTime: fstreetest.Time}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestCpioRestoresTheTree(t *testing.T) {
	tree := fstreetest.Sample(t)
	got := archive(t, tree)
	if len(got)%512 != 0 {
		t.Errorf("the archive has %d bytes, no multiple of 512", len(got))
	}
	fstreetest.Compare(t, tree, unpack(t, got), fstreetest.Except{Root: true, DirTimes: true, Links: true})
	if !bytes.Equal(got, archive(t, tree)) {
		t.Error("two writes differ")
	}
}

func TestDirectoriesComeBeforeTheirContents(t *testing.T) {
	tree := new(fstree.Tree)
	if err := tree.AddFile("usr/share/oem/config.ign", 0o600, fstree.Bytes("{}")); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "oem.cpio")
	if err := os.WriteFile(name, archive(t, tree), 0o600); err != nil {
		t.Fatal(err)
	}
	got := fstreetest.Run(t, "cpio", "cpio", "--list", "--quiet", "--file", name)
	if want := "usr\nusr/share\nusr/share/oem\nusr/share/oem/config.ign\n"; got != want {
		t.Errorf("cpio -t:\n%swant:\n%s", got, want)
	}
}

func TestGzipHoldsNoNameOrTime(t *testing.T) {
	tree := fstreetest.Sample(t)
	var b bytes.Buffer
	if err := cpio.WriteGzip(&b, tree, cpio.Options{ModTime: fstreetest.Time}); err != nil {
		t.Fatal(err)
	}
	// RFC 1952 section 2.3: magic, deflate, no flags, no time, level, any OS.
	if got, want := b.Bytes()[:8], []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0}; !bytes.Equal(got, want) {
		t.Errorf("gzip header % x, want % x", got, want)
	}
	cmd := exec.Command("gzip", "-dc")
	cmd.Stdin = &b
	got, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, archive(t, tree)) {
		t.Error("gzip -d gives another archive")
	}
}

func TestRefusals(t *testing.T) {
	tree := func(e fstree.Entry) *fstree.Tree {
		tree := new(fstree.Tree)
		if err := tree.Add(e); err != nil {
			t.Fatal(err)
		}
		return tree
	}
	for want, tree := range map[string]*fstree.Tree{
		"writing a to cpio: the modification time 2106-02-07T06:28:16Z is outside 1970 to 2106, which is all the format can hold": tree(fstree.Entry{Path: "a", ModTime: time.Unix(1<<32, 0)}),
		"writing a to cpio: the file has 4294967296 bytes, the format holds less than 4 GiB":                                      tree(fstree.Entry{Path: "a", Type: fstree.File, Content: fstreetest.Zeros(1 << 32)}),
	} {
		err := cpio.Write(&strings.Builder{}, tree, cpio.Options{})
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func FuzzTree(f *testing.F) {
	f.Add([]byte{0, 0, 9, 0, 1, 200, 2, 2, 255, 130, 1, 250, 3, 0, 40, 1, 2, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		tree := fstreetest.Shape(data)
		fstreetest.Compare(t, tree, unpack(t, archive(t, tree)), fstreetest.Except{Root: true, DirTimes: true, Links: true})
	})
}
