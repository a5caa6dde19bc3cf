package host

import (
	"context"
	"fmt"
	"io"
	"path"
	"strings"
)

// mediumDir is where ReadMedium mounts for a moment.
const mediumDir = "/run/imagectl/medium"

// ReadMedium returns at most limit bytes of a file in the file system with a
// label: a CD or a stick that a platform attached. Only the file systems of such
// media are mounted. The error wraps fs.ErrNotExist when there is no such label or
// no such file.
func (h *Host) ReadMedium(ctx context.Context, label, file string, limit int64) (content []byte, err error) {
	device := "/dev/disk/by-label/" + strings.ReplaceAll(label, " ", `\x20`) // as udev writes it
	if _, err := h.Mode(device); err != nil {
		return nil, err
	}
	if err := h.Unmount(ctx, mediumDir); err != nil { // a killed predecessor's
		return nil, err
	}
	if err := h.MkdirAll(mediumDir, 0o700); err != nil {
		return nil, err
	}
	mount := []string{"mount", "-t", "iso9660,vfat", "-o", "ro,nosuid,nodev,noexec", h.Path(device), h.Path(mediumDir)}
	if _, err := h.Run(ctx, Command{Argv: mount}); err != nil {
		return nil, err
	}
	defer func() {
		if uerr := h.Unmount(ctx, mediumDir); err == nil {
			err = uerr
		}
	}()
	f, err := h.Open(path.Join(mediumDir, file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s on the medium %s is no regular file", file, label)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}
