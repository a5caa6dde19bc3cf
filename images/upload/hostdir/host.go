package hostdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/pkg/sftp"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/sshconn"
)

// readable is the mode of staged files: platforms read them as another user. There is
// no secret in an image.
const readable = 0o644

// host is a connection.
type host struct{ files *sftp.Client }

// with logs in, does something, and hangs up.
func (s *Source) with(ctx context.Context, doing string, do func(*host) error) error {
	client, err := sshconn.Dial(ctx, s.dial, s.address, s.login)
	if err != nil {
		return fmt.Errorf("logging in to %s@%s: %w", s.login.User, s.address, loginError(ctx, err))
	}
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	// Writes at once fill a line whose answer takes longer than its bytes.
	files, err := sftp.NewClient(client, sftp.UseConcurrentWrites(true))
	if err != nil {
		return fmt.Errorf("starting SFTP on %s: %w; the host's sshd needs Subsystem sftp", s.address, upload.CallError(ctx, err))
	}
	defer files.Close()
	if err := do(&host{files}); err != nil {
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: %w", upload.ErrAuth, err)
		}
		return fmt.Errorf("%s on %s: %w", doing, s.address, upload.CallError(ctx, err))
	}
	return nil
}

// loginError knows the refusals, for which the library has no types.
func loginError(ctx context.Context, err error) error {
	if errors.Is(err, errHostKey) || strings.Contains(err.Error(), "unable to authenticate") {
		return fmt.Errorf("%w: %w", upload.ErrAuth, err)
	}
	return upload.CallError(ctx, err)
}

// has tells whether a file of a size is there.
func (h *host) has(name string, size int64) bool {
	st, err := h.files.Stat(name)
	return err == nil && st.Size() == size
}

// put sends a file. It has its name when it is whole.
func (h *host) put(name string, img upload.Image, ev upload.Events) error {
	// Not every server tells how much room there is.
	if fs, err := h.files.StatVFS(path.Dir(name)); err == nil && fs.FreeSpace() < uint64(img.Size) {
		return fmt.Errorf("%w: there are %d bytes free, and the file has %d", upload.ErrSpace, fs.FreeSpace(), img.Size)
	}
	part := name + partSuffix
	f, err := h.files.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	from := &counted{SectionReader: io.NewSectionReader(img.File, 0, img.Size), tell: func(done int64) {
		ev(upload.Event{Phase: "sending", Done: done, Total: img.Size})
	}}
	if _, err := f.ReadFrom(from); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Chmod(readable), f.Close()); err != nil {
		return err
	}
	st, err := h.files.Stat(part)
	if err != nil {
		return fmt.Errorf("%w: looking for what was sent: %w", upload.ErrServer, err)
	}
	if st.Size() != img.Size {
		return fmt.Errorf("%w: %s has %d bytes there, and %d were sent", upload.ErrServer, part, st.Size(), img.Size)
	}
	// SSH's renaming takes no name that is there: an earlier upload may have left another
	// file of the same disk under it.
	if err := h.files.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return h.files.Rename(part, name)
}

// counted says how much was read. Its Size lets the library send several pieces at
// once.
type counted struct {
	*io.SectionReader
	tell func(done int64)
	done int64
}

// Read implements io.Reader.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.SectionReader.Read(b)
	c.done += int64(n)
	c.tell(c.done)
	return n, err
}
