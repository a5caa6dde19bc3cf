package fstree

import (
	"errors"
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
	} {
		if err := tree.Add(e); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
	if err := tree.AddFile("etc/hostname", 0o644, Bytes("n2")); !errors.Is(err, ErrExists) {
		t.Errorf("second entry of one path: got %v, want ErrExists", err)
	}
}
