package backup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"time"

	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/store"
)

// Members of the archive, in their order.
const (
	memberHeader   = "backup.json"
	memberIdentity = "identity.age"
	memberLeases   = "leases"
	memberLeases6  = "leases6"
	memberRecords  = "records-%06d.jsonl" // a line of JSON for each
	memberEnd      = "complete.json"
)

const (
	// version is that of the format, oldest the oldest that is read: it has no leases of
	// DHCPv6.
	version = 2
	oldest  = 1
	// chunk is about how long a member with records gets.
	chunk = 1 << 20
	// maxSmall bounds what is read at once of the other members; a lease table of a
	// hundred thousand cards has 15 MB.
	maxSmall = 256 << 20
)

// Header says what a backup is of.
type Header struct {
	Format  int       `json:"format"`
	Cluster string    `json:"cluster"`
	At      time.Time `json:"at"`
	// Program is the version of imagectl that wrote it.
	Program string `json:"program"`
	// Servers are the https URLs that nodes call.
	Servers []string `json:"servers"`
}

// Content is everything in a backup but the records.
type Content struct {
	Header
	// Identity is the identity file of the state directory: a secret.
	Identity []byte
	// Leases is the file of DHCP leases, Leases6 that of DHCPv6; nil when there is none.
	Leases, Leases6 []byte
}

// end is the last member: what came before it.
type end struct {
	Records int    `json:"records"`
	SHA256  string `json:"sha256"` // over the members with records
}

// Write writes a backup that any of the recipients can open. It does not close w.
func Write(w io.Writer, to []age.Recipient, c Content, records iter.Seq2[store.Record, error]) error {
	if len(to) == 0 {
		return errors.New("writing a backup: nobody could open it; backup.recipients in cluster.yaml names no key")
	}
	sealed, err := age.Encrypt(w, to...)
	if err != nil {
		return fmt.Errorf("writing a backup: %w", err)
	}
	packed := gzip.NewWriter(sealed)
	a := archive{Writer: tar.NewWriter(packed), at: c.At}
	c.Format = version
	if err := a.all(c, records); err != nil {
		return fmt.Errorf("writing a backup: %w", err)
	}
	for _, each := range []io.Closer{a.Writer, packed, sealed} {
		if err := each.Close(); err != nil {
			return fmt.Errorf("writing a backup: %w", err)
		}
	}
	return nil
}

type archive struct {
	*tar.Writer
	at time.Time
}

func (a archive) all(c Content, records iter.Seq2[store.Record, error]) error {
	if err := a.json(memberHeader, c.Header); err != nil {
		return err
	}
	if err := a.member(memberIdentity, c.Identity); err != nil {
		return err
	}
	if c.Leases != nil {
		if err := a.member(memberLeases, c.Leases); err != nil {
			return err
		}
	}
	if c.Leases6 != nil {
		if err := a.member(memberLeases6, c.Leases6); err != nil {
			return err
		}
	}
	var buf bytes.Buffer
	sum, e, n := sha256.New(), end{}, 0
	flush := func() error {
		n++
		sum.Write(buf.Bytes())
		defer buf.Reset()
		return a.member(fmt.Sprintf(memberRecords, n), buf.Bytes())
	}
	for r, err := range records {
		if err != nil {
			return err
		}
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		buf.Write(append(line, '\n'))
		e.Records++
		if buf.Len() >= chunk {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	e.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return a.json(memberEnd, e)
}

func (a archive) json(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.member(name, append(b, '\n'))
}

func (a archive) member(name string, content []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o600, ModTime: a.at.Truncate(time.Second), Format: tar.FormatPAX}
	if err := a.WriteHeader(h); err != nil {
		return err
	}
	_, err := a.Writer.Write(content)
	return err
}

// Backup is an open backup.
type Backup struct {
	Content
	in      *tar.Reader
	rest    io.Reader // what in reads from
	records int
	sum     hash.Hash
}

// Open reads the beginning of a backup. What it says is to be believed only after
// Records has come to its end.
func Open(r io.Reader, with ...age.Identity) (*Backup, error) {
	plain, err := age.Decrypt(r, with...)
	if err != nil {
		var other *age.NoIdentityMatchError
		if errors.As(err, &other) {
			return nil, errors.New("opening the backup: it is not encrypted to this key; take the recovery key whose public half was in backup.recipients")
		}
		return nil, fmt.Errorf("opening the backup: it is no file of imagectl server backup, or it is damaged: %w", err)
	}
	packed, err := gzip.NewReader(plain)
	if err != nil {
		return nil, damaged(err)
	}
	b := &Backup{in: tar.NewReader(packed), rest: packed, sum: sha256.New()}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// damaged is for what age found whole and we do not, and for what age did not.
func damaged(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading the backup: it is damaged or cut off: %w", err)
}

func (b *Backup) open() error {
	text, err := b.small(memberHeader)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &b.Header); err != nil {
		return damaged(err)
	}
	if b.Format < oldest || b.Format > version {
		return fmt.Errorf("reading the backup: its format is %d, this program reads %d to %d; use imagectl %s", b.Format, oldest, version, b.Program)
	}
	b.Identity, err = b.small(memberIdentity)
	return err
}

// small reads the next member, which must have that name.
func (b *Backup) small(name string) ([]byte, error) {
	h, err := b.in.Next()
	if err != nil {
		return nil, damaged(err)
	}
	if h.Name != name {
		return nil, damaged(fmt.Errorf("%q stands where %s belongs", h.Name, name))
	}
	return b.content(h)
}

func (b *Backup) content(h *tar.Header) ([]byte, error) {
	if h.Size > maxSmall {
		return nil, damaged(fmt.Errorf("%s has %d bytes", h.Name, h.Size))
	}
	content := make([]byte, h.Size)
	if _, err := io.ReadFull(b.in, content); err != nil {
		return nil, damaged(err)
	}
	return content, nil
}

// Records reads the rest. Its last element is an error unless the backup is whole.
// Leases and Leases6 are set before the first record comes. It can be read once.
func (b *Backup) Records() iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		fail := func(err error) { yield(store.Record{}, err) }
		for n := 1; ; {
			h, err := b.in.Next()
			if err != nil {
				fail(damaged(err))
				return
			}
			content, err := b.content(h)
			if err != nil {
				fail(err)
				return
			}
			switch {
			case h.Name == memberLeases && n == 1 && b.Leases == nil:
				b.Leases = content
			case h.Name == memberLeases6 && n == 1 && b.Leases6 == nil:
				b.Leases6 = content
			case h.Name == fmt.Sprintf(memberRecords, n):
				n++
				b.sum.Write(content)
				for line := range bytes.Lines(content) {
					var r store.Record
					if err := json.Unmarshal(line, &r); err != nil {
						fail(damaged(err))
						return
					}
					b.records++
					if !yield(r, nil) {
						return
					}
				}
			case h.Name == memberEnd:
				if err := b.finish(content); err != nil {
					fail(err)
				}
				return
			default:
				fail(damaged(fmt.Errorf("%q does not belong there", h.Name)))
				return
			}
		}
	}
}

// finish compares with what the writer counted, and reads to the end, which is what
// makes age look at its last block.
func (b *Backup) finish(content []byte) error {
	var e end
	if err := json.Unmarshal(content, &e); err != nil {
		return damaged(err)
	}
	if sum := hex.EncodeToString(b.sum.Sum(nil)); e.Records != b.records || e.SHA256 != sum {
		return damaged(fmt.Errorf("it has %d records (%.12s…), its writer counted %d (%.12s…)", b.records, sum, e.Records, e.SHA256))
	}
	if _, err := b.in.Next(); !errors.Is(err, io.EOF) {
		return damaged(errors.Join(errors.New("something follows its end"), err))
	}
	if _, err := io.Copy(io.Discard, b.rest); err != nil {
		return damaged(err)
	}
	return nil
}

// Verify reads a backup to its end and returns what it is, with how many records.
func Verify(r io.Reader, with ...age.Identity) (Content, int, error) {
	b, err := Open(r, with...)
	if err != nil {
		return Content{}, 0, err
	}
	for _, err := range b.Records() {
		if err != nil {
			return Content{}, 0, err
		}
	}
	return b.Content, b.records, nil
}
