//go:build root

package vip_test

import (
	"net/netip"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/bootstrap/vip"
)

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// neighbour is a host in a network namespace of its own, at the other end of a cable.
func neighbour(t *testing.T, name, script string) func(string) string {
	t.Helper()
	work, tid := make(chan func()), make(chan int)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends, and the namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		tid <- unix.Gettid()
		for f := range work {
			f()
		}
	}()
	t.Cleanup(func() { close(work) })
	sh(t, "ip link add "+name+" type veth peer name card && ip link set card netns "+strconv.Itoa(<-tid)+" && ip link set "+name+" master br0 up")
	do := func(script string) (out string) {
		done := make(chan struct{})
		work <- func() {
			defer close(done)
			out = sh(t, script)
		}
		<-done
		return out
	}
	do(script)
	return do
}

// The kernel's side, in this test's network namespace: make test-root. A neighbour has to
// take an announcement for what it is, and the kernel has to forget an address by itself.
func TestTheKernelsSide(t *testing.T) {
	sh(t, `ip link set lo up; ip link add br0 type bridge; ip addr add 10.0.0.11/24 dev br0
echo 0 >/proc/sys/net/ipv6/conf/br0/accept_dad; ip addr add fd00:10::11/64 dev br0 nodad; ip link set br0 up`)
	t.Cleanup(func() { sh(t, "ip link del br0") })
	client := neighbour(t, "p1", "ip addr add 10.0.0.99/24 dev card; ip addr add fd00:10::99/64 dev card nodad; ip link set card up")
	node, addresses := netip.MustParseAddr("10.0.0.11"), []netip.Addr{netip.MustParseAddr("10.0.0.100"), netip.MustParseAddr("fd00:10::100")}
	var k vip.Kernel
	have := func() string { return sh(t, "ip -o addr show dev br0 | grep -E '10.0.0.100|fd00:10::100' || true") }
	if err := k.Drop(addresses); err != nil {
		t.Errorf("dropping what is nowhere: %v", err)
	}
	if err := k.Hold(netip.MustParseAddr("10.0.0.12"), addresses, time.Minute); err == nil || !strings.Contains(err.Error(), "no link has this machine's address 10.0.0.12") {
		t.Errorf("for a machine that this is not: %v", err)
	}
	var held time.Time
	for range 2 { // a second time renews it
		held = time.Now()
		if err := k.Hold(node, addresses, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if got := have(); strings.Count(got, "10.0.0.100/32") != 1 || strings.Count(got, "fd00:10::100/128") != 1 || strings.Count(got, "deprecated") != 2 || strings.Contains(got, "tentative") {
		t.Errorf("the kernel has\n%s", got)
	} else {
		// It counts down from a minute as we look.
		gone := int(time.Since(held)/time.Second) + 1
		for _, life := range regexp.MustCompile(`valid_lft (\d+)sec preferred_lft 0sec`).FindAllStringSubmatch(got, -1) {
			if left, err := strconv.Atoi(life[1]); err != nil || left > 60 || left < 60-gone {
				t.Errorf("a minute's life of at most %d s ago: %s", gone, got)
			}
		}
		if n := strings.Count(got, " preferred_lft 0sec"); n != 2 {
			t.Errorf("%d lifetimes in\n%s", n, got)
		}
	}
	// The neighbour believes that the address is somewhere else, until it is announced.
	mac := strings.TrimSpace(sh(t, "ip -o link show br0 | grep -o 'link/ether [^ ]*' | cut -d' ' -f2"))
	for _, a := range []string{"10.0.0.100", "fd00:10::100"} {
		client("ip neigh replace " + a + " lladdr 02:00:00:00:00:66 dev card nud stale")
		if got := client("ip neigh show " + a); !strings.Contains(got, "02:00:00:00:00:66") {
			t.Fatal(got)
		}
	}
	if err := k.Announce(node, addresses); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.0.0.100", "fd00:10::100"} {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if got := client("ip neigh show " + a); strings.Contains(got, mac) {
				break
			} else if time.Now().After(end) {
				t.Fatalf("after the announcement the neighbour has %s, want %s", got, mac)
			}
		}
	}
	client("ping -c 1 -W 5 10.0.0.100 && ping -c 1 -W 5 fd00:10::100")
	// Source addresses stay the machine's own.
	if got := sh(t, "ip route get 10.0.0.99; ip route get fd00:10::99"); !strings.Contains(got, "src 10.0.0.11 ") || !strings.Contains(got, "src fd00:10::11 ") {
		t.Errorf("connections come from\n%s", got)
	}
	if err := k.Drop(addresses); err != nil || have() != "" {
		t.Errorf("after dropping: %v %s", err, have())
	}
	// Nobody renews it: the kernel forgets it, after its time and not much later.
	began := time.Now()
	if err := k.Hold(node, addresses, 2*time.Second); err != nil {
		t.Fatal(err)
	}
	for have() != "" {
		if time.Since(began) > 20*time.Second {
			t.Fatalf("the kernel keeps\n%s", have())
		}
		time.Sleep(10 * time.Millisecond)
	}
	took := time.Since(began)
	t.Logf("a lifetime of 2 s ended after %.2f s", took.Seconds())
	if took < 1900*time.Millisecond {
		t.Errorf("it was gone after %v", took)
	}
	// The machine's own address is never taken away, even if it is the same.
	if err := k.Drop([]netip.Addr{node}); err != nil || !strings.Contains(sh(t, "ip -o addr show dev br0"), "10.0.0.11/24") {
		t.Errorf("the machine's own address: %v", err)
	}
}
