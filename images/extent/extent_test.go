package extent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/extent"
)

// image is 3 runs: one that ends inside a block at the end of the image.
func image() []byte {
	rnd := rand.New(rand.NewPCG(3, 4))
	img := make([]byte, 20<<20+100)
	fill := func(off, n int) {
		for i := off; i < off+n; i++ {
			img[i] = byte(1 + rnd.IntN(255))
		}
	}
	fill(0, 446)
	fill(3<<20+17, 9<<20)
	fill(len(img)-50, 50)
	return img
}

func encode(t testing.TB, r io.ReaderAt, size int) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := extent.Write(context.Background(), &buf, r, int64(size)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// decode applies a stream to a zeroed image.
func decode(r *extent.Reader, limit int64) ([]byte, error) {
	img := make([]byte, limit)
	for {
		off, data, err := r.Next()
		if err == io.EOF {
			return img[:min(r.Size(), limit)], nil
		}
		if err != nil {
			return nil, err
		}
		if off+int64(len(data)) <= limit {
			copy(img[off:], data)
		}
	}
}

func TestAnImageSurvivesTheRoundTripAndNamesItself(t *testing.T) {
	t.Parallel()
	img := image()
	stream := encode(t, bytes.NewReader(img), len(img))
	r := extent.NewReader(bytes.NewReader(stream))
	got, err := decode(r, int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, img) {
		t.Error("the image differs after the round trip")
	}
	sum := sha256.Sum256(stream)
	if got, want := r.SHA256(), hex.EncodeToString(sum[:]); got != want {
		t.Errorf("got digest %s, want %s", got, want)
	}
	if len(stream) > 10<<20 {
		t.Errorf("got a stream of %d bytes, want about 9 MiB", len(stream))
	}
}

func TestASparseFileGivesTheSameStreamAsItsBytes(t *testing.T) {
	t.Parallel()
	img := image()
	f, err := os.Create(filepath.Join(t.TempDir(), "img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(img))); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int{{0, 446}, {3 << 20, 10 << 20}, {len(img) - 60, 60}} {
		if _, err := f.WriteAt(img[r[0]:r[0]+r[1]], int64(r[0])); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(encode(t, f, len(img)), encode(t, bytes.NewReader(img), len(img))) {
		t.Error("the streams differ")
	}
}

func record(offset, length uint64, data string) string {
	b := binary.BigEndian.AppendUint64(nil, offset)
	return string(binary.BigEndian.AppendUint64(b, length)) + data
}

func TestReaderRefuses(t *testing.T) {
	t.Parallel()
	block := strings.Repeat("x", extent.Block)
	for name, tc := range map[string]struct{ in, want string }{
		"nothing":                        {"", "unexpected EOF"},
		"another magic":                  {"imgctlx\x02" + record(4096, 0, ""), "it starts with"},
		"a stream that breaks off":       {extent.Magic + record(0, 4096, "x"), "unexpected EOF"},
		"a missing end":                  {extent.Magic + record(0, 4096, block), "unexpected EOF"},
		"a record longer than allowed":   {extent.Magic + record(0, extent.MaxLength+1, ""), "more than 4194304"},
		"an enormous length":             {extent.Magic + record(0, 1<<63, ""), "more than 4194304"},
		"an enormous offset":             {extent.Magic + record(1<<63, 4096, ""), "is beyond"},
		"an unaligned record":            {extent.Magic + record(1, 4096, block), "no multiple of 4096"},
		"a record that goes back":        {extent.Magic + record(4096, 4096, block) + record(0, 4096, block), "the one before ends at 8192"},
		"a record after a partial block": {extent.Magic + record(0, 1, "x") + record(4096, 4096, block), "inside a block"},
		"an end before the last record":  {extent.Magic + record(0, 4096, block) + record(100, 0, ""), "the image at 100"},
		"a partial block before the end": {extent.Magic + record(0, 1, "x") + record(4096, 0, ""), "the image at 4096"},
		"an image of no bytes":           {extent.Magic + record(0, 0, ""), "no bytes"},
		"something behind the end":       {extent.Magic + record(4096, 0, "") + "x", "behind the end"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := extent.NewReader(strings.NewReader(tc.in))
			_, err := decode(r, 1<<20)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
			if errors.Is(err, io.EOF) {
				t.Errorf("error %v passes for a good end", err)
			}
			if r.SHA256() != "" {
				t.Error("a broken stream has a digest")
			}
			if _, _, again := r.Next(); again == nil || again == io.EOF {
				t.Errorf("got %v after an error, want the error again", again)
			}
		})
	}
}

func TestCompressDoesNotDependOnProcessors(t *testing.T) {
	img := image()
	compress := func(procs int) []byte {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		var buf bytes.Buffer
		if err := extent.Compress(context.Background(), &buf, bytes.NewReader(img)); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	one, four := compress(1), compress(4)
	if !bytes.Equal(one, four) {
		t.Error("one and four processors give different bytes")
	}
	d, err := extent.Decompress(bytes.NewReader(one))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got, err := io.ReadAll(d)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, img) {
		t.Error("the bytes differ after the round trip")
	}
}

func TestCompressReportsItsReadersAndWritersErrors(t *testing.T) {
	t.Parallel()
	bad := errors.New("bad disk")
	r := io.MultiReader(bytes.NewReader(image()), failing{bad})
	if err := extent.Compress(context.Background(), io.Discard, r); !errors.Is(err, bad) {
		t.Errorf("reader: got %v, want %v", err, bad)
	}
	if err := extent.Compress(context.Background(), failing{bad}, bytes.NewReader(image())); !errors.Is(err, bad) {
		t.Errorf("writer: got %v, want %v", err, bad)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error)  { return 0, f.err }
func (f failing) Write([]byte) (int, error) { return 0, f.err }

func FuzzReader(f *testing.F) {
	img := make([]byte, 3*extent.Block+7)
	img[5000] = 1
	img[len(img)-1] = 2
	f.Add(encode(f, bytes.NewReader(img), len(img)))
	f.Add([]byte(extent.Magic + record(4096, 0, "")))
	f.Add([]byte(extent.Magic))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := extent.NewReader(bytes.NewReader(in))
		got, err := decode(r, 1<<20)
		if err != nil || r.Size() > 1<<20 {
			return
		}
		// What is accepted describes an image; written again and read again, it
		// is the same image.
		again := extent.NewReader(bytes.NewReader(encode(t, bytes.NewReader(got), len(got))))
		twice, err := decode(again, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, twice) {
			t.Error("the image changed on the way")
		}
	})
}
