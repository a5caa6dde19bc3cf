package proxmoxtest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// importName is what pve-storage takes as a file to import.
var importName = regexp.MustCompile(`^[A-Za-z0-9\-.+=_]+\.(ova|qcow2|raw|vmdk)$`)

func (s *Server) storage(r *http.Request, name string, p []string) (any, *refusal) {
	if name != Import && name != Datastore {
		return nil, wrong("storage", "No such storage.")
	}
	switch {
	case r.Method == http.MethodGet && p[0] == "status":
		s.mu.Lock()
		defer s.mu.Unlock()
		content := "images,rootdir"
		if name == Import {
			content = "iso,vztmpl,backup,import"
		}
		return map[string]any{"type": "dir", "content": content, "active": 1, "enabled": 1, "avail": s.avail, "total": 100 << 30}, nil
	case r.Method == http.MethodGet && p[0] == "content":
		return s.content(name, r.URL.Query().Get("content")), nil
	case r.Method == http.MethodPost && p[0] == "upload":
		return s.upload(r, name)
	case r.Method == http.MethodPost && p[0] == "download-url":
		return s.download(r, name)
	case r.Method == http.MethodDelete && p[0] == "content" && len(p) >= 2:
		return s.removeFile(name, strings.Join(p[1:], "/"))
	}
	return nil, no(http.StatusNotImplemented, "Method not implemented")
}

// upload takes the form as pveproxy does: with a length, the file last. What is wrong
// with the bytes is found in the task.
func (s *Server) upload(r *http.Request, storage string) (any, *refusal) {
	if r.ContentLength < 0 {
		return nil, no(http.StatusNotImplemented, "chunked transfer encoding not supported")
	}
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || params["boundary"] == "" {
		return nil, no(http.StatusNotImplemented, "for data too large")
	}
	if s.discard.Load() {
		return s.swallow(r.Body, r.ContentLength, params["boundary"])
	}
	fields, name, content, err := readForm(r.Body, params["boundary"])
	if err != nil {
		return nil, no(http.StatusNotImplemented, "%v", err)
	}
	switch {
	case storage != Import:
		return nil, no(http.StatusInternalServerError, "storage '%s' does not support '%s' content", storage, fields["content"])
	case fields["content"] != "import" && fields["content"] != "iso":
		return nil, wrong("content", "value '"+fields["content"]+"' does not have a value in the enumeration 'iso, vztmpl, import'")
	case fields["content"] == "iso" && !strings.HasSuffix(name, ".iso"):
		return nil, wrong("filename", "wrong file extension")
	case fields["content"] == "import" && !importName.MatchString(name):
		return nil, wrong("filename", "invalid filename or wrong extension")
	case fields["checksum"] != "" && fields["checksum-algorithm"] != "sha256":
		return nil, wrong("checksum", "missing property - 'checksum' requires this property 'checksum-algorithm'")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fork("imgcopy", "", func(k *task) error { return s.copyFile(k, name, fields["checksum"], content) }), nil
}

// headSize is how much of a file Discard keeps: where a qcow2 says how large its disk is.
const headSize = 4096

// Discard has the node keep no files but their beginning and digest, for those that measure how fast
// they send.
func (s *Server) Discard() { s.discard.Store(true) }

// swallow reads a form as readForm does, without keeping the file. The form's length
// says how long the file is, so that nobody has to look for its end in it.
func (s *Server) swallow(body io.Reader, length int64, boundary string) (any, *refusal) {
	const buffer = 256 << 10
	counted := &io.LimitedReader{R: body, N: length}
	in := bufio.NewReaderSize(counted, buffer)
	var before bytes.Buffer
	// The fields end where the head of the file's part does, with an empty line.
	for inFile := false; ; {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil, no(http.StatusNotImplemented, "%v", err)
		}
		before.Write(line)
		inFile = inFile || bytes.Contains(line, []byte(`name="filename"; filename="`))
		if inFile && len(bytes.TrimSpace(line)) == 0 {
			break
		}
	}
	end := "\r\n--" + boundary + "--\r\n"
	size := int64(in.Buffered()) + counted.N - int64(len(end))
	fields, name, _, err := readForm(io.MultiReader(&before, strings.NewReader(end)), boundary)
	if err != nil {
		return nil, no(http.StatusNotImplemented, "%v", err)
	}
	h, head := sha256.New(), make([]byte, headSize)
	file := io.LimitReader(in, size)
	_, err = io.ReadFull(io.TeeReader(file, h), head)
	if err == nil {
		_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{file}, make([]byte, buffer))
	}
	if err != nil {
		return nil, no(http.StatusNotImplemented, "%v", err)
	}
	if rest, err := io.ReadAll(in); err != nil || string(rest) != end {
		return nil, no(http.StatusNotImplemented, "the form ends with %q, %v", rest, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fork("imgcopy", "", func(*task) error {
		if sum := hex.EncodeToString(h.Sum(nil)); sum != fields["checksum"] {
			return fmt.Errorf("checksum mismatch: got '%s' != expect '%s'", sum, fields["checksum"])
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.files[name] = head
		return nil
	}), nil
}

// download fetches a file itself, in a task.
func (s *Server) download(r *http.Request, storage string) (any, *refusal) {
	name, from, checksum := r.PostFormValue("filename"), r.PostFormValue("url"), r.PostFormValue("checksum")
	switch {
	case storage != Import:
		return nil, no(http.StatusInternalServerError, "storage '%s' does not support '%s' content", storage, r.PostFormValue("content"))
	case r.PostFormValue("content") != "import":
		return nil, wrong("content", "value '"+r.PostFormValue("content")+"' does not have a value in the enumeration 'iso, vztmpl, import'")
	case !importName.MatchString(name):
		return nil, wrong("filename", "invalid filename or wrong extension")
	case !strings.HasPrefix(from, "http://") && !strings.HasPrefix(from, "https://"):
		return nil, wrong("url", "value does not match the regex pattern")
	case checksum != "" && r.PostFormValue("checksum-algorithm") != "sha256":
		return nil, wrong("checksum", "missing property - 'checksum' requires this property 'checksum-algorithm'")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fork("download", name, func(k *task) error {
		resp, err := http.Get(from)
		if err != nil {
			return fmt.Errorf("download failed: %w", err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("download failed: ERROR %d: %s", resp.StatusCode, http.StatusText(resp.StatusCode))
		}
		content, err := io.ReadAll(resp.Body)
		if err != nil {
			return fmt.Errorf("download failed: %w", err)
		}
		return s.copyFile(k, name, checksum, content)
	}), nil
}

// content lists volumes of a kind.
func (s *Server) content(storage, kind string) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []map[string]any{}
	for name := range s.files {
		if storage == Import && (kind == "iso") == strings.HasSuffix(name, ".iso") {
			out = append(out, map[string]any{"volid": storage + ":" + kind + "/" + name, "content": kind, "ctime": s.stored[name].Unix()})
		}
	}
	return out
}

// readForm reads as pveproxy's own parser does (pve-http-server, AnyEvent.pm): the
// fields in one order, and the file's Content-Disposition before its other headers.
func readForm(body io.Reader, boundary string) (fields map[string]string, name string, content []byte, err error) {
	b, err := io.ReadAll(body)
	if err != nil {
		return nil, "", nil, err
	}
	if !bytes.Contains(b, []byte("--"+boundary+"\r\nContent-Disposition: form-data; name=\"filename\"; filename=\"")) {
		return nil, "", nil, errors.New("wrong field name for file upload, expected 'filename'")
	}
	order := []string{"content", "checksum-algorithm", "checksum", "filename"}
	fields = map[string]string{}
	for form := multipart.NewReader(bytes.NewReader(b), boundary); ; {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return fields, name, content, nil
		}
		if err != nil {
			return nil, "", nil, err
		}
		at := slices.Index(order, part.FormName())
		if at < 0 {
			return nil, "", nil, fmt.Errorf("field %s is not read at this place", part.FormName())
		}
		order = order[at+1:]
		value, err := io.ReadAll(part)
		if err != nil {
			return nil, "", nil, err
		}
		if part.FormName() == "filename" {
			name, content = part.FileName(), value
		} else {
			fields[part.FormName()] = string(value)
		}
	}
}

func (s *Server) copyFile(k *task, name, checksum string, content []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k.log = append(k.log, "starting file import from: /var/tmp/pveupload-0123456789abcdef")
	if sum := sha256.Sum256(content); checksum != "" && hex.EncodeToString(sum[:]) != strings.ToLower(checksum) {
		return fmt.Errorf("checksum mismatch: got '%x' != expect '%s'", sum, checksum)
	}
	if strings.HasSuffix(name, ".qcow2") && !bytes.HasPrefix(content, []byte("QFI\xfb")) {
		return fmt.Errorf("qemu-img: Could not open '/var/tmp/pveupload-0123456789abcdef': Image is not in qcow2 format")
	}
	if strings.HasSuffix(name, ".iso") && (len(content) < 17*2048 || string(content[16*2048+1:16*2048+6]) != "CD001") {
		return errors.New("ISO is not a valid ISO 9660 image")
	}
	if s.copies {
		k.log = append(k.log, "cp: error writing '/var/lib/vz/import/"+name+"': No space left on device")
		return fmt.Errorf("import failed: exit code 1")
	}
	s.files[name], s.stored[name] = content, time.Now()
	k.log = append(k.log, "finished file import successfully")
	return nil
}

func (s *Server) removeFile(storage, volume string) (any, *refusal) {
	name, is := strings.CutPrefix(volume, storage+":import/")
	if !is {
		return nil, no(http.StatusInternalServerError, "unable to parse volume ID '%s'", volume)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fork("imgdel", "", func(*task) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, is := s.files[name]; !is {
			return fmt.Errorf("volume '%s' does not exist", volume)
		}
		delete(s.files, name)
		return nil
	}), nil
}
