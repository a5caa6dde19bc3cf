package daemon

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Libvirtd runs Debian's libvirtd as a user of no rights, even where the test is root's:
// root's would be the machine's own.
type Libvirtd struct {
	// Dir is a directory of its user's.
	Dir string
}

// Run is its XDG_RUNTIME_DIR.
func (l Libvirtd) Run() string { return filepath.Join(l.Dir, "run") }

// Pool is an empty directory of its user's.
func (l Libvirtd) Pool() string { return filepath.Join(l.Dir, "pool") }

// Socket is where it listens.
func (l Libvirtd) Socket() string { return filepath.Join(l.Run(), "libvirt", "libvirt-sock") }

// DebianPath is where Debian's own programs are. libvirtd takes the first QEMU that it finds,
// and does not know a newer one than its own Debian's.
const DebianPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// StartLibvirtd starts one with directories of its own.
func StartLibvirtd(t testing.TB) Libvirtd {
	t.Helper()
	return startLibvirtd(t, nil)
}

// StartLibvirtdTLS starts one that listens at an address, too, for clients with a certificate
// of the authority ca, and shows them its own; all in PEM.
func StartLibvirtdTLS(t testing.TB, ca, cert, key []byte) (l Libvirtd, address string) {
	t.Helper()
	address = Address(t)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return startLibvirtd(t, map[string][]byte{
		"ca.pem": ca, "cert.pem": cert, "key.pem": key,
		listening: fmt.Appendf(nil, "listen_tls = 1\nlisten_tcp = 0\nauth_tls = \"none\"\nlisten_addr = %q\ntls_port = %q\nca_file = \"ca.pem\"\ncert_file = \"cert.pem\"\nkey_file = \"key.pem\"\n", host, port),
	}), address
}

// listening is the configuration of one that has an address.
const listening = "libvirtd.conf"

// startLibvirtd starts one in a directory with some files of its user's.
func startLibvirtd(t testing.TB, files map[string][]byte) Libvirtd {
	t.Helper()
	// Not t.TempDir: its parents are the test's own.
	dir, err := os.MkdirTemp("", "imagectl-libvirt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cmd := exec.Command("/usr/sbin/libvirtd")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + DebianPath, "HOME=" + dir, "XDG_RUNTIME_DIR=" + dir + "/run", "XDG_CONFIG_HOME=" + dir + "/config", "XDG_CACHE_HOME=" + dir + "/cache"}
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ = strconv.Atoi(nobody.Uid)
		gid, _ = strconv.Atoi(nobody.Gid)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	for _, sub := range []string{"", "run", "config", "cache", "pool"} {
		path := filepath.Join(dir, sub)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	if files[listening] != nil {
		cmd.Args = append(cmd.Args, "--listen", "--config", listening)
	}
	l := Libvirtd{dir}
	Start(t, cmd, "apt-get install libvirt-daemon", func() error {
		conn, err := net.Dial("unix", l.Socket())
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return l
}
