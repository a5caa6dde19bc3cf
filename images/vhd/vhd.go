// Package vhd writes fixed VHD images, which Azure takes and Hyper-V reads: the
// disk as it is, and a footer of 512 bytes behind it (Microsoft's "Virtual Hard
// Disk Image Format Specification", version 1.0). Holes stay holes. Dynamic and
// differencing images are not written: Azure refuses them.
package vhd

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/imagectl/imagectl/images/sparse"
)

const (
	// alignment of the disk's size, in bytes: Azure wants whole MiB.
	alignment = 1 << 20
	// maxSize is Microsoft's limit for the format, in bytes.
	maxSize = 2040 << 30

	sector     = 512
	footerSize = 512
)

// Options is all that stands in a footer and does not follow from the disk.
type Options struct {
	UUID [16]byte
	// ModTime is the time of creation; the format knows none before 2000.
	ModTime time.Time
}

// Write makes dst, an empty file, a fixed VHD of the first size bytes of src,
// followed by zeros up to a whole MiB. A partition table at the disk's end is not
// moved there.
func Write(ctx context.Context, dst, src *os.File, size int64, o Options) error {
	if err := write(ctx, dst, src, size, o); err != nil {
		return fmt.Errorf("writing %s as VHD: %w", src.Name(), err)
	}
	return nil
}

func write(ctx context.Context, dst, src *os.File, size int64, o Options) error {
	if size <= 0 || size > maxSize {
		return fmt.Errorf("a disk of %d bytes does not fit: it must have 1 byte to %d GiB", size, int64(maxSize)>>30)
	}
	whole := (size + alignment - 1) / alignment * alignment
	if err := sparse.Copy(ctx, dst, src); err != nil {
		return err
	}
	// Cut off what is behind the disk before it grows.
	for _, n := range []int64{size, whole} {
		if err := dst.Truncate(n); err != nil {
			return err
		}
	}
	_, err := io.NewOffsetWriter(dst, whole).Write(encode(footer(whole, o)))
	return err
}

// footerFields is the footer up to its reserved rest, which is zero.
type footerFields struct {
	Cookie       [8]byte
	Features     uint32
	Version      uint32
	DataOffset   uint64
	Created      uint32
	Creator      [4]byte
	CreatorVer   uint32
	CreatorHost  [4]byte
	OriginalSize uint64
	CurrentSize  uint64
	Cylinders    uint16
	Heads        uint8
	Sectors      uint8
	DiskType     uint32
	Checksum     uint32
	UUID         [16]byte
}

func footer(size int64, o Options) footerFields {
	f := footerFields{
		Cookie: [8]byte([]byte("conectix")), Features: 2, Version: 1 << 16, DataOffset: 1<<64 - 1,
		// Readers take the size, not the geometry, for the truth only where Windows
		// was the creator.
		Creator: [4]byte([]byte("win ")), CreatorVer: 10 << 16, CreatorHost: [4]byte([]byte("Wi2k")),
		OriginalSize: uint64(size), CurrentSize: uint64(size), DiskType: 2, UUID: o.UUID,
	}
	epoch := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Created = uint32(max(0, o.ModTime.Unix()-epoch.Unix()))
	f.Cylinders, f.Heads, f.Sectors = geometry(size / sector)
	for _, b := range encode(f) {
		f.Checksum += uint32(b)
	}
	f.Checksum = ^f.Checksum
	return f
}

// encode never fails: the fields have fixed sizes.
func encode(f footerFields) []byte {
	b, err := binary.Append(make([]byte, 0, footerSize), binary.BigEndian, f)
	if err != nil {
		return nil
	}
	return b[:footerSize]
}

// geometry is the algorithm of the specification's appendix.
func geometry(sectors int64) (cylinders uint16, heads, perTrack uint8) {
	sectors = min(sectors, 65535*16*255)
	if sectors >= 65535*16*63 {
		return uint16(sectors / 255 / 16), 16, 255
	}
	s := int64(17)
	tracks := sectors / s
	h := max(4, (tracks+1023)/1024)
	if tracks >= h*1024 || h > 16 {
		s, h = 31, 16
		tracks = sectors / s
	}
	if tracks >= h*1024 {
		s, h = 63, 16
		tracks = sectors / s
	}
	return uint16(tracks / h), uint8(h), uint8(s)
}
