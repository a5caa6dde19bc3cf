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
var ErrNotEmpty = errors.New("the OEM partition of the base image is not empty")

// CheckOEMEmpty refuses an image whose OEM partition holds anything: a build
// replaces that file system, and a vendor's image would lose its agent, its
// GRUB arguments and its oem-release.
//
// The file system's own counters cannot tell: bytes_used of an empty btrfs
// depends on mkfs's version and profile. So the tree of files is read. The
// generic image has a btrfs whose tree holds only the root directory; a
// partition that is all zeros counts as empty too.
func CheckOEMEmpty(f *os.File, l Layout) error {
	r := io.NewSectionReader(f, l.OEM.Offset, l.OEM.Length)
	names, err := btrfsNames(r, l.OEM.Length)
	switch {
	case errors.Is(err, errNoBtrfs):
		zero, zerr := isZero(f, sparse.Range{Offset: l.OEM.Offset, Length: l.OEM.Length})
		if zerr != nil {
			return fmt.Errorf("examining OEM of %s: %w", f.Name(), zerr)
		}
		if !zero {
			return fmt.Errorf("examining OEM of %s: %w: it holds something that is no btrfs; use the generic flatcar_production_image.bin.bz2", f.Name(), ErrNotEmpty)
		}
		return nil
	case err != nil:
		return fmt.Errorf("examining OEM of %s: %w", f.Name(), err)
	case len(names) > 0:
		return fmt.Errorf("examining OEM of %s: %w: it holds %s; use the generic flatcar_production_image.bin.bz2, not a vendor's", f.Name(), ErrNotEmpty, list(names))
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
