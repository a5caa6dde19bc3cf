package sparse_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/images/sparse"
)

func create(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestWriterCopyAndClearKeepTheBytes(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, 5<<20+1234)
	for i := 0; i < 40; i++ {
		off := rnd.IntN(len(want) - 9000)
		for j := 0; j < 9000; j++ {
			want[off+j] = byte(rnd.IntN(256))
		}
	}
	a := create(t, "a")
	w := sparse.NewWriter(a)
	for p := want; len(p) > 0; {
		n := min(len(p), 1+rnd.IntN(300000))
		if _, err := w.Write(p[:n]); err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := create(t, "b")
	if err := sparse.Copy(context.Background(), b, a); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(b.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the copy differs")
	}
	data, err := sparse.DataBytes(b, int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	if data > 1<<20 {
		t.Errorf("got %d bytes of data, want at most 1 MiB: the holes are lost", data)
	}
	if err := sparse.Clear(b, sparse.Range{Offset: 100, Length: 3 << 20}); err != nil {
		t.Fatal(err)
	}
	clear(want[100 : 100+3<<20])
	if got, _ = os.ReadFile(b.Name()); !bytes.Equal(got, want) {
		t.Error("clearing a range touched something else")
	}
}

func TestNextOnAFileThatIsOneHole(t *testing.T) {
	t.Parallel()
	f := create(t, "hole")
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	if r, ok, err := sparse.Next(f, 0, 1<<20); ok || err != nil {
		t.Errorf("got %v %v %v, want nothing", r, ok, err)
	}
}

func TestZerosWrittenByNumberAreZerosAndHoles(t *testing.T) {
	t.Parallel()
	for _, head := range []int{0, 1, 4095, 4096, 5000, 1<<20 - 1} {
		for _, zeros := range []int{0, 1, 4095, 4096, 10000, 5<<20 + 17} {
			f := create(t, "f")
			w := sparse.NewWriter(f)
			want := bytes.Repeat([]byte{7}, head)
			want = append(append(want, make([]byte, zeros)...), "tail"...)
			if _, err := w.Write(want[:head]); err != nil {
				t.Fatal(err)
			}
			if err := w.WriteZeros(int64(zeros)); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte("tail")); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %d zeros: the file differs", head, zeros)
			}
		}
	}
}
