package libvirt

import (
	"bytes"
	"fmt"
	"io"

	"github.com/digitalocean/go-libvirt"

	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// proof is how much is read back of a range's end, in bytes, and tiny is a file that is read
// whole: libvirt has made a volume in its format, and written as much as that at the most.
const (
	proof = 4 << 10
	tiny  = 1 << 20
)

// prove reads back the end of what was sent. libvirt writes on after its queue has taken a
// stream's last bytes, and says that all is well whatever becomes of them: virFDStreamCloseInt
// (src/util/virfdstream.c, 9.0 at least) writes the result of closing over that of the
// thread that writes. A pool that is full by then leaves zeros, and nobody a word. That
// thread writes in order, and nothing more after an error (virFDStreamThread), so a stream
// whose last byte that is not zero is there is there.
func (s *session) prove(vol libvirt.StorageVol, img upload.Image, ev upload.Events) error {
	ev(upload.Event{Phase: "reading back"})
	return ranges(img, func(part sparse.Range) error {
		end, err := lastByte(img.File, part)
		if err != nil {
			return fmt.Errorf("reading %s: %w", img.File.Name(), err)
		}
		from := max(part.Offset, end-proof)
		if img.Format != store.Raw && img.Size <= tiny {
			from, end = 0, img.Size
		}
		if from >= end {
			return nil
		}
		want, got := make([]byte, end-from), &bytes.Buffer{}
		if _, err := img.File.ReadAt(want, from); err != nil {
			return fmt.Errorf("reading %s: %w", img.File.Name(), err)
		}
		if err := s.StorageVolDownload(vol, got, uint64(from), uint64(end-from), 0); err != nil {
			return failed(s.ctx, "reading the volume "+vol.Name+" back", err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			return fmt.Errorf("reading the volume %s back: %w: what is in its bytes %d to %d is not what was sent, and libvirt did not say why", vol.Name, s.blame(), from, end-1)
		}
		return nil
	})
}

// lastByte is the offset behind the last byte of a range that is not zero; its beginning
// when there is none.
func lastByte(f io.ReaderAt, r sparse.Range) (int64, error) {
	buf := make([]byte, proof)
	for end := r.Offset + r.Length; end > r.Offset; {
		p := buf[:min(proof, end-r.Offset)]
		end -= int64(len(p))
		if n, err := f.ReadAt(p, end); n < len(p) {
			return 0, err
		}
		if n := len(bytes.TrimRight(p, "\x00")); n > 0 {
			return end + int64(n), nil
		}
	}
	return r.Offset, nil
}

// least is how much a pool has left that is not full, in bytes: what one write of
// libvirt's takes, twice.
const least = 512 << 10

// blame is the kind of an error that libvirt has kept to itself.
func (s *session) blame() error {
	if s.StoragePoolRefresh(s.pool, 0) == nil {
		if _, _, _, free, err := s.StoragePoolGetInfo(s.pool); err == nil && free < least {
			return upload.ErrSpace
		}
	}
	return upload.ErrServer
}
