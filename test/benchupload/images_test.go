//go:build bench

package benchupload

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/images/bzip2"
	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/images/vmdk"
)

// file is one that is uploaded.
type file struct {
	Path   string
	Size   int64
	SHA256 string
}

// images are the files of the measurement.
type images struct {
	what string
	// dense has no zeros, and footed is that with a footer; holes has the same data and
	// as many zeros again, and vhd is that with a footer.
	dense, footed, holes, vhd, vmdk file
}

func makeImages(t *testing.T, dir string) images {
	t.Helper()
	size := *megabytes << 20
	dense, err := os.Create(path(dir, "dense.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer dense.Close()
	i := images{what: fmt.Sprintf("%d MiB of noise, since there is no -release", *megabytes)}
	if *release == "" {
		if _, err := io.CopyN(dense, rand.Reader, size); err != nil {
			t.Fatal(err)
		}
	} else {
		n := repeat(t, dense, unpacked(t, dir), size)
		i.what = fmt.Sprintf("%d MiB of data, those of the test release's image %.1f times over", *megabytes, float64(size)/float64(n))
	}
	holes := grown(t, dense, path(dir, "holes.raw"), 2*size)
	defer holes.Close()
	footed, vhd := asVHD(t, dense, path(dir, "dense.vhd"), size), asVHD(t, dense, path(dir, "disk.vhd"), 2*size)
	defer footed.Close()
	defer vhd.Close()
	packed, err := os.Create(path(dir, "disk.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	if err := vmdk.Write(t.Context(), packed, holes, 2*size, vmdk.Options{}); err != nil {
		t.Fatal(err)
	}
	i.dense, i.footed, i.holes, i.vhd, i.vmdk = described(t, dense), described(t, footed), described(t, holes), described(t, vhd), described(t, packed)
	return i
}

// asVHD is a disk of a size with the data of another, and as much of a footer as
// targets look at.
func asVHD(t *testing.T, from *os.File, name string, size int64) *os.File {
	t.Helper()
	f := grown(t, from, name, size+512)
	if _, err := f.WriteAt([]byte("conectix"), size); err != nil {
		t.Fatal(err)
	}
	return f
}

// unpacked is the release's image.
func unpacked(t *testing.T, dir string) *os.File {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(*release, "stable/amd64-usr/*/flatcar_production_image.bin.bz2"))
	if err != nil || len(all) == 0 {
		t.Fatalf("-release %s has no image: %v; make release makes one", *release, err)
	}
	in, err := os.Open(all[len(all)-1])
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(path(dir, "release.raw"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	w := sparse.NewWriter(out)
	if err := bzip2.Decompress(t.Context(), w, in, st.Size()); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

// repeat writes the blocks of an image that are not zero, again and again, and returns
// how many bytes they are.
func repeat(t *testing.T, to, from *os.File, size int64) (once int64) {
	t.Helper()
	st, err := from.Stat()
	if err != nil {
		t.Fatal(err)
	}
	const block = 512 << 10
	b := make([]byte, block)
	var done int64
	for round := 0; done < size; round++ {
		for off := int64(0); done < size; off += block {
			r, more, err := sparse.Next(from, off, st.Size())
			if err != nil {
				t.Fatal(err)
			}
			if !more {
				break
			}
			off = r.Offset / block * block
			n, err := from.ReadAt(b, off)
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if n < block || sparse.IsZero(b) {
				continue
			}
			if _, err := to.Write(b[:min(block, size-done)]); err != nil {
				t.Fatal(err)
			}
			done += block
			if round == 0 {
				once += block
			}
		}
	}
	return once
}

// grown is a copy with zeros behind it.
func grown(t *testing.T, from *os.File, name string, size int64) *os.File {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, io.NewSectionReader(from, 0, 1<<62)); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func described(t *testing.T, f *os.File) file {
	t.Helper()
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return file{f.Name(), n, hex.EncodeToString(h.Sum(nil))}
}
