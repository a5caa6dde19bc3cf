package squashfs

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"testing"
)

// Which worker gets which block is chance, so what an encoder packed before
// must not show in what it packs next.
func TestEncodersForgetWhatTheyPacked(t *testing.T) {
	const size = 131072
	self, err := os.Executable() // some megabytes of real machine code
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 40*size))
	if err != nil {
		t.Fatal(err)
	}
	used, err := newEncoder(size)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		at := r.IntN(len(data) - size)
		block := data[at : at+1+r.IntN(size)]
		fresh, err := newEncoder(size)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(used.EncodeAll(block, nil), fresh.EncodeAll(block, nil)) {
			t.Fatalf("the block of %d bytes at %d is packed differently by a fresh encoder", len(block), at)
		}
	}
}
