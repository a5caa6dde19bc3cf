package etcdsnap

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
)

// ErrNotWhole says that a snapshot does not end with its own digest.
var ErrNotWhole = errors.New("it is no whole snapshot of etcd: the digest at its end does not fit")

// Trailer checks a snapshot as it comes: etcd ends it with the SHA-256 of all before that (etcdutl
// snapshot status looks at the same), and a database is a whole number of pages. NewTrailer makes
// one; it is for one goroutine.
type Trailer struct {
	sum, all hash.Hash
	// tail are the last 32 bytes, which are not part of sum.
	tail []byte
	size int64
}

// NewTrailer is of a snapshot of which nothing has come yet.
func NewTrailer() *Trailer { return &Trailer{sum: sha256.New(), all: sha256.New()} }

// Write implements io.Writer; it never fails.
func (t *Trailer) Write(b []byte) (int, error) {
	t.size += int64(len(b))
	t.all.Write(b)
	t.tail = append(t.tail, b...)
	if over := len(t.tail) - sha256.Size; over > 0 {
		t.sum.Write(t.tail[:over])
		t.tail = append([]byte(nil), t.tail[over:]...)
	}
	return len(b), nil
}

// Whole says whether what came is a whole snapshot.
func (t *Trailer) Whole() bool {
	return t.size%512 == sha256.Size && bytes.Equal(t.sum.Sum(nil), t.tail)
}

// Size is how much came, in bytes; SHA256 is of all of it, lower-case hexadecimal.
func (t *Trailer) Size() int64 { return t.size }

// SHA256 is of all that came, the digest at its end included.
func (t *Trailer) SHA256() string { return hex.EncodeToString(t.all.Sum(nil)) }

// ReadWhole reads a snapshot to its end. It fails with ErrNotWhole where that does not fit.
func ReadWhole(r io.Reader) (*Trailer, error) {
	t := NewTrailer()
	if _, err := io.Copy(t, r); err != nil {
		return nil, err
	}
	if !t.Whole() {
		return nil, ErrNotWhole
	}
	return t, nil
}
