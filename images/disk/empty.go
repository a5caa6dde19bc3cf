package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/imagectl/imagectl/images/sparse"
)

// ErrNotEmpty is wrapped when a build would destroy something.
var ErrNotEmpty = errors.New("a partition of the base image that a build replaces is not empty")

// CheckEmpty refuses an image whose OEM or ROOT partition holds anything, since a
// build replaces both file systems: a vendor's image would lose its agent, its
// GRUB arguments and its oem-release, and one that somebody has booted or filled
// would lose all that is not Flatcar's own.
//
// The file systems' own counters cannot tell: bytes_used of an empty btrfs
// depends on mkfs's version and profile. So the trees of files are read. In the
// generic image OEM is a btrfs whose tree holds only the root directory, and
// ROOT an ext4 with empty directories to mount on. A partition that is all zeros
// counts as empty too.
func CheckEmpty(f *os.File, l Layout) error {
	if err := checkEmpty(f, l.OEM, "btrfs", errNoBtrfs, btrfsNames); err != nil {
		return err
	}
	return checkEmpty(f, l.Root, "ext4", errNoExt4, ext4Names)
}

// checkEmpty lists a partition's files by names, whose error is none when it
// holds no such file system.
func checkEmpty(f *os.File, p Partition, kind string, none error, names func(io.ReaderAt, int64) ([]string, error)) error {
	found, err := names(io.NewSectionReader(f, p.Offset, p.Length), p.Length)
	switch {
	case errors.Is(err, none):
		zero, zerr := isZero(f, sparse.Range{Offset: p.Offset, Length: p.Length})
		if zerr != nil {
			return fmt.Errorf("examining %s of %s: %w", p.Label, f.Name(), zerr)
		}
		if !zero {
			return fmt.Errorf("examining %s of %s: %w: it holds something that is no %s; use the generic flatcar_production_image.bin.bz2", p.Label, f.Name(), ErrNotEmpty, kind)
		}
		return nil
	case err != nil:
		return fmt.Errorf("examining %s of %s: %w; use the generic flatcar_production_image.bin.bz2", p.Label, f.Name(), err)
	case len(found) > 0:
		return fmt.Errorf("examining %s of %s: %w: it holds %s; use the generic flatcar_production_image.bin.bz2, not a vendor's or one that was changed", p.Label, f.Name(), ErrNotEmpty, list(found))
	}
	return nil
}

func list(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

func isZero(f *os.File, in sparse.Range) (bool, error) {
	buf := make([]byte, 1<<20)
	end := in.Offset + in.Length
	for off := in.Offset; ; {
		r, ok, err := sparse.Next(f, off, end)
		if err != nil || !ok {
			return err == nil, err
		}
		for off = r.Offset; off < r.Offset+r.Length; {
			b := buf[:min(int64(len(buf)), r.Offset+r.Length-off)]
			if _, err := f.ReadAt(b, off); err != nil {
				return false, err
			}
			if !sparse.IsZero(b) {
				return false, nil
			}
			off += int64(len(b))
		}
	}
}
