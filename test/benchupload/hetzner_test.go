//go:build bench

package benchupload

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/daemon"
)

// rescued runs what the rescue system is asked for, with a file as the disk; programs that
// want a disk are those in the file's directory.
const rescued = `#!/bin/bash
export PATH=%[1]s:$PATH
exec bash -c "${SSH_ORIGINAL_COMMAND//\/dev\/sda/%[1]s\/disk}"
`

// onHetzner has Hetzner's API as far as one upload needs it, and for the rescue system
// Debian's sshd, bash, zstd and dd on a file. curl sends to a program that does the same
// with the bytes: it writes a file, and computes the SHA-256 of what is in it.
func onHetzner(t *testing.T, name string, f file, rawSize int64) contest {
	t.Helper()
	dir := t.TempDir()
	keys := filepath.Join(dir, "keys")
	for program, text := range map[string]string{
		"forced":     fmt.Sprintf(rescued, dir),
		"blkdiscard": "#!/bin/sh\nset -e\ntruncate -s 0 \"$1\"\ntruncate -s " + fmt.Sprint(rawSize) + " \"$1\"\n",
		"blockdev":   "#!/bin/sh\n[ \"$1\" = --flushbufs ]\n",
		"disk":       "what was there before",
		"keys":       "",
	} {
		if err := os.WriteFile(filepath.Join(dir, program), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	sshd := daemon.StartSSHD(t, keys, "ForceCommand "+filepath.Join(dir, "forced"))
	s := newSink(nil)
	s.protocol = func(w http.ResponseWriter, r *http.Request) { s.hetzner(w, r, keys) }
	written := filepath.Join(dir, "written")
	at := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/curl" {
			s.ServeHTTP(w, r)
			return
		}
		if err := keepAndRead(written, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.kept = map[string]kept{}
	}))
	return contest{
		name: name, file: f.Path, url: at + "/curl",
		job:  job{Target: name, Endpoint: at, SSH: sshd.Address, User: sshd.User, File: f, Format: store.Raw, RawSize: rawSize},
		sent: func() int64 { return 0 },
		hand: bySSH(t, sshd, keys, filepath.Join(dir, "disk"), f, rawSize),
		note: "packed, through SSH, written and read back; beside curl to a program that writes a file and reads it",
	}
}

func keepAndRead(name string, from io.Reader) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = io.Copy(sha256.New(), f)
	}
	return errors.Join(err, f.Close())
}

// hetzner has one key, one server and one snapshot.
func (s *sink) hetzner(w http.ResponseWriter, r *http.Request, keys string) {
	step := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	done := object{"id": 1, "status": "success"}
	if r.Method == http.MethodDelete {
		s.mu.Lock()
		delete(s.kept, step[0])
		s.mu.Unlock()
		if step[0] == "servers" {
			answerJSON(w, http.StatusOK, object{"action": done})
		} else {
			w.WriteHeader(http.StatusNoContent)
		}
		return
	}
	if r.Method == http.MethodGet {
		all := []json.RawMessage{}
		if k, ok := s.get(step[0]); ok {
			all = append(all, k.body)
		}
		answerJSON(w, http.StatusOK, object{step[0]: all, "meta": object{"pagination": object{"page": 1, "next_page": nil}}})
		return
	}
	var in object
	_ = json.NewDecoder(r.Body).Decode(&in)
	keep := func(what string, more object) object {
		for k, v := range more {
			in[k] = v
		}
		in["created"] = "2026-11-21T00:00:00Z"
		b, _ := json.Marshal(in)
		s.keep(what, kept{body: b})
		return in
	}
	switch {
	case step[0] == "ssh_keys":
		if err := os.WriteFile(keys, []byte(fmt.Sprint(in["public_key"], "\n")), 0o600); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answerJSON(w, http.StatusCreated, object{"ssh_key": keep("ssh_keys", object{"id": 7})})
	case len(step) == 1:
		answerJSON(w, http.StatusCreated, object{"action": done, "next_actions": []object{}, "server": keep("servers", object{
			"id": 8, "status": "off", "public_net": object{"ipv4": object{"ip": "192.0.2.7"}},
		})})
	case step[3] == "create_image":
		answerJSON(w, http.StatusCreated, object{"action": done, "image": keep("images", object{"id": 9, "type": "snapshot", "status": "available"})})
	default:
		answerJSON(w, http.StatusCreated, object{"action": done})
	}
}
