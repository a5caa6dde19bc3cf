package sysext

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	gosquash "github.com/diskfs/go-diskfs/filesystem/squashfs"
	"github.com/erofs/go-erofs"
)

// errUnread is wrapped when an image is sound as far as we can see, and we cannot
// see far.
var errUnread = errors.New("its content was not examined")

// open tells what an image is and whether the host can mount it, and opens its
// content. Without content, why says why there is none.
func open(f *os.File, size int64, host Host) (content fs.FS, why string, err error) {
	kind, err := sniff(f)
	if err != nil {
		return nil, "", err
	}
	switch kind {
	case "squashfs":
		if err := judgeSquashfs(f, size); err != nil {
			return nil, "", err
		}
		content, err = gosquash.Read(file.New(f, true), size, 0, 0)
	case "EROFS":
		var ok bool
		if ok, err = hasEROFS(host.Flatcar); err != nil {
			return nil, "", err
		}
		if !ok {
			return nil, "", fmt.Errorf("%w: it is an EROFS image, which Flatcar %s cannot mount (LTS 4081 and what is older); make it a squashfs", ErrNotMerged, host.Flatcar)
		}
		if content, err = erofs.Open(plain{f}); errors.Is(err, erofs.ErrNotImplemented) {
			return nil, fmt.Sprintf("%v: %v", errUnread, err), nil
		}
	case "":
		return nil, "", fmt.Errorf("%w: it is no squashfs, EROFS, ext4, btrfs or GPT image", ErrNotMerged)
	default:
		return nil, fmt.Sprintf("%v: imagectl does not read %s images", errUnread, kind), nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: reading %s: %w", ErrNotMerged, kind, err)
	}
	return content, "", nil
}

// sniff tells a file system from its magic number.
func sniff(r io.ReaderAt) (string, error) {
	for _, m := range []struct {
		kind  string
		at    int64
		magic string
	}{
		{"squashfs", 0, "hsqs"},
		{"EROFS", 1024, "\xe2\xe1\xf5\xe0"},
		{"ext4", 1080, "\x53\xef"},
		{"btrfs", 65600, "_BHRfS_M"},
		{"GPT", 512, "EFI PART"},
	} {
		b := make([]byte, len(m.magic))
		if _, err := r.ReadAt(b, m.at); err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		if string(b) == m.magic {
			return m.kind, nil
		}
	}
	return "", nil
}

// judgeSquashfs reads the superblock as the kernel does (fs/squashfs/super.c).
// Flatcar's kernels have all of the kernel's decompressors (flatcar.md section 7.1).
func judgeSquashfs(r io.ReaderAt, size int64) error {
	b := make([]byte, 96)
	if _, err := r.ReadAt(b, 0); err != nil {
		return fmt.Errorf("%w: reading the squashfs superblock: %w", ErrNotMerged, err)
	}
	blockSize, compressor := binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint16(b[20:])
	major, minor := binary.LittleEndian.Uint16(b[28:]), binary.LittleEndian.Uint16(b[30:])
	used := binary.LittleEndian.Uint64(b[40:])
	switch {
	case major != 4 || minor != 0:
		return fmt.Errorf("%w: it is squashfs %d.%d, the kernel mounts 4.0", ErrNotMerged, major, minor)
	case blockSize > 1<<20:
		return fmt.Errorf("%w: its blocks have %d bytes, the kernel takes at most %d", ErrNotMerged, blockSize, 1<<20)
	case used > uint64(size):
		return fmt.Errorf("%w: it is cut off: it has %d of its %d bytes", ErrNotMerged, size, used)
	}
	switch compressor {
	case 1, 3, 4, 6: // zlib, lzo, xz, zstd
		return nil
	case 5:
		// The kernel has it; go-diskfs 1.9.4 takes its blocks for lz4 frames.
		return fmt.Errorf("%w: it is compressed with lz4, which imagectl cannot read to examine it; make it with mksquashfs -comp zstd", ErrNotMerged)
	}
	return fmt.Errorf("%w: it is compressed with method %d (2 is lzma), which no kernel mounts; make it with mksquashfs -comp zstd", ErrNotMerged, compressor)
}

// hasEROFS says whether a release can mount EROFS (flatcar.md section 0: alpha
// 4284, beta 4344, stable 4459, no LTS so far).
func hasEROFS(version string) (bool, error) {
	major, rest, _ := strings.Cut(version, ".")
	m, err := strconv.Atoi(major)
	if err != nil {
		return false, fmt.Errorf("telling whether Flatcar %q can mount EROFS: it is no version such as 4593.2.5", version)
	}
	switch {
	case strings.HasPrefix(rest, "0."):
		return m >= 4284, nil
	case strings.HasPrefix(rest, "1."):
		return m >= 4344, nil
	}
	return m >= 4459, nil
}

// plain is an EROFS image whose superblock does not mention compression. Compressed
// is only what is in files; names, and files of a few bytes, are not, so that
// go-erofs can list what it would refuse to open, and refuses just the compressed
// files.
type plain struct{ r io.ReaderAt }

// ReadAt implements io.ReaderAt.
func (p plain) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.r.ReadAt(b, off)
	// struct erofs_super_block: feature_incompat at 80, whose bits 0, 1, 4 and 5
	// are about compression, and the algorithms at 84.
	const super, compression = 1024, 1<<0 | 1<<1 | 1<<4 | 1<<5
	for i := range n {
		switch off + int64(i) {
		case super + 80:
			b[i] &^= compression
		case super + 84, super + 85:
			b[i] = 0
		}
	}
	return n, err
}
