package extent

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
)

// ErrFormat is wrapped by every complaint about a stream's form, as opposed to
// an error of the reader underneath.
var ErrFormat = errors.New("this is no valid extent stream")

// Reader reads a stream from somebody who need not be trusted. It keeps at most
// one record in memory. It is not safe for concurrent use.
type Reader struct {
	r      *bufio.Reader
	sum    hash.Hash
	buf    []byte
	header [headerLength]byte
	// next is the lowest offset that the next record may have.
	next    int64
	started bool
	size    int64
	done    bool
	err     error
}

// NewReader reads the uncompressed stream r, which the caller closes.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
}

// Next returns the next record. Data is valid until the next call. The error is
// io.EOF after a complete stream with nothing behind it, and only then; a stream
// that breaks off gives io.ErrUnexpectedEOF. Every error is final.
func (r *Reader) Next() (offset int64, data []byte, err error) {
	if r.err != nil {
		return 0, nil, r.err
	}
	offset, data, err = r.read()
	if err != nil {
		r.err = err
		if !errors.Is(err, io.EOF) || errors.Is(err, ErrFormat) {
			r.err = fmt.Errorf("reading extents: %w", err)
		}
		return 0, nil, r.err
	}
	return offset, data, nil
}

func (r *Reader) read() (int64, []byte, error) {
	if !r.started {
		magic := r.header[:len(Magic)]
		if err := r.full(magic); err != nil {
			return 0, nil, err
		}
		if string(magic) != Magic {
			return 0, nil, fmt.Errorf("%w: it starts with %q, want %q", ErrFormat, magic, Magic)
		}
		r.started = true
	}
	if err := r.full(r.header[:]); err != nil {
		return 0, nil, err
	}
	offset := binary.BigEndian.Uint64(r.header[:])
	length := binary.BigEndian.Uint64(r.header[8:])
	if offset > MaxSize {
		return 0, nil, fmt.Errorf("%w: offset %d is beyond %d", ErrFormat, offset, int64(MaxSize))
	}
	at := int64(offset)
	if length == 0 {
		return 0, nil, r.finish(at)
	}
	switch {
	case length > MaxLength:
		return 0, nil, fmt.Errorf("%w: the record at %d is %d bytes long, more than %d", ErrFormat, at, length, MaxLength)
	case at%Block != 0:
		return 0, nil, fmt.Errorf("%w: a record starts at %d, which is no multiple of %d", ErrFormat, at, Block)
	case at < r.next:
		return 0, nil, fmt.Errorf("%w: a record starts at %d, the one before ends at %d", ErrFormat, at, r.next)
	case r.next%Block != 0:
		return 0, nil, fmt.Errorf("%w: a record follows one that ends at %d, inside a block", ErrFormat, r.next)
	}
	if cap(r.buf) < int(length) {
		r.buf = make([]byte, MaxLength)
	}
	data := r.buf[:length]
	if err := r.full(data); err != nil {
		return 0, nil, err
	}
	r.next = at + int64(length)
	return at, data, nil
}

// finish checks the end record and that nothing follows.
func (r *Reader) finish(size int64) error {
	if size == 0 {
		return fmt.Errorf("%w: it describes an image of no bytes", ErrFormat)
	}
	if r.next > size || (r.next%Block != 0 && r.next != size) {
		return fmt.Errorf("%w: the last record ends at %d, the image at %d", ErrFormat, r.next, size)
	}
	switch _, err := r.r.ReadByte(); {
	case err == nil:
		return fmt.Errorf("%w: there is more behind the end record", ErrFormat)
	case !errors.Is(err, io.EOF):
		return err
	}
	r.size, r.done = size, true
	return io.EOF
}

// full fills p and counts it into the digest.
func (r *Reader) full(p []byte) error {
	if _, err := io.ReadFull(r.r, p); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	r.sum.Write(p)
	return nil
}

// Size is the image's size in bytes, once Next has returned io.EOF.
func (r *Reader) Size() int64 { return r.size }

// SHA256 is the lower-case hexadecimal digest of the uncompressed stream, once
// Next has returned io.EOF; before that it is empty.
func (r *Reader) SHA256() string {
	if !r.done {
		return ""
	}
	return hex.EncodeToString(r.sum.Sum(nil))
}
