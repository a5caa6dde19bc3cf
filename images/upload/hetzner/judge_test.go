//go:build upload

package hetzner_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/hetzner"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
	"github.com/imagectl/imagectl/test/daemon"
)

// rescue is Debian's sshd and shell in place of the rescue system's. Its disk is a file.
type rescue struct {
	cloud *cloud
	sshd  daemon.SSHD
	dir   string
}

// forced runs what is asked for with the file as the disk; programs that want a disk
// are those in its directory.
const forced = `#!/bin/bash
export PATH=%[1]s:$PATH
exec bash -c "${SSH_ORIGINAL_COMMAND//\/dev\/sda/%[1]s\/disk}"
`

func startRescue(t *testing.T, c *cloud) *rescue {
	t.Helper()
	r := &rescue{cloud: c, dir: t.TempDir()}
	r.program(t, "forced", fmt.Sprintf(forced, r.dir))
	// Discarding a disk of a server leaves zeroes.
	r.program(t, "blkdiscard", "#!/bin/sh\nset -e\nsize=$(stat -c %s \"$1\")\ntruncate -s 0 \"$1\"\ntruncate -s $size \"$1\"\n")
	r.program(t, "blockdev", "#!/bin/sh\n[ \"$1\" = --flushbufs ]\n")
	r.program(t, "disk", strings.Repeat("what was there before ", 1<<18))
	r.program(t, "keys", "")
	r.sshd = daemon.StartSSHD(t, filepath.Join(r.dir, "keys"), "ForceCommand "+filepath.Join(r.dir, "forced"))
	return r
}

// program writes a file, which may be executed.
func (r *rescue) program(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
}

func (r *rescue) target(t *testing.T) *hetzner.Target {
	c := config(r.cloud)
	c.User = r.sshd.User
	c.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		// The rescue system was started with the keys that the API has.
		var keys []byte
		r.cloud.mu.Lock()
		for _, k := range r.cloud.keys {
			keys = append(keys, ssh.MarshalAuthorizedKey(k.key)...)
		}
		r.cloud.mu.Unlock()
		if err := os.WriteFile(filepath.Join(r.dir, "keys"), keys, 0o600); err != nil {
			return nil, err
		}
		return (&net.Dialer{}).DialContext(ctx, network, r.sshd.Address)
	}
	return target(t, c)
}

// What is on the disk of a rescue system with OpenSSH is the image and nothing else; what
// its programs say is shown.
func TestARescueSystemWithOpenSSH(t *testing.T) {
	c := newCloud(t)
	r := startRescue(t, c)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 1)
	want, err := os.ReadFile(img.File.Name())
	if err != nil {
		t.Fatal(err)
	}
	host := ""
	out, err := uploaded(t, r.target(t), img, func(e upload.Event) {
		if strings.Contains(e.Note, ssh.FingerprintSHA256(r.sshd.HostKey)) {
			host = e.Note
		}
	})
	if err != nil || !out.Promoted {
		t.Fatalf("got %+v, %v", out, err)
	}
	if host == "" {
		t.Error("the host's key is not said")
	}
	disk, err := os.ReadFile(filepath.Join(r.dir, "disk"))
	if err != nil || len(disk) < len(want) || !bytes.Equal(disk[:len(want)], want) || len(bytes.Trim(disk[len(want):], "\x00")) > 0 {
		t.Errorf("the disk has %d bytes, %v: not the image of %d and zeroes", len(disk), err, len(want))
	}

	r.program(t, "blkdiscard", "#!/bin/sh\necho 'blkdiscard: BLKDISCARD ioctl failed' >&2\nexit 1\n")
	other := uploadtest.Image(t, store.Raw, "prod-worker", 2)
	j := &uploadtest.Journal{}
	_, err = r.target(t).Upload(t.Context(), other, j, func(upload.Event) {})
	if !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "the rescue system says: blkdiscard: BLKDISCARD ioctl failed") {
		t.Errorf("got %v, want ErrServer with the program's words", err)
	}
	if left := c.leftovers(); len(left) != 1 {
		t.Errorf("left are %v, want the snapshot of the first image", left)
	}
}
