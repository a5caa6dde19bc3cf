package uki

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/imagectl/imagectl/images/fstree"
)

// Places in the optional header of a 64-bit program, in bytes from its beginning,
// that a signature does not cover.
const (
	checksumOffset     = 64
	checksumSize       = 4
	certificatesOffset = 144 // entry 4 of the data directory
	certificatesSize   = 8
)

// sign appends a table of signatures with one in it. The sections end at a multiple
// of Align, so nothing goes in between.
func (m *Image) sign(s *stub, by Signer) error {
	size := m.content.Size()
	digest, err := m.digest(s)
	if err != nil {
		return fmt.Errorf("reading what is to be signed: %w", err)
	}
	signature, err := by.SignProgram(digest)
	if err != nil {
		return err
	}
	if len(signature) == 0 || len(signature) > math.MaxUint16 {
		return fmt.Errorf("a signature of %d bytes is none that firmware takes", len(signature))
	}
	// A WIN_CERTIFICATE of revision 2.0 with PKCS #7 in it.
	length := roundUp(8+int64(len(signature)), 8)
	if size+length > math.MaxInt32 {
		return errors.New("with its signature the program would be larger than 2 GiB")
	}
	le := binary.LittleEndian
	table := le.AppendUint32(nil, uint32(length))
	table = le.AppendUint16(table, 0x0200)
	table = le.AppendUint16(table, 0x0002)
	table = append(table, signature...)
	table = append(table, make([]byte, length-int64(len(table)))...)
	le.PutUint32(s.bytes[s.optional+certificatesOffset:], uint32(size))
	le.PutUint32(s.bytes[s.optional+certificatesOffset+4:], uint32(length))
	m.content = append(m.content, fstree.Bytes(table))
	return nil
}

// digest is over everything but the checksum and where the signature is.
func (m *Image) digest(s *stub) ([sha256.Size]byte, error) {
	checksum, certificates := s.optional+checksumOffset, s.optional+certificatesOffset
	h := sha256.New()
	h.Write(s.bytes[:checksum])
	h.Write(s.bytes[checksum+checksumSize : certificates])
	h.Write(s.bytes[certificates+certificatesSize:])
	r, err := m.content[1:].Open() // the first is s.bytes
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	defer r.Close()
	_, err = io.Copy(h, r)
	return [sha256.Size]byte(h.Sum(nil)), err
}
