// Package sparsetest makes disk images with holes, for tests of what reads them.
package sparsetest

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/images/sparse"
)

// Image makes a file of size bytes that follows from seed: holes, runs of
// zeros that are no holes, text and noise, beginning and ending anywhere. The
// test closes and removes it.
func Image(t testing.TB, seed uint64, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 1))
	for off := int64(0); off < size; {
		b := make([]byte, min(1+r.Int64N(1<<(8+r.IntN(15))), size-off))
		off += int64(len(b))
		switch r.IntN(6) {
		case 0, 1:
			// A hole, sometimes a far one.
			off += r.Int64N(size/4 + 1)
			continue
		case 2:
			// Zeros that are written.
		case 3:
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		case 4:
			// One byte among zeros.
			b[r.IntN(len(b))] = 1
		default:
			for i := range b {
				b[i] = "the quick brown fox "[i*i%19+r.IntN(2)]
			}
		}
		if _, err := f.WriteAt(b, off-int64(len(b))); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// DataBytes is how much of a file is no hole.
func DataBytes(t testing.TB, f *os.File) int64 {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	n, err := sparse.DataBytes(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return n
}
