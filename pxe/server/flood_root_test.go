//go:build root

package server_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/pxe/boot"
)

// TestMain switches the loopback device of the fresh namespace on: the tests that
// need no root run here too.
func TestMain(m *testing.M) {
	if err := run("ip", "link", "set", "lo", "up"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	m.Run()
}

// station runs f on another host of the bridge: a network namespace with a card
// of its own. Sockets that f opens belong to it.
func station(t *testing.T, f func(card *net.Interface) error) {
	t.Helper()
	ready, plugged, linked, done := make(chan int), make(chan struct{}), make(chan struct{}), make(chan error, 1)
	running, ended := context.WithCancel(t.Context())
	go func() {
		defer ended()
		// The thread is never unlocked: it ends with the goroutine, and the
		// namespace with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ready <- 0
			done <- err
			return
		}
		ready <- unix.Gettid()
		<-plugged
		done <- func() error {
			if err := run("ip", "link", "set", "probe", "up"); err != nil {
				return err
			}
			if err := run("ip", "address", "add", "10.98.0.200/24", "dev", "probe"); err != nil {
				return err
			}
			<-linked
			if err := linkShows(running, "probe", "state UP"); err != nil {
				return err
			}
			card, err := net.InterfaceByName("probe")
			if err != nil {
				return err
			}
			return f(card)
		}()
	}()
	if tid := <-ready; tid != 0 {
		for _, args := range [][]string{
			{"link", "add", "probe0", "type", "veth", "peer", "name", "probe"},
			{"link", "set", "probe0", "master", bridge, "up"},
			{"link", "set", "probe", "netns", strconv.Itoa(tid)},
		} {
			if err := run("ip", args...); err != nil {
				t.Fatal(err)
			}
		}
		close(plugged)
		if err := linkShows(running, "probe0", "state forwarding"); err != nil {
			t.Error(err)
		}
		close(linked)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// linkShows waits until a device is in a state. The kernel brings a link up some time after the
// command, and drops what is sent before.
func linkShows(ctx context.Context, device, state string) error {
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		out, err := exec.Command("ip", "-o", "-d", "link", "show", "dev", device).CombinedOutput()
		if err == nil && strings.Contains(string(out), state) {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("%s does not show %q: %v: %s", device, state, err, out)
		}
	}
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("running %s %q: %w: %s", name, args, err, out)
	}
	return nil
}

// The whole server on real sockets: a foreign DHCP client gets its lease, before
// and after a flood of garbage on every port, and memory stays where it was.
func TestFloodedServerStillAnswers(t *testing.T) {
	var card net.HardwareAddr
	r := startRack(t, nil, nil)
	before := resident(t)
	station(t, func(probe *net.Interface) error {
		card = probe.HardwareAddr
		for i := range 2 {
			client, err := nclient4.New(probe.Name, nclient4.WithTimeout(5*time.Second), nclient4.WithRetry(60))
			if err != nil {
				return err
			}
			lease, err := client.Request(t.Context(), dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003016")))
			client.Close()
			if err != nil {
				return fmt.Errorf("request %d: %w", i, err)
			}
			if got := lease.ACK.YourIPAddr.String(); got != "10.98.0.100" {
				t.Errorf("request %d got %s", i, got)
			}
			if i == 0 {
				if err := flood(); err != nil {
					return err
				}
			}
		}
		resp, err := http.Get(fmt.Sprintf("http://%s:%d/healthz", serverAddr, httpPort))
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	grown := resident(t) - before
	t.Logf("resident memory has grown by %d KiB", grown)
	if grown > 32<<10 {
		t.Errorf("resident memory has grown by %d KiB", grown)
	}
	if got := r.Events(card); len(got) == 0 || got[0].Stage != boot.StageDHCP {
		t.Errorf("the journal has %v", got)
	}
}

// flood sends garbage to all ports, half of it nearly right.
func flood() error {
	r := rand.New(rand.NewPCG(5, 6))
	var conns []net.Conn
	for _, to := range []string{serverAddr + ":67", serverAddr + ":69", serverAddr + ":69", serverAddr + ":67"} {
		c, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		defer c.Close()
		conns = append(conns, c)
	}
	discover, err := dhcpv4.NewDiscovery(net.HardwareAddr{2, 0, 0, 0, 0, 1})
	if err != nil {
		return err
	}
	valid := discover.ToBytes()
	for i := range 60000 {
		b := make([]byte, r.IntN(1400))
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		switch i % 4 {
		case 1:
			b = append([]byte{0, byte(r.IntN(7)), 'a', 0}, b...)
		case 2:
			b = []byte("\x00\x01snponly.efi\x00octet\x00blksize\x00" + strconv.Itoa(r.IntN(70000)) + "\x00")
		case 3:
			b = append([]byte(nil), valid...)
			b[r.IntN(len(b))] ^= byte(r.Uint32())
		}
		// The kernel reports what came back for an earlier packet; that is no matter.
		_, _ = conns[i%4].Write(b)
	}
	for range 200 {
		c, err := net.Dial("tcp4", net.JoinHostPort(serverAddr, strconv.Itoa(httpPort)))
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("GET /files/../../etc/passwd\x00")); err != nil {
			return err
		}
	}
	return nil
}

// resident is this process's memory in KiB.
func resident(t *testing.T) int {
	t.Helper()
	runtime.GC()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(b)
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
