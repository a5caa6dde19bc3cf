//go:build e2e

package netboot

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

// Firmware that boots by HTTPS only loads iPXE, which goes on by HTTP.
func TestFirmwareOfHTTPSGetsEnrolled(t *testing.T) {
	ctx := scenario(t)
	certificates, err := vm.NewBootCertificates(netip.MustParseAddr(lab.ServerAddress), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	m := machine("w1", "61")
	rack := startRack(ctx, t, lab.Lab{Machines: []lab.Machine{m},
		ServeArgs: []string{"--boot-tls-cert", file("crt", certificates.Server), "--boot-tls-key", file("key", certificates.Key)}})
	serveArmed(ctx, t, rack, m)
	config := rack.Config(m)
	config.HTTPBoot = true
	config.FirmwareKey, config.FirmwareData = vm.FirmwareCAs, file("cacerts", certificates.CA)
	startsKernel(ctx, t, rack, m, config)
	if _, err := rack.Guests[m.Name].Console.Wait(ctx, 0, regexp.MustCompile(`URI: https://10\.77\.0\.1:8444/boot/52-54-00-77-00-61/snponly\.efi`)); err != nil {
		t.Fatal(err)
	}
	getsEnrolled(ctx, t, rack, m)
	whySays(ctx, t, rack, m, "DISCOVER from http-boot", "fetches snponly.efi by UEFI HTTPS boot", "fetches demo-pxe.vmlinuz")
}

// Behind a relay, UEFI boots by HTTP through the router that the relay is, and so does all
// that comes after it.
func TestMachineBehindARelayGetsEnrolled(t *testing.T) {
	const far, relay = "br1", "10.78.0.1"
	ctx := scenario(t)
	m := machine("w1", "62")
	m.Address = "10.78.0.62"
	rack := startRack(ctx, t, lab.Lab{Machines: []lab.Machine{m},
		Subnets: "    - cidr: 10.78.0.0/24\n      range: {first: 10.78.0.100, last: 10.78.0.199}\n      router: " + relay + "\n"})
	command(ctx, t, "ip", "link", "add", far, "type", "bridge", "forward_delay", "0")
	command(ctx, t, "ip", "link", "set", far, "up")
	t.Cleanup(func() { vm.Unplug(far) })
	h := newHost(ctx, t)
	h.plug("wan", "br0", "10.77.0.254/24")
	h.plug("lan", far, relay+"/24")
	h.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	command(ctx, t, "ip", "route", "add", "10.78.0.0/24", "via", "10.77.0.254")
	h.start("Socket/fallback", "dhcrelay", "-4", "-d", "-a", "-id", "lan", "-iu", "wan", lab.ServerAddress)
	serveArmed(ctx, t, rack, m)
	config := rack.Config(m)
	config.HTTPBoot = true
	command(ctx, t, "ip", "link", "set", config.Tap, "master", far)
	startsKernel(ctx, t, rack, m, config)
	getsEnrolled(ctx, t, rack, m)
	whySays(ctx, t, rack, m, "DISCOVER from http-boot", "fetches snponly.efi by UEFI HTTP boot", "fetches demo-pxe.vmlinuz", m.Address)
}

// Beside another DHCP server, UEFI has its address from that one and its program from us.
func TestMachineBesideAnotherServerGetsEnrolled(t *testing.T) {
	const other = "10.77.0.2"
	ctx := scenario(t)
	m := machine("w1", "63")
	rack := newRack(ctx, t, "", m)
	besideAnother(t, filepath.Join(rack.Site, "cluster.yaml"))
	h := newHost(ctx, t)
	h.plug("eth0", "br0", other+"/24")
	h.start("DHCP, IP range", "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--user=root", "--port=0", "--no-ping", "--dhcp-authoritative",
		"--dhcp-range=10.77.0.50,10.77.0.69,1h", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--dhcp-option=option:router,"+lab.ServerAddress)
	serveArmed(ctx, t, rack, m)
	startsKernel(ctx, t, rack, m, rack.Config(m))
	getsEnrolled(ctx, t, rack, m)
	whySays(ctx, t, rack, m, "from the server "+other, "answered on port 4011, boot program snponly.efi", "fetches demo-pxe.vmlinuz")
}

// besideAnother leaves the addresses to another server: no subnet is ours.
func besideAnother(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, after, ours := strings.Cut(string(text), "  dhcp: authoritative\n")
	subnets := strings.Index(after, "  subnets:\n")
	ipxe := strings.Index(after, "  ipxe:\n")
	if !ours || subnets < 0 || ipxe < subnets {
		t.Fatalf("the rack's cluster.yaml has another boot:\n%s", text)
	}
	if err := os.WriteFile(path, []byte(before+"  dhcp: proxy\n"+after[:subnets]+after[ipxe:]), 0o644); err != nil {
		t.Fatal(err)
	}
}

// host is another host of the rack: a network namespace, which ends with the test.
type host struct {
	ctx context.Context
	t   *testing.T
	pid int
}

func newHost(ctx context.Context, t *testing.T) *host {
	t.Helper()
	h := &host{ctx: ctx, t: t}
	h.pid = h.started("^up$", "unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity")
	return h
}

// plug gives the host a card on a bridge.
func (h *host) plug(card, bridge, cidr string) {
	h.t.Helper()
	port := fmt.Sprintf("h%d-%s", h.pid, card)
	command(h.ctx, h.t, "ip", "link", "add", port, "type", "veth", "peer", "name", card, "netns", strconv.Itoa(h.pid))
	command(h.ctx, h.t, "ip", "link", "set", port, "master", bridge, "up")
	h.run("ip", "address", "add", cidr, "dev", card)
	h.run("ip", "link", "set", card, "up")
}

func (h *host) inside(args ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", h.pid), "--"}, args...)
}

func (h *host) run(args ...string) {
	h.t.Helper()
	command(h.ctx, h.t, h.inside(args...)...)
}

// start runs a program on the host until the test ends, and returns when it has said ready.
func (h *host) start(ready string, args ...string) {
	h.t.Helper()
	h.started(ready, h.inside(args...)...)
}

// started runs a program until the test ends, and returns its process id when it has said ready.
func (h *host) started(ready string, args ...string) int {
	h.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	read, write, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = write, write
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	write.Close()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		read.Close()
	})
	said := vm.Follow(read)
	if _, err := said.Wait(h.ctx, 0, regexp.MustCompile(ready)); err != nil {
		h.t.Fatalf("%s: %v\n%s", cmd, err, strings.Join(said.Tail(20), "\n"))
	}
	return cmd.Process.Pid
}

// command runs a program to its end.
func command(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}
