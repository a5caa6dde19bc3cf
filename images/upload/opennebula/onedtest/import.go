package onedtest

import (
	"bytes"
	"crypto/md5"  //nolint:gosec // What OpenNebula compares.
	"crypto/sha1" //nolint:gosec // What OpenNebula compares.
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

// Readings of a file by the scripts of a real front-end: seven GETs for what has
// its size in its header, and one HEAD and eight GETs for a raw file. All but the
// last break off early when the file is longer than what they look at.
const (
	readingsFormatted = 7
	readingsRaw       = 8
	statReadings      = 3
	probe             = 64 << 10
)

// source is the file that PATH names.
type source struct {
	s    *Server
	path string
	raw  bool
	size int64
}

// allocateImage answers when the driver has looked at the source, as oned does.
func (s *Server) allocateImage(session, text string, datastore int) answer {
	a, no := checkTemplate(text)
	switch {
	case a == nil:
		return no
	case a.has("SOURCE"):
		return refuse(authorization, "Template includes a restricted attribute SOURCE.")
	case datastore != 1:
		return refuse(noExists, "Error getting datastore [%d].", datastore)
	case a.get("NAME") == "" || len(a.get("NAME")) > 128:
		return refuse(internal, "Error allocating a new image. Invalid NAME")
	case a.get("PATH") == "":
		return refuse(internal, "Error allocating a new image. No PATH nor SOURCE in template.")
	}
	src := &source{s: s, path: a.get("PATH")}
	if err := src.stat(); err != nil {
		return refuse(internal, "Cannot determine Image SIZE. %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sizeMB := (src.size + 1<<20 - 1) >> 20
	if s.freeMB < sizeMB {
		return refuse(action, "Not enough space in datastore")
	}
	own := 0
	for _, i := range s.images {
		if i.owner != session {
			continue
		}
		own++
		if i.name == a.get("NAME") {
			return refuse(allocate, "Error allocating a new image. NAME is already taken by IMAGE %d.", i.id)
		}
	}
	if s.quota >= 0 && own >= s.quota {
		return refuse(authorization, "User [2] : limit of %d reached for IMAGES quota in DATASTORE with ID 1.", s.quota)
	}
	id := s.next
	s.next++
	s.clock++
	i := &image{id: id, state: locked, owner: session, name: a.get("NAME"), regTime: s.clock, sizeMB: sizeMB, attrs: a}
	s.images[id] = i
	hold := s.hold
	s.imports.Go(func() { s.copyImage(i, src, hold) })
	return answer{value: id}
}

// copyImage is what the driver does after oned has answered.
func (s *Server) copyImage(i *image, src *source, hold chan struct{}) {
	if hold != nil {
		<-hold
	}
	b, err := src.readAll()
	if err == nil {
		err = checksums(i.attrs, b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[i.id] != i {
		// It was deleted meanwhile.
		return
	}
	if err == nil && s.spoilt != "" {
		err = errors.New(s.spoilt)
	}
	if err == nil {
		err = s.write(i.id, b)
	}
	if err != nil {
		// The image stays, and holds its name.
		i.state = failed
		i.attrs = append(i.attrs, attr{name: "ERROR", text: "Error copying image in the datastore: " + err.Error()})
		return
	}
	i.state = ready
	s.freeMB -= i.sizeMB
}

func checksums(a attrs, b []byte) error {
	if want := a.get("SHA1"); want != "" {
		if got := sha1.Sum(b); hex.EncodeToString(got[:]) != want { //nolint:gosec // See the import.
			return errors.New("Hash does not match") //nolint:staticcheck // OpenNebula's words.
		}
		return nil
	}
	if want := a.get("MD5"); want != "" {
		if got := md5.Sum(b); hex.EncodeToString(got[:]) != want { //nolint:gosec // See the import.
			return errors.New("Hash does not match") //nolint:staticcheck // OpenNebula's words.
		}
	}
	return nil
}

// stat finds the format and the disk's size.
func (f *source) stat() error {
	if !strings.HasPrefix(f.path, "http") {
		st, err := os.Stat(f.path)
		if err != nil {
			return errors.New("(Permission denied)") //nolint:staticcheck // OpenNebula's words.
		}
		f.size = st.Size()
		return nil
	}
	var head []byte
	for range statReadings {
		b, err := f.get(false)
		if err != nil {
			return err
		}
		head = b
	}
	switch {
	case bytes.HasPrefix(head, []byte("QFI\xfb")) && len(head) > 32:
		f.size = int64(binary.BigEndian.Uint64(head[24:]))
		return nil
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}), bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")), bytes.HasPrefix(head, []byte("BZh")):
		return errors.New("Unsupported remote image format") //nolint:staticcheck // OpenNebula's words.
	}
	f.raw = true
	resp, err := http.Head(f.path)
	if err != nil {
		return err
	}
	resp.Body.Close()
	f.s.mu.Lock()
	f.s.heads++
	f.s.mu.Unlock()
	f.size = resp.ContentLength
	if resp.StatusCode != http.StatusOK || f.size <= 0 {
		return errors.New("no Content-Length")
	}
	return nil
}

// readAll reads as often as the scripts do; the last reading counts.
func (f *source) readAll() ([]byte, error) {
	if !strings.HasPrefix(f.path, "http") {
		f.s.mu.Lock()
		safe := f.s.safe
		f.s.mu.Unlock()
		if !strings.HasPrefix(f.path, "/var/tmp/") && (safe == "" || !strings.HasPrefix(f.path, safe+"/")) {
			return nil, fmt.Errorf("Not allowed to copy image file %s", f.path) //nolint:staticcheck // OpenNebula's words.
		}
		return os.ReadFile(f.path)
	}
	n := readingsFormatted
	if f.raw {
		n = readingsRaw
	}
	// Two at once, as a pipeline of scripts may have it.
	beside := make(chan error, 1)
	go func() {
		_, err := f.get(false)
		beside <- err
	}()
	for range n - statReadings - 2 {
		if _, err := f.get(false); err != nil {
			<-beside
			return nil, err
		}
	}
	if err := <-beside; err != nil {
		return nil, err
	}
	return f.get(true)
}

// get reads the file, or its beginning and then hangs up.
func (f *source) get(whole bool) ([]byte, error) {
	f.s.mu.Lock()
	f.s.gets++
	f.s.mu.Unlock()
	resp, err := http.Get(f.path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New("(Permission denied)") //nolint:staticcheck // OpenNebula's words, whatever the status.
	}
	if !whole {
		return io.ReadAll(io.LimitReader(resp.Body, probe))
	}
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.ContentLength >= 0 && int64(len(b)) != resp.ContentLength {
		err = fmt.Errorf("read %d of %d bytes", len(b), resp.ContentLength)
	}
	return b, err
}
