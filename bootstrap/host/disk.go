package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BlockDevice is a disk opened for this process alone. It is not safe for
// concurrent writes; close it.
type BlockDevice struct {
	f    *os.File
	name string
	size int64
	// regular: a plain file stands in for the disk, as in tests.
	regular bool
}

// OpenDisk opens a disk exclusively: the kernel refuses when it or a partition
// of it is mounted or held by another driver.
func (h *Host) OpenDisk(name string) (*BlockDevice, error) {
	f, err := os.OpenFile(h.Path(name), os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("opening disk %s: something else uses it (a mount, a RAID, a volume group): %w", name, err)
	} else if err != nil {
		return nil, fmt.Errorf("opening disk %s: %w", name, err)
	}
	d := &BlockDevice{f: f, name: name}
	if err := d.measure(); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("measuring disk %s: %w", name, err)
	}
	return d, nil
}

func (d *BlockDevice) measure() error {
	st, err := d.f.Stat()
	if err != nil {
		return err
	}
	if d.regular = st.Mode().IsRegular(); d.regular {
		d.size = st.Size()
		return nil
	}
	if st.Mode().Type() != fs.ModeDevice {
		return fmt.Errorf("it is %s, not a block device", st.Mode().Type())
	}
	return d.ioctl(unix.BLKGETSIZE64, unsafe.Pointer(&d.size))
}

// Size in bytes.
func (d *BlockDevice) Size() int64 { return d.size }

// ReadAt is io.ReaderAt.
func (d *BlockDevice) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }

// WriteAt is io.WriterAt.
func (d *BlockDevice) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }

// Zero makes a range read as zeros, by the disk's own command where it has one
// (the kernel writes zeros where it has none). A disk that can give the space
// back does, so that a thin volume stays thin. Both must be multiples of the
// sector size.
func (d *BlockDevice) Zero(off, length int64) error {
	if length == 0 {
		return nil
	}
	// On a device this is WRITE ZEROES that may unmap, or nothing; BLKZEROOUT
	// never unmaps.
	err := unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
	if err != nil && !d.regular {
		r := [2]uint64{uint64(off), uint64(length)}
		err = d.ioctl(unix.BLKZEROOUT, unsafe.Pointer(&r))
	}
	if err != nil {
		return fmt.Errorf("zeroing %d bytes at %d of %s: %w", length, off, d.name, err)
	}
	return nil
}

// Flush writes everything to the medium and drops what the kernel remembers, so
// that the next read comes from the disk.
func (d *BlockDevice) Flush() error {
	if err := d.f.Sync(); err != nil {
		return fmt.Errorf("flushing %s: %w", d.name, err)
	}
	if d.regular {
		return nil
	}
	if err := d.ioctl(unix.BLKFLSBUF, nil); err != nil {
		return fmt.Errorf("dropping the cache of %s: %w", d.name, err)
	}
	return nil
}

// Reread makes the kernel read the partition table again.
func (d *BlockDevice) Reread() error {
	if d.regular {
		return nil
	}
	if err := d.ioctl(unix.BLKRRPART, nil); err != nil {
		return fmt.Errorf("rereading the partition table of %s: %w", d.name, err)
	}
	return nil
}

// Close releases the disk.
func (d *BlockDevice) Close() error { return d.f.Close() }

func (d *BlockDevice) ioctl(req uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), uintptr(req), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// MountPart mounts a range of a disk, which holds an ext4 file system, at a
// directory that it makes. The caller calls Unmount.
func (h *Host) MountPart(ctx context.Context, disk string, off, length int64, dir string) error {
	if err := h.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, err := h.Run(ctx, Command{Argv: []string{"mount", "-t", "ext4", "-o",
		"loop,nosuid,nodev,noexec,offset=" + strconv.FormatInt(off, 10) + ",sizelimit=" + strconv.FormatInt(length, 10),
		h.Path(disk), h.Path(dir)}})
	return err
}

// Unmount unmounts what MountPart mounted. That nothing is mounted there is no
// error, so it also clears what a killed predecessor left.
func (h *Host) Unmount(ctx context.Context, dir string) error {
	mounted, err := h.isMountPoint(dir)
	if err != nil || !mounted {
		return err
	}
	_, err = h.Run(ctx, Command{Argv: []string{"umount", h.Path(dir)}})
	return err
}

// releaseWithin is how long a predecessor's mount may take to come to its end.
const releaseWithin = time.Minute

// Release ends what a killed predecessor began with MountPart: its mount, and
// one that the kernel is still making on behalf of a mount program that is dead
// already. It returns when no loop device is on the disk any more, because the
// file system in it would write behind our back.
func (h *Host) Release(ctx context.Context, disk, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, releaseWithin)
	defer cancel()
	for {
		if err := h.Unmount(ctx, dir); err != nil {
			return err
		}
		loop, err := h.loopOn(disk)
		if err != nil || loop == "" {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("releasing disk %s: %s is on it and does not go away: %w", disk, loop, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// loopOn returns the loop device on a disk, or "".
func (h *Host) loopOn(disk string) (string, error) {
	found, err := h.Glob("/sys/devices/virtual/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, f := range found {
		if h.line(f) == disk {
			return filepath.Base(filepath.Dir(filepath.Dir(f))), nil
		}
	}
	return "", nil
}

func (h *Host) isMountPoint(dir string) (bool, error) {
	var here, above unix.Stat_t
	if err := unix.Stat(h.Path(dir), &here); errors.Is(err, unix.ENOENT) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if err := unix.Stat(h.Path(dir)+"/..", &above); err != nil {
		return false, err
	}
	return here.Dev != above.Dev, nil
}
