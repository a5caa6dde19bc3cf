package fstree_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/imagectl/imagectl/images/fstree"
)

// liar announces another size than it has.
type liar struct {
	fstree.Bytes
	size int64
}

func (l liar) Size() int64 { return l.size }

func TestSequenceReadsItsPartsInOrder(t *testing.T) {
	seq := fstree.Sequence{
		fstree.Bytes("one"), fstree.Zeros(3), fstree.Bytes(nil), fstree.Sequence{fstree.Bytes("two"), fstree.Zeros(0)}, fstree.Bytes("!"),
	}
	want := []byte("one\x00\x00\x00two!")
	if got := seq.Size(); got != int64(len(want)) {
		t.Errorf("size is %d, want %d", got, len(want))
	}
	for range 2 { // content may be opened more than once
		r, err := seq.Open()
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, want); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestSequenceNoticesAPartOfAnotherLength(t *testing.T) {
	for _, tt := range []struct {
		size int64
		want string
	}{
		{4, "content of 4 bytes ends 1 bytes early: it changed while it was read"},
		{2, "content is longer than the 2 bytes announced: it changed while it was read"},
	} {
		r, err := fstree.Sequence{liar{fstree.Bytes("abc"), tt.size}, fstree.Bytes("rest")}.Open()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err == nil || err.Error() != tt.want {
			t.Errorf("read %q and error %v, want error %q", got, err, tt.want)
		}
		if bytes.Contains(got, []byte("rest")) || strings.Contains(string(got), "r") {
			t.Errorf("read %q beyond the wrong part", got)
		}
	}
}
