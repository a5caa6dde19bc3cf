package fstree

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEntriesListParentsFirstInByteOrder(t *testing.T) {
	var tree Tree
	for _, p := range []string{"usr/lib-x/b", "usr/lib/z", "a", "usr/lib/a/deep"} {
		if err := tree.AddFile(p, 0o644, Bytes(p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.AddDir("usr/lib", 0o700); err != nil {
		t.Fatal("an implied parent may be added explicitly later:", err)
	}
	var got []string
	for _, e := range tree.Entries() {
		got = append(got, e.Path)
	}
	want := []string{".", "a", "usr", "usr/lib", "usr/lib/a", "usr/lib/a/deep", "usr/lib/z", "usr/lib-x", "usr/lib-x/b"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if e, _ := tree.Lookup("usr/lib"); e.Mode != 0o700 {
		t.Errorf("usr/lib mode is %o, want 700", e.Mode)
	}
}

func TestAddRefusesWhatAnImageCannotHold(t *testing.T) {
	var tree Tree
	if err := tree.AddFile("etc/hostname", 0o644, Bytes("n1")); err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]Entry{
		"absolute path":        {Path: "/etc/x", Type: File, Content: Bytes("")},
		"path that climbs out": {Path: "../x", Type: File, Content: Bytes("")},
		"unclean path":         {Path: "etc//x", Type: File, Content: Bytes("")},
		"empty path":           {Path: "", Type: Dir},
		"file type in mode":    {Path: "x", Type: File, Mode: 0o100644, Content: Bytes("")},
		"file without content": {Path: "x", Type: File},
		"link without target":  {Path: "x", Type: Symlink},
		"parent is a file":     {Path: "etc/hostname/x", Type: File, Content: Bytes("")},
		"NUL in the name":      {Path: "a\x00b", Type: Dir},
		"name of 256 bytes":    {Path: strings.Repeat("n", 256), Type: Dir},
		"parent of 256 bytes":  {Path: strings.Repeat("n", 256) + "/x", Type: Dir},
	} {
		if err := tree.Add(e); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
	if err := tree.AddFile("etc/hostname", 0o644, Bytes("n2")); !errors.Is(err, ErrExists) {
		t.Errorf("second entry of one path: got %v, want ErrExists", err)
	}
}

func TestReadBlocksRefusesContentOfAnotherLength(t *testing.T) {
	for name, c := range map[string]lying{
		"shorter":         {size: 5, data: "1234"},
		"longer":          {size: 3, data: "1234"},
		"not empty":       {size: 0, data: "1"},
		"multiple of buf": {size: 2, data: "1234"},
	} {
		err := ReadBlocks(c, make([]byte, 2), func([]byte) error { return nil })
		if err == nil {
			t.Errorf("%s than announced: was accepted", name)
		}
	}
	var got []string
	err := ReadBlocks(Bytes("12345"), make([]byte, 2), func(b []byte) error {
		got = append(got, string(b))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"12", "34", "5"}, got); diff != "" {
		t.Errorf("blocks (-want +got):\n%s", diff)
	}
}

// lying is content whose size is not that of its data.
type lying struct {
	size int64
	data string
}

func (l lying) Size() int64                  { return l.size }
func (l lying) Open() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(l.data)), nil }

func TestRootLinksNodes(t *testing.T) {
	var tree Tree
	for _, p := range []string{"b/c/d", "a"} {
		if err := tree.AddDir(p, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	root := tree.Root()
	var got []string
	if err := root.Walk(func(n *Node) error {
		got = append(got, fmt.Sprintf("%q in %q, %d links", n.Name, n.Parent.Name, n.Links()))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{`"" in "", 4 links`, `"a" in "", 2 links`, `"b" in "", 3 links`, `"c" in "b", 3 links`, `"d" in "c", 2 links`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
}
