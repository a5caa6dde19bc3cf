//go:build root

package server_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/efiboot"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/catalog"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
	"github.com/imagectl/imagectl/test/vm"
)

// These tests run in a network namespace of their own: make test-root.

const (
	bridge     = "br0"
	serverAddr = "10.98.0.1"
	// relayAddr is the relay's in the network behind it.
	relayAddr = "10.97.0.1"
	httpPort  = 8080
)

var capture = flag.String("capture", "", "append the DHCP requests of each test to a file in this `directory`")

// recording writes down what firmware sends, as a line of hexadecimal per packet:
// the captures in pxe/dhcp/testdata come from here.
type recording struct {
	net.PacketConn
	t *testing.T
}

func (r *recording) ReadFrom(p []byte) (int, net.Addr, error) {
	n, from, err := r.PacketConn.ReadFrom(p)
	if err == nil {
		name := filepath.Join(*capture, strings.NewReplacer("/", "-", " ", "-").Replace(r.t.Name())+".hex")
		f, openErr := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if openErr != nil {
			return 0, nil, openErr
		}
		fmt.Fprintf(f, "%x\n", p[:n])
		err = f.Close()
	}
	return n, from, err
}

// rack is a boot server on a bridge.
type rack struct {
	server.Journal
	recorded chan struct{}
}

// Record implements boot.Recorder and wakes waitEvent.
func (r *rack) Record(e boot.Event) {
	r.Journal.Record(e)
	select {
	case r.recorded <- struct{}{}:
	default:
	}
}

// waitEvent waits until a machine has come to a stage for the count-th time.
func (r *rack) waitEvent(t *testing.T, n int, stage boot.Stage, count int) {
	t.Helper()
	limit := time.After(15 * time.Minute)
	for r.came(n, stage) < count {
		select {
		case <-r.recorded:
		case <-limit:
			t.Fatalf("machine %d came to stage %s %d times, want %d; its events:\n%s", n, stage, r.came(n, stage), count, stages(r.Events(mac(n))))
		}
	}
}

// came is how often a machine has come to a stage.
func (r *rack) came(n int, stage boot.Stage) (times int) {
	for _, e := range r.Events(mac(n)) {
		if e.Stage == stage {
			times++
		}
	}
	return times
}

// waitScript waits until a machine asks for its script, and then for a line of it on
// the console. The guest that it returns is the one that did.
func (r *rack) waitScript(t *testing.T, g *vm.Guest, n int, line string) *vm.Guest {
	t.Helper()
	g = r.asksForScript(t, g, n)
	wait(t, g, line)
	return g
}

// asksForScript waits until a machine asks for its script. iPXE waits 2 s for a
// proxy's offer and UEFI 4 s for that or 5 s for an answer by HTTP; after that they
// try their disk. A host that stood still for so long has shown nothing about the
// server, so the machine is switched on again.
func (r *rack) asksForScript(t *testing.T, g *vm.Guest, n int) *vm.Guest {
	t.Helper()
	const tries = 3
	for try := 1; r.bootsDisk(t, g, n); try++ {
		t.Logf("machine %d booted its disk and has no script, try %d of %d; its events:\n%s", n, try, tries, stages(r.Events(mac(n))))
		if try == tries {
			t.FailNow()
		}
		g.Stop()
		g = powerOn(t, g.Config)
	}
	return g
}

// bootsDisk waits until a machine asks for its script, or else boots its disk: then
// it is true. The server records the request before the machine can see an answer.
func (r *rack) bootsDisk(t *testing.T, g *vm.Guest, n int) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	disk := make(chan error, 1)
	go func() {
		_, err := g.Console.Wait(ctx, 0, regexp.MustCompile(vm.Sentinel))
		disk <- err
	}()
	for r.came(n, boot.StageScript) == 0 {
		select {
		case <-r.recorded:
		case err := <-disk:
			if r.came(n, boot.StageScript) > 0 {
				return false
			}
			if err != nil {
				t.Fatalf("machine %d comes neither to its script nor to its disk: %v; its events:\n%s", n, err, stages(r.Events(mac(n))))
			}
			return true
		}
	}
	return false
}

type states map[string]machine.State

func (s states) State(name string) machine.State { return s[name] }

// memory is a blob store.
type memory map[string][]byte

type nopCloser struct{ *bytes.Reader }

func (nopCloser) Close() error { return nil }

func (m memory) open(sha string) (io.ReadSeekCloser, error) {
	b, ok := m[sha]
	if !ok {
		return nil, os.ErrNotExist
	}
	return nopCloser{bytes.NewReader(b)}, nil
}

func (m memory) add(name string, content []byte) boot.Blob {
	sum := sha256.Sum256(content)
	sha := hex.EncodeToString(sum[:])
	m[sha] = content
	return boot.Blob{Name: name, SHA256: sha, Size: int64(len(content))}
}

// installer is what a rack's machines are given to start: an architecture as flatcar.arch
// writes it, and its kernel.
type installer struct {
	arch   string
	kernel []byte
	args   []string
}

func startRack(t *testing.T, machines []plan.Machine, st states, changes ...func(*listen.Config, *server.Config)) *rack {
	t.Helper()
	return startRackWith(t, installer{"amd64", kernelContent(t), []string{"console=ttyS0"}}, machines, st, changes...)
}

func startRackWith(t *testing.T, in installer, machines []plan.Machine, st states, changes ...func(*listen.Config, *server.Config)) *rack {
	t.Helper()
	link, err := net.InterfaceByName(bridge)
	if err != nil {
		if err := vm.Bridge(bridge, serverAddr+"/24"); err != nil {
			t.Fatal(err)
		}
	} else if link.Flags&net.FlagUp == 0 {
		t.Fatal("the bridge is down")
	}
	blobs := memory{}
	kernel := blobs.add("vmlinuz", in.kernel)
	initrd := blobs.add("initrd.gz", bytes.Repeat([]byte("not an initrd\n"), 5000))
	address := netip.MustParseAddr(serverAddr)
	ports := listen.Config{Interface: bridge, Address: address, DHCP: true, HTTPPort: httpPort}
	var changed server.Config
	for _, change := range changes {
		change(&ports, &changed)
	}
	var boot6 plan.DHCP6
	if ports.Address6.IsValid() {
		boot6 = ipv6(t)
	}
	nbp := plan.NBPIPXE
	if changed.GRUB != nil {
		nbp = plan.NBPGRUB
	}
	mode := plan.DHCPAuthoritative
	if ports.BootServer {
		mode = plan.DHCPProxy
	}
	cat, err := catalog.New(catalog.Config{
		Plan: plan.Plan{Machines: machines, Flatcar: plan.Flatcar{Arch: in.arch}, Boot: plan.Boot{Unknown: plan.Discover, InstallerArgs: in.args, NBP: nbp, DHCP: mode, DHCP6: boot6, Subnets: []plan.Subnet{
			{Prefix: netip.MustParsePrefix("10.98.0.0/24"), First: netip.MustParseAddr("10.98.0.100"), Last: netip.MustParseAddr("10.98.0.120"), LeaseSeconds: 3600},
			{Prefix: netip.MustParsePrefix("10.97.0.0/24"), First: netip.MustParseAddr("10.97.0.100"), Last: netip.MustParseAddr("10.97.0.120"),
				Router: netip.MustParseAddr(relayAddr), MTU: 1500,
				Routes:       []cluster.SubnetRoute{{To: netip.MustParsePrefix("192.0.2.0/24"), Via: netip.MustParseAddr("10.97.0.99")}},
				LeaseSeconds: 3600},
		}}},
		Kernel: kernel, Initrd: []boot.Blob{initrd}, States: st,
		Ignition: func(string) ([]byte, error) { return []byte(`{"ignition":{"version":"3.4.0"}}`), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := listen.Open(t.Context(), ports)
	if err != nil {
		t.Fatal(err)
	}
	if *capture != "" && sockets.DHCP != nil {
		sockets.DHCP = &recording{PacketConn: sockets.DHCP, t: t}
	}
	if rom, ok := changed.Sockets.DHCP.(*plainROM); ok {
		rom.PacketConn, sockets.DHCP = sockets.DHCP, rom
	}
	if *capture != "" && sockets.DHCP6 != nil {
		sockets.DHCP6 = &recording{PacketConn: sockets.DHCP6, t: t}
	}
	ipxe := readFile(t, "/usr/lib/ipxe/snponly.efi")
	leases, err := dhcp.OpenJournal(filepath.Join(t.TempDir(), "leases"))
	if err != nil {
		t.Fatal(err)
	}
	leases6, err := dhcp6.OpenJournal(filepath.Join(t.TempDir(), "leases6"))
	if err != nil {
		t.Fatal(err)
	}
	programs := map[boot.Firmware]httpboot.Program{boot.UEFIx64: {Blob: blobs.add("snponly.efi", ipxe)}}
	if changed.IPXEArm64 != nil {
		programs[boot.UEFIarm64] = httpboot.Program{Blob: blobs.add(server.IPXEName(boot.UEFIarm64), changed.IPXEArm64)}
	}
	r := &rack{recorded: make(chan struct{}, 1)}
	tasks, err := server.BootTasks(server.Config{
		Sockets: sockets, Address: address, HTTPPort: httpPort, Source: cat, Open: blobs.open,
		IPXEBIOS: readFile(t, "/usr/lib/ipxe/undionly.kpxe"), IPXEUEFI: ipxe, IPXEArm64: changed.IPXEArm64, Shim: changed.Shim, GRUB: changed.GRUB,
		HTTPBoot: programs,
		BootTLS:  changed.BootTLS, BootTLSPort: changed.BootTLSPort, Meters: changed.Meters,
		Address6: ports.Address6, DUID: dhcp6.ServerDUID([]byte("a rack")), Leases6: leases6,
		Leases: leases, Recorder: r, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx, tasks...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		leases.Close()
		leases6.Close()
	})
	return r
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// guest is a machine with a sentinel disk that prefers its network card.
func guest(t *testing.T, fw vm.Firmware, n int, changes ...func(*vm.Config)) (*vm.Guest, []byte) {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	if err := vm.WriteSentinelDisk(disk, fw); err != nil {
		t.Fatal(err)
	}
	before := digest(t, disk)
	tap := fmt.Sprintf("tap%d", n)
	if err := vm.Tap(tap, bridge); err != nil {
		t.Fatal(err)
	}
	cfg := vm.Config{Name: string(fw), Firmware: fw, Accel: "tcg", CPUs: 1, MemoryMiB: 512, Disk: disk,
		DiskSerial: "sentinel", MAC: mac(n).String(), UUID: fmt.Sprintf("12345678-9abc-4def-8123-%012d", n), Serial: fmt.Sprintf("SN %d", n), Tap: tap, Dir: dir}
	for _, change := range changes {
		change(&cfg)
	}
	return powerOn(t, cfg), before
}

func powerOn(t *testing.T, cfg vm.Config) *vm.Guest {
	t.Helper()
	g, err := vm.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Stop()
		if t.Failed() {
			t.Logf("console:\n%s", strings.Join(g.Console.Tail(60), "\n"))
		}
	})
	return g
}

func mac(n int) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0x98, 0, byte(n)} }

func digest(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return h.Sum(nil)
}

// wait waits for a match of an expression on the console and returns its groups.
func wait(t *testing.T, g *vm.Guest, expr string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	m, err := g.Console.Wait(ctx, 0, regexp.MustCompile(expr))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func stages(events []boot.Event) string {
	var s strings.Builder
	for _, e := range events {
		fmt.Fprintf(&s, "%s: %s\n", e.Stage, e.Detail)
	}
	return s.String()
}

func TestUnarmedMachineBootsItsOwnDisk(t *testing.T) {
	for i, c := range []struct {
		fw     vm.Firmware
		method string
	}{{vm.SeaBIOS, "exit"}, {vm.SeaBIOS, "sanboot"}, {vm.OVMF, "exit"}} {
		t.Run(fmt.Sprintf("%s by %s", c.fw, c.method), func(t *testing.T) {
			n := i + 1
			r := startRack(t, []plan.Machine{{Name: "node1", MACs: []net.HardwareAddr{mac(n)}, Address: netip.MustParseAddr("10.98.0.11"), LocalBoot: c.method}},
				states{"node1": machine.Approved})
			g, before := guest(t, c.fw, n)
			start := time.Now()
			g = r.waitScript(t, g, n, "imagectl: machine node1")
			t.Logf("script after %s", time.Since(start))
			wait(t, g, vm.Sentinel)
			t.Logf("disk after %s", time.Since(start))
			g.Stop()
			if after := digest(t, g.Disk); !bytes.Equal(before, after) {
				t.Error("the disk has changed")
			}
			t.Logf("events:\n%s", stages(r.Events(mac(n))))
		})
	}
}

// nvram is a machine's firmware variables as its operating system sees them:
// BootCurrent is there only then.
type nvram struct {
	vm.NVRAM
	current []byte
}

func (n nvram) Read(name string) ([]byte, error) {
	if name == "BootCurrent" {
		return n.current, nil
	}
	return n.NVRAM.Read(name)
}

// firstPartition reads the first entry of a disk's partition table where sgdisk
// puts it.
func firstPartition(t *testing.T, disk string) efiboot.Partition {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e := make([]byte, 128)
	if _, err := f.ReadAt(e, 2*512); err != nil {
		t.Fatal(err)
	}
	first, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
	return efiboot.Partition{Number: 1, First: first, Sectors: last - first + 1, GUID: [16]byte(e[16:32])}
}

// OVMF is the judge of package efiboot: with the disk's entry behind the network
// entry it boots the disk as soon as iPXE says exit, and tries nothing else.
func TestArrangedUEFIMachineBootsItsDiskRightAfterTheNetwork(t *testing.T) {
	const n = 21
	r := startRack(t, []plan.Machine{{Name: "node1", MACs: []net.HardwareAddr{mac(n)}, Address: netip.MustParseAddr("10.98.0.11"), LocalBoot: "exit"}},
		states{"node1": machine.Approved})
	g, _ := guest(t, vm.OVMF, n)
	started := wait(t, g, `BdsDxe: starting Boot([0-9A-F]{4}) "UEFI PXEv4`)
	g = r.waitScript(t, g, n, "imagectl: machine node1")
	g.Stop()
	current, err := hex.DecodeString(started[1])
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(current)
	vars := nvram{g.NVRAM(), current}
	option := efiboot.DiskOption(efiboot.Prefix+"node1/disk", firstPartition(t, g.Disk), efiboot.Program("amd64"))
	change, err := efiboot.Arrange(vars, option)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("boot order %s, then %s", efiboot.Numbers(change.Before), efiboot.Numbers(change.After()))
	if len(change.Before) < 4 || change.Before[0] == change.Before[1] {
		t.Errorf("this firmware has no other network entries to try: the boot order was %s", efiboot.Numbers(change.Before))
	}
	// Twice: the firmware must not take its own order back.
	for range 2 {
		g = powerOn(t, g.Config)
		start := time.Now()
		wait(t, g, "imagectl: machine node1")
		script := time.Now()
		t.Logf("script after %s", script.Sub(start))
		wait(t, g, vm.Sentinel)
		t.Logf("disk %s later", time.Since(script))
		g.Stop()
		var tried []string
		for _, line := range g.Console.Tail(1000) {
			if m := regexp.MustCompile(`BdsDxe: loading Boot[0-9A-F]{4} "([^"]*)"`).FindStringSubmatch(line); m != nil {
				tried = append(tried, m[1])
			}
		}
		if len(tried) != 2 || !strings.HasPrefix(tried[0], "UEFI PXEv4") || tried[1] != option.Description {
			t.Errorf("the firmware tried %q, want its first network entry and ours", tried)
		}
		if again, err := efiboot.Arrange(vars, option); err != nil || !again.Empty() {
			t.Errorf("the firmware changed the order: %s, %v", efiboot.Numbers(again.Before), err)
		}
	}
}

func TestUnknownMachineGetsTheInstaller(t *testing.T) {
	for i, fw := range []vm.Firmware{vm.SeaBIOS, vm.OVMF} {
		t.Run(string(fw), func(t *testing.T) {
			n := i + 11
			// What it gets is no kernel, so iPXE says so and tries again. A smaller file
			// would be run as it is by iPXE under BIOS.
			r := startRackWith(t, installer{"amd64", bytes.Repeat([]byte("not a kernel\n"), 100_000), []string{"console=ttyS0"}}, nil, nil)
			g, _ := guest(t, fw, n)
			r.waitScript(t, g, n, `imagectl: discover \(unknown-machine\)`)
			r.waitEvent(t, n, boot.StageKernel, 2)
			got := stages(r.Events(mac(n)))
			for _, want := range []string{"dhcp: ", "script: discover", "kernel: fetches vmlinuz"} {
				if !strings.Contains(got, want) {
					t.Errorf("no event %q in:\n%s", want, got)
				}
			}
			t.Logf("events:\n%s", got)
		})
	}
}
