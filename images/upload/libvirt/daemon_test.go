//go:build upload || root

package libvirt

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"

	"github.com/imagectl/imagectl/test/daemon"
)

const pool = "templates"

// started is how to reach a libvirtd with a pool, which runs until the test ends.
func started(t *testing.T) Config {
	t.Helper()
	return startedAt(t, daemon.StartLibvirtd(t))
}

// startedAt makes the pool of one.
func startedAt(t *testing.T, host daemon.Libvirtd) Config {
	t.Helper()
	dial, driver, err := Address("qemu:///session", Local{RuntimeDir: host.Run()})
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Dial: dial, Driver: driver, Pool: pool, Emulate: true, Node: `{"cluster": "demo"}`, Random: rand.Reader, Now: time.Now}
	s := c.admin(t)
	text := fmt.Sprintf(`<pool type='dir'><name>%s</name><target><path>%s</path></target></pool>`, pool, host.Pool())
	if _, err := s.StoragePoolCreateXML(text, 0); err != nil {
		t.Fatal(err)
	}
	return c
}

// admin is a connection of the test's own.
func (c Config) admin(t *testing.T) *libvirt.Libvirt {
	t.Helper()
	conn, err := c.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := libvirt.NewWithDialer(already{conn})
	if err := s.ConnectToURI(libvirt.ConnectURI(c.Driver)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return s
}

type already struct{ net.Conn }

// Dial gives the connection that there is.
func (a already) Dial() (net.Conn, error) { return a.Conn, nil }

func volumes(t *testing.T, s *libvirt.Libvirt) []libvirt.StorageVol {
	t.Helper()
	p, err := s.StoragePoolLookupByName(pool)
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := s.StoragePoolListAllVolumes(p, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func made(t *testing.T, c Config) *Target {
	t.Helper()
	to, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// small puts a file system of a size in bytes where the pool is, until the test ends; it
// returns its directory. It is root's to do.
func small(t *testing.T, s *libvirt.Libvirt, size int64) string {
	t.Helper()
	p, err := s.StoragePoolLookupByName(pool)
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.StoragePoolGetXMLDesc(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	var x libvirtxml.StoragePool
	if err := x.Unmarshal(text); err != nil {
		t.Fatal(err)
	}
	dir := x.Target.Path
	owner, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=0755,size=%d", size)); err != nil {
		t.Fatalf("mounting a file system of %d bytes at %s: %v", size, dir, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
		if err := s.StoragePoolRefresh(p, 0); err != nil {
			t.Error(err)
		}
	})
	st := owner.Sys().(*syscall.Stat_t)
	if err := os.Chown(dir, int(st.Uid), int(st.Gid)); err != nil {
		t.Fatal(err)
	}
	if err := s.StoragePoolRefresh(p, 0); err != nil {
		t.Fatal(err)
	}
	return dir
}
