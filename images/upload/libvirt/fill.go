package libvirt

import (
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
