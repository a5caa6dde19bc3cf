package build

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/compress"
	"github.com/imagectl/imagectl/images/extent"
	"github.com/imagectl/imagectl/images/qcow2"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/vhd"
)

// Set is what a user asks for with --format.
type Set string

// The sets that are more than one format. All others are called as the format is.
const (
	// SetRaw is a plain disk image of each role, and the install stream.
	SetRaw Set = "raw"
	// SetPXE is the installer's kernel, cpio and extension, and the install stream.
	SetPXE Set = "pxe"
	// SetISO is the installer for machines that cannot be netbooted.
	SetISO Set = "iso"
	// SetUKI is the same installer as one program that UEFI starts.
	SetUKI Set = "uki"
)

// diskFormat is a form in which a role's disk comes.
type diskFormat struct {
	// sets are those that it belongs to.
	sets   []Set
	format store.Format
	// suffix ends the file's name.
	suffix string
	// write makes it from the image; nil for the image itself.
	write convert
}

// convert writes an image to dst, a new file, in another format. The same image
// must give the same bytes, with any number of processors, and the image must
// not be held in memory: it may be large, and mostly holes (sparse.Next).
type convert func(ctx context.Context, dst *os.File, img image) error

// image is a role's finished disk.
type image struct {
	// file may be read at any offset, by several goroutines. Its own offset
	// belongs to nobody.
	file *os.File
	// size in bytes: all of the file, a multiple of 512.
	size int64
	// name is the file name of the artefacts without their suffix.
	name string
	arch string
	// flatcar is the base's version.
	flatcar string
	// modTime and uuid are all that may stand for time and chance.
	modTime time.Time
	uuid    [16]byte
}

// diskFormats is the table of formats of a role's disk. A new one is a row.
func diskFormats() []diskFormat {
	plain := []diskFormat{
		{sets: []Set{SetRaw}, format: store.Raw, suffix: ".raw"},
		{sets: []Set{"vhd"}, format: store.VHD, suffix: ".vhd", write: fixedVHD},
	}
	all := append(plain,
		diskFormat{sets: []Set{SetRaw, SetPXE}, format: store.RawZstd, suffix: ".raw.zst", write: installStream},
		diskFormat{sets: []Set{"qcow2"}, format: store.QCOW2, suffix: ".qcow2", write: compressedQCOW2(qcow2.Deflate)},
		diskFormat{sets: []Set{"zstd.qcow2"}, format: store.QCOW2Zstd, suffix: ".zstd.qcow2", write: compressedQCOW2(qcow2.Zstd)},
	)
	for _, f := range plain {
		all = append(all, compressed(f)...)
	}
	return append(all,
		diskFormat{sets: []Set{"vmdk"}, format: store.VMDK, suffix: ".vmdk", write: streamVMDK},
		diskFormat{sets: []Set{setOVA}, format: store.OVA, suffix: ".ova", write: virtualAppliance},
	)
}

// compressed is a format as files that gunzip, xz and zstd unpack.
func compressed(f diskFormat) []diskFormat {
	var out []diskFormat
	for _, c := range []struct {
		suffix string
		write  func(ctx context.Context, w io.Writer, src *os.File) error
	}{{".gz", compress.Gzip}, {".xz", compress.XZ}, {".zst", compress.Zstd}} {
		suffix := f.suffix + c.suffix
		if suffix == ".raw.zst" {
			// That is the install stream's name.
			suffix = ".img.zst"
		}
		name := strings.TrimPrefix(suffix, ".")
		out = append(out, diskFormat{
			sets: []Set{Set(name)}, format: store.Format(name), suffix: suffix,
			write: func(ctx context.Context, dst *os.File, img image) error {
				if f.write == nil {
					return c.write(ctx, dst, img.file)
				}
				tmp, err := scratch(dst)
				if err != nil {
					return err
				}
				defer tmp.Close()
				if err := f.write(ctx, tmp, img); err != nil {
					return err
				}
				return c.write(ctx, dst, tmp)
			},
		})
	}
	return out
}

// scratch is a file without a name, where dst is.
func scratch(dst *os.File) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(dst.Name()), "scratch-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func installStream(ctx context.Context, dst *os.File, img image) error {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := extent.Write(ctx, pw, img.file, img.size)
		pw.CloseWithError(err)
		done <- err
	}()
	err := extent.Compress(ctx, dst, pr)
	pr.CloseWithError(err)
	if werr := <-done; err == nil {
		err = werr
	}
	return err
}

func compressedQCOW2(c qcow2.Compression) convert {
	return func(ctx context.Context, dst *os.File, img image) error {
		return qcow2.Write(ctx, dst, img.file, img.size, qcow2.Options{Compression: c})
	}
}

func fixedVHD(ctx context.Context, dst *os.File, img image) error {
	return vhd.Write(ctx, dst, img.file, img.size, vhd.Options{UUID: img.uuid, ModTime: img.modTime})
}

// rawSHA256 is the digest that names a disk's content in the manifest.
func rawSHA256(ctx context.Context, img image) (string, error) {
	h := sha256.New()
	if err := extent.Write(ctx, h, img.file, img.size); err != nil {
		return "", err
	}
	return hexSum(h), nil
}

// Sets lists what --format knows, what is more than one format first.
func Sets() []Set {
	sets := []Set{SetRaw, SetPXE, SetISO, SetUKI}
	for _, f := range diskFormats() {
		for _, s := range f.sets {
			if !slices.Contains(sets, s) {
				sets = append(sets, s)
			}
		}
	}
	return sets
}

// ParseSet finds a set by its name.
func ParseSet(name string) (Set, error) {
	if sets := Sets(); !slices.Contains(sets, Set(name)) {
		return "", fmt.Errorf("format %q is not known; known are %s", name, join(sets))
	}
	return Set(name), nil
}

func join(sets []Set) string {
	var names []string
	for _, s := range sets {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}
