//go:build upload

package hostdir_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/hostdir"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
	"github.com/imagectl/imagectl/test/daemon"
)

// openSSH runs Debian's sshd with keys and a configuration of its own, until the test
// ends. It has a directory that OpenNebula's front-end may read.
func openSSH(t *testing.T) (hostdir.Config, string) {
	t.Helper()
	mine, keys := newKey(t), filepath.Join(t.TempDir(), "authorized_keys")
	if err := os.WriteFile(keys, ssh.MarshalAuthorizedKey(mine.PublicKey()), 0o600); err != nil {
		t.Fatal(err)
	}
	host := daemon.StartSSHD(t, keys, "Subsystem sftp internal-sftp")
	at, err := os.MkdirTemp("/var/tmp", "imagectl-hostdir")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(at) })
	return hostdir.Config{
		Endpoint: "ssh://" + host.User + "@" + host.Address + at, HostKey: string(ssh.MarshalAuthorizedKey(host.HostKey)), Auth: []ssh.AuthMethod{ssh.PublicKeys(mine)}, Dial: (&net.Dialer{}).DialContext,
	}, at
}

func TestConformanceWithOpenSSH(t *testing.T) {
	conf, dir := openSSH(t)
	conformance(t, func(t *testing.T) (hostdir.Config, string, func(*uploadtest.Faults)) {
		if left := files(t, dir); len(left) > 0 {
			t.Fatalf("the last test left %v", left)
		}
		return conf, dir, func(*uploadtest.Faults) {}
	})
}

func TestOpenSSHHasTheBytesAndProvesItself(t *testing.T) {
	conf, dir := openSSH(t)
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	want, err := os.ReadFile(img.File.Name())
	if err != nil {
		t.Fatal(err)
	}
	at, release, err := source(t, conf).Stage(t.Context(), upload.Wanted{Name: "a.qcow2", Image: img}, &uploadtest.Journal{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(at); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, %v", at, len(got), err)
	}
	release()
	if left := files(t, dir); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
	conf.HostKey = string(ssh.MarshalAuthorizedKey(newKey(t).PublicKey()))
	if _, _, err := source(t, conf).Stage(t.Context(), upload.Wanted{Name: "a.qcow2", Image: img}, &uploadtest.Journal{}, quiet); !errors.Is(err, upload.ErrAuth) || !strings.Contains(err.Error(), "not the pinned one") {
		t.Errorf("with another host key: %v", err)
	}
}
