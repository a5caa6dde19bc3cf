//go:build upload

package hostdir_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
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
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		// sshd wants it of root's, and Debian's unit makes it.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keygen := func(name string) (ssh.Signer, string) {
		path := filepath.Join(dir, name)
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen (Debian's openssh-client): %v: %s", err, out)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		key, err := ssh.ParsePrivateKey(b)
		if err != nil {
			t.Fatal(err)
		}
		return key, path
	}
	_, hostPath := keygen("host")
	mine, _ := keygen("mine")
	pub, err := os.ReadFile(hostPath + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	address := daemon.Address(t)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	conf := file("sshd_config", fmt.Appendf(nil, "ListenAddress %s\nPort %s\nHostKey %s\nAuthorizedKeysFile %s\nPidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\nSubsystem sftp internal-sftp\n",
		host, port, hostPath, file("authorized_keys", ssh.MarshalAuthorizedKey(mine.PublicKey()))))
	daemon.Start(t, exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", conf), "Debian's openssh-server", func() error {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	at, err := os.MkdirTemp("/var/tmp", "imagectl-hostdir")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(at) })
	return hostdir.Config{
		Endpoint: "ssh://" + me.Username + "@" + address + at, HostKey: string(pub), Auth: []ssh.AuthMethod{ssh.PublicKeys(mine)}, Dial: (&net.Dialer{}).DialContext,
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
