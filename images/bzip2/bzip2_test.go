package bzip2_test

import (
	"bytes"
	stdbzip2 "compress/bzip2"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/imagectl/imagectl/images/bzip2"
)

func compress(t testing.TB, in []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("bzip2", append(args, "-c")...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bzip2: %v", err)
	}
	return out
}

// content has noise, text and long runs of zeros: blocks of every length.
func content() []byte {
	rnd := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, 2<<20)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	b = append(b, make([]byte, 12<<20)...)
	for range 100000 {
		b = append(b, "to be or not to be"[:rnd.IntN(18)]...)
	}
	return b
}

func decompress(in []byte) ([]byte, error) {
	var out bytes.Buffer
	err := bzip2.Decompress(context.Background(), &out, bytes.NewReader(in), int64(len(in)))
	return out.Bytes(), err
}

func TestDecompressIsWhatBzip2Compressed(t *testing.T) {
	t.Parallel()
	want := content()
	for name, in := range map[string][]byte{
		"one stream":           compress(t, want),
		"small blocks":         compress(t, want, "-1"),
		"two streams":          append(compress(t, want[:3<<20]), compress(t, want[3<<20:])...),
		"an empty stream last": append(compress(t, want), compress(t, nil)...),
	} {
		got, err := decompress(in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s: the content differs", name)
		}
	}
	if got, err := decompress(compress(t, nil)); err != nil || len(got) != 0 {
		t.Errorf("nothing: got %d bytes, %v", len(got), err)
	}
}

func TestDamageIsNoticed(t *testing.T) {
	t.Parallel()
	good := compress(t, content()[:4<<20])
	for name, change := range map[string]func([]byte) []byte{
		"a flipped bit in a block":  func(b []byte) []byte { b[len(b)/2] ^= 8; return b },
		"a flipped bit in the sum":  func(b []byte) []byte { b[len(b)-3] ^= 8; return b },
		"a truncated file":          func(b []byte) []byte { return b[:len(b)-100] },
		"a file cut in a block":     func(b []byte) []byte { return b[:len(b)/2] },
		"no bzip2":                  func(b []byte) []byte { return []byte("hello, world") },
		"nothing":                   func(b []byte) []byte { return nil },
		"a lost block in the midst": func(b []byte) []byte { return append(b[:900<<10], b[1900<<10:]...) },
	} {
		if _, err := decompress(change(bytes.Clone(good))); !errors.Is(err, bzip2.ErrParallel) {
			t.Errorf("%s: got %v, want ErrParallel", name, err)
		}
	}
}

func TestAWritersErrorIsReturned(t *testing.T) {
	t.Parallel()
	in := compress(t, content())
	bad := errors.New("bad disk")
	if err := bzip2.Decompress(context.Background(), failing{bad}, bytes.NewReader(in), int64(len(in))); !errors.Is(err, bad) {
		t.Errorf("got %v, want %v", err, bad)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// BenchmarkDecompress and BenchmarkStandard unpack the file that BZIP2_FILE names.
func BenchmarkDecompress(b *testing.B) {
	benchmark(b, func(f *os.File, size int64) error {
		return bzip2.Decompress(context.Background(), io.Discard, f, size)
	})
}

func BenchmarkStandard(b *testing.B) {
	benchmark(b, func(f *os.File, _ int64) error {
		_, err := io.Copy(io.Discard, stdbzip2.NewReader(f))
		return err
	})
}

func benchmark(b *testing.B, run func(*os.File, int64) error) {
	name := os.Getenv("BZIP2_FILE")
	if name == "" {
		b.Fatal("BZIP2_FILE names no file")
	}
	for range b.N {
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(st.Size())
		if err := run(f, st.Size()); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

func FuzzDecompress(f *testing.F) {
	f.Add(compress(f, []byte("hello, world")))
	f.Add(compress(f, content()[:1<<16]))
	f.Add([]byte("BZh9"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<16 {
			return
		}
		got, err := decompress(in)
		if err != nil {
			return
		}
		want, err := io.ReadAll(stdbzip2.NewReader(bytes.NewReader(in)))
		if err == nil && !bytes.Equal(got, want) {
			t.Error("compress/bzip2 gives something else")
		}
	})
}
