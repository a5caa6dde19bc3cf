package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/catalog"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/funnel"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/metrics"
	"github.com/imagectl/imagectl/pxe/server"
)

// Files in the working directory, for us and for the others.
const (
	largeFile = "large.img"
	// nbpFile and manyFile are TFTP's, under the names that our server gives them.
	nbpFile  = "snponly.efi"
	manyFile = "undionly.kpxe"

	largeSize, nbpSize, manySize = 512 << 20, 16 << 20, 4 << 20
)

// The dynamic range, and the first reserved address.
const firstAddress, lastAddress, firstReserved = "10.97.0.1", "10.99.255.254", "10.100.0.1"

// card is the network card of machine n.
func card(n int) net.HardwareAddr {
	return net.HardwareAddr{0x52, 0x54, 0, byte(n >> 16), byte(n >> 8), byte(n)}
}

// armed is a cluster whose machines are all to be installed.
type armed struct{}

func (armed) State(string) machine.State { return machine.Armed }

// serveOurs runs the boot protocols as imagectl serve does, with its recorders and
// its log, for so many machines.
func serveOurs(ctx context.Context, dir string, machines int) error {
	p := plan.Plan{Cluster: "bench", Boot: plan.Boot{Unknown: plan.Discover,
		Subnets: []plan.Subnet{{Prefix: netip.MustParsePrefix(network), First: netip.MustParseAddr(firstAddress), Last: netip.MustParseAddr(lastAddress), LeaseSeconds: 3600}}}}
	var names []string
	at := netip.MustParseAddr(firstReserved)
	for i := range machines {
		name := fmt.Sprintf("m%d", i)
		names = append(names, name)
		p.Machines = append(p.Machines, plan.Machine{Name: name, MACs: []net.HardwareAddr{card(i)}, Address: at})
		at = at.Next()
	}
	sum, size, err := digest(filepath.Join(dir, largeFile))
	if err != nil {
		return err
	}
	large := boot.Blob{Name: largeFile, SHA256: sum, Size: size}
	c, err := catalog.New(catalog.Config{Plan: p, Kernel: large, Initrd: []boot.Blob{large}, States: armed{},
		Ignition: func(string) ([]byte, error) { return []byte(ignition), nil }})
	if err != nil {
		return err
	}
	read := func(name string) (b []byte) {
		if err == nil {
			b, err = os.ReadFile(filepath.Join(dir, name))
		}
		return b
	}
	nbp, many := read(nbpFile), read(manyFile)
	if err != nil {
		return err
	}
	// Before the sockets: who finds those measures.
	leases, err := dhcp.OpenJournal(filepath.Join(dir, "leases"))
	if err != nil {
		return err
	}
	defer leases.Close()
	sockets, err := listen.Open(ctx, listen.Config{Interface: "rack", Address: netip.MustParseAddr(serverAddress), DHCP: true, HTTPPort: 8080})
	if err != nil {
		return err
	}
	defer sockets.Close()
	boots, err := metrics.New(prometheus.NewRegistry(), funnel.New(names))
	if err != nil {
		return err
	}
	r := &recorders{boots: boots}
	tasks, err := server.BootTasks(server.Config{
		Sockets: sockets, Address: netip.MustParseAddr(serverAddress), HTTPPort: 8080, Source: c,
		Open:     func(string) (io.ReadSeekCloser, error) { return os.Open(filepath.Join(dir, largeFile)) },
		IPXEBIOS: many, IPXEUEFI: nbp, Leases: leases, Recorder: r,
		Meters: server.Meters{DHCP: boots.DHCP(), TFTP: boots.TFTP(), HTTP: boots.HTTP()},
		Log:    slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		return err
	}
	return server.Run(ctx, tasks...)
}

// recorders are imagectl serve's.
type recorders struct {
	boots   *metrics.Boot
	journal server.Journal
}

func (r *recorders) Record(e boot.Event) {
	r.boots.Record(e)
	r.journal.Record(e)
}

// preload leaves as many leases as a full rack row would.
func preload(path string, n int) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if n == 0 {
		return nil
	}
	j, err := dhcp.OpenJournal(path)
	if err != nil {
		return err
	}
	defer j.Close()
	var all []dhcp.Lease
	a := netip.MustParseAddr(firstAddress)
	for i := range n {
		all = append(all, dhcp.Lease{MAC: dhcp.MAC{0x02, 1, 0, byte(i >> 16), byte(i >> 8), byte(i)}, Addr: a, Until: time.Now().Add(time.Hour)})
		a = a.Next()
	}
	return j.Append(all)
}

// ignition is as long as the installer's.
const ignition = `{"ignition":{"version":"3.4.0"},"storage":{"files":[{"path":"/etc/imagectl/node.json","contents":{"source":"data:,%7B%22cluster%22%3A%22bench%22%7D"}}]},"systemd":{"units":[{"name":"bootstrapd.service","enabled":true}]}}`

// makeFile makes a file of bytes that nothing can make smaller.
func makeFile(path string, size int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	random, err := os.Open("/dev/urandom")
	if err == nil {
		_, err = io.CopyN(f, random, int64(size))
		err = errors.Join(err, random.Close())
	}
	return errors.Join(err, f.Close())
}

func digest(path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), n, err
}
