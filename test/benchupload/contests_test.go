//go:build bench

package benchupload

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"github.com/vmware/govmomi/simulator"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload/proxmox/proxmoxtest"
	"github.com/imagectl/imagectl/test/daemon"
)

// pool of libvirt.
const pool = "templates"

// contests are the targets, each with a server of its own.
func contests(t *testing.T, i images) []contest {
	t.Helper()
	to := func(name string, f file, format store.Format, h func() hash.Hash, protocol func(s *sink) http.HandlerFunc, note string) contest {
		s := newSink(h)
		s.protocol = protocol(s)
		at := serve(t, s)
		return contest{name: name, job: job{Target: name, Endpoint: at, File: f, Format: format, RawSize: 2 * *megabytes << 20}, file: f.Path, url: at + "/curl", sent: s.sent, note: note}
	}
	bucket := func(s *sink) http.HandlerFunc { return s.store }
	registry := func(s *sink) http.HandlerFunc { return s.registry }
	glance := func(s *sink) http.HandlerFunc { return s.glance }
	amazon := func(s *sink) http.HandlerFunc { return s.amazon }
	azure := func(s *sink) http.HandlerFunc { return s.azure }
	google := func(s *sink) http.HandlerFunc { return s.google }
	small := i.dense
	raw := func(c contest) contest {
		c.job.RawSize = *megabytes << 20
		return c
	}
	return []contest{
		to("s3", i.dense, store.QCOW2, sha256.New, bucket, ""),
		to("oci", i.dense, store.QCOW2, sha256.New, registry, ""),
		to("glance", i.dense, store.QCOW2, sha512.New, glance, ""),
		onProxmox(t, i.dense),
		raw(to("aws", small, store.Raw, sha256.New, amazon, "")),
		to("aws, with zeros", i.holes, store.Raw, sha256.New, amazon, "curl sends the zeros"),
		raw(to("azure", i.footed, store.VHD, md5.New, azure, "")),
		to("azure, with zeros", i.vhd, store.VHD, md5.New, azure, "curl sends the zeros"),
		raw(to("gcp", small, store.Raw, newStorages, google, "packed by gzip")),
		to("gcp, with zeros", i.holes, store.Raw, newStorages, google, "packed by gzip; curl sends the zeros"),
		onVSphere(t, i.vmdk),
		onHetzner(t, "hetzner", i.dense, *megabytes<<20),
		onHetzner(t, "hetzner, with zeros", i.holes, 2**megabytes<<20),
		onLibvirt(t, "libvirt", i.dense, *megabytes<<20),
		onLibvirt(t, "libvirt, with zeros", i.holes, 2**megabytes<<20),
	}
}

// onProxmox has a node that computes the SHA-256 of what it gets.
func onProxmox(t *testing.T, f file) contest {
	t.Helper()
	pve := proxmoxtest.Start(t)
	pve.Discard()
	s := newSink(sha256.New)
	return contest{
		name: "proxmox", job: job{Target: "proxmox", Endpoint: pve.URL, File: f, Format: store.QCOW2, RawSize: 2 * *megabytes << 20},
		file: f.Path, url: serve(t, s) + "/curl", sent: func() int64 { s.sent(); return f.Size }, note: "",
	}
}

// simulatorsBuffer is what govmomi's simulator reads at once (io.Copy's), in bytes. What
// curl sends to reads as slowly.
const simulatorsBuffer = 32 << 10

// onVSphere has govmomi's simulator, which computes SHA-1.
func onVSphere(t *testing.T, f file) contest {
	t.Helper()
	m := simulator.VPX()
	m.Host, m.ClusterHost, m.Machine, m.Portgroup, m.Autostart = 0, 1, 0, 0, false
	if err := m.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Remove)
	m.Service.Listen = &url.URL{User: url.UserPassword("ops", "secret")}
	vc := m.Service.NewServer()
	t.Cleanup(vc.Close)
	u := *vc.URL
	u.User = nil
	s := newSink(sha1.New)
	s.buffer = simulatorsBuffer
	return contest{
		name: "vsphere", job: job{Target: "vsphere", Endpoint: u.String(), File: f, Format: store.VMDK, RawSize: 2 * *megabytes << 20},
		file: f.Path, url: serve(t, s) + "/curl", sent: func() int64 { s.sent(); return f.Size }, note: "stream-optimized VMDK of the image with zeros",
	}
}

// onLibvirt has libvirtd, to which curl cannot send: it sends to a program that writes
// a file, as libvirtd does; libvirt's own client sends to the same libvirtd.
func onLibvirt(t *testing.T, name string, f file, rawSize int64) contest {
	t.Helper()
	host := daemon.StartLibvirtd(t)
	conn, err := net.Dial("unix", host.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	l := libvirt.NewWithDialer(dialers.NewAlreadyConnected(conn))
	if err := l.ConnectToURI("qemu:///session"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.StoragePoolCreateXML(fmt.Sprintf(`<pool type='dir'><name>%s</name><target><path>%s</path></target></pool>`, pool, host.Pool()), 0); err != nil {
		t.Fatal(err)
	}
	written := filepath.Join(t.TempDir(), "written")
	at := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := os.Create(written)
		if err == nil {
			_, err = io.Copy(out, r.Body)
			out.Close()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}))
	var sent int64
	return contest{
		name: name, job: job{Target: name, Endpoint: host.Socket(), File: f, Format: store.Raw, RawSize: rawSize}, file: f.Path, url: at + "/curl",
		sent: func() int64 {
			n := sent
			sent = 0
			if all, err := filepath.Glob(filepath.Join(host.Pool(), "*")); err == nil && len(all) > 0 {
				n = onDisk(t, all[0])
			}
			return n
		},
		check: func(t *testing.T) { emptied(t, l, f, host.Pool()) },
		hand:  []byHand{byVirsh(host, f, rawSize)},
		note:  "beside curl to a program that writes a file",
	}
}
