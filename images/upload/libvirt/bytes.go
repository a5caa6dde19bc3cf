package libvirt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/digitalocean/go-libvirt"

	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// toSend is the number of bytes that travel: holes do not.
func toSend(img upload.Image) (int64, error) {
	if img.Format != store.Raw {
		return img.Size, nil
	}
	n, err := sparse.DataBytes(img.File, img.Size)
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", img.File.Name(), err)
	}
	return n, nil
}

// ranges calls do with what travels, in order: of a raw image only the bytes that are
// there, for a new volume is all zeros.
func ranges(img upload.Image, do func(r sparse.Range) error) error {
	if img.Format != store.Raw {
		return do(sparse.Range{Length: img.Size})
	}
	for offset := int64(0); ; {
		r, more, err := sparse.Next(img.File, offset, img.Size)
		if err != nil {
			return fmt.Errorf("reading %s: %w", img.File.Name(), err)
		}
		if !more {
			return nil
		}
		if err := do(r); err != nil {
			return err
		}
		offset = r.Offset + r.Length
	}
}

// fill sends the bytes.
func (s *session) fill(vol libvirt.StorageVol, img upload.Image, ev upload.Events) error {
	total, err := toSend(img)
	if err != nil {
		return err
	}
	var sent int64
	return ranges(img, func(part sparse.Range) error {
		r := &counted{r: io.NewSectionReader(img.File, part.Offset, part.Length), tell: func(n int) {
			sent += int64(n)
			ev(upload.Event{Phase: "sending", Done: sent, Total: total})
		}}
		defer r.end()
		return failed(s.ctx, "sending to the volume "+vol.Name, s.StorageVolUpload(vol, r, uint64(part.Offset), uint64(part.Length), 0))
	})
}

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
		c := &compared{want: io.NewSectionReader(img.File, from, end-from)}
		if err := s.StorageVolDownload(vol, c, uint64(from), uint64(end-from), 0); err != nil {
			return failed(s.ctx, "reading the volume "+vol.Name+" back", err)
		}
		if c.err != nil {
			return fmt.Errorf("reading %s: %w", img.File.Name(), c.err)
		}
		if c.same == end-from {
			return nil
		}
		return fmt.Errorf("reading the volume %s back: %w: byte %d is not what was sent, and libvirt did not say why", vol.Name, s.blame(), from+c.same)
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

// streamPiece is what goes into one message of a stream, in bytes: what libvirt's own clients
// send (VIR_NET_MESSAGE_LEGACY_PAYLOAD_MAX, src/rpc/virnetprotocol.x). The library takes as
// much as it is given, up to 4 MiB, and makes a copy of it each time.
const streamPiece = 262120

// counted tells of bytes as they are read, until it is ended: the library returns with
// libvirt's refusal while another goroutine of its own may be reading still.
type counted struct {
	mu   sync.Mutex
	r    io.Reader
	tell func(int)
}

func (c *counted) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.r == nil {
		return 0, io.ErrClosedPipe
	}
	n, err := c.r.Read(p[:min(len(p), streamPiece)])
	if n > 0 {
		c.tell(n)
	}
	return n, err
}

func (c *counted) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.r = nil
}

// compared takes what is read and counts how much of it, from the beginning, is the
// same as it was. It takes all, for what is left of a stream would be in the way.
type compared struct {
	want io.Reader
	same int64
	// differs: no more is the same. err is of reading what is wanted.
	differs bool
	err     error
	buf     []byte
}

// Write implements io.Writer, and never fails.
func (c *compared) Write(p []byte) (int, error) {
	if c.differs || c.err != nil {
		return len(p), nil
	}
	if len(c.buf) < len(p) {
		c.buf = make([]byte, len(p))
	}
	n, err := io.ReadFull(c.want, c.buf[:len(p)])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		c.err = err
		return len(p), nil
	}
	if bytes.Equal(c.buf[:n], p) {
		c.same += int64(n)
		return len(p), nil
	}
	c.differs = true
	for i := range n {
		if c.buf[i] != p[i] {
			break
		}
		c.same++
	}
	return len(p), nil
}
