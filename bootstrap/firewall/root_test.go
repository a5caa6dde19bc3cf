//go:build root

package firewall_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/bootstrap/firewall"
)

// These tests run in a network namespace of their own: make test-root. That is the
// node; others are further namespaces on its bridge.

const node = "10.0.0.11"

// run runs a program to its end.
func run(t *testing.T, stdin string, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// station is another host, with one address.
type station struct {
	t    *testing.T
	work chan func()
}

// plug puts a host on the node's bridge.
func plug(t *testing.T, address string) *station {
	t.Helper()
	s := &station{t: t, work: make(chan func())}
	tid := make(chan int)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and the namespace
		// with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		tid <- unix.Gettid()
		for f := range s.work {
			f()
		}
	}()
	t.Cleanup(func() { close(s.work) })
	name := "p" + strings.ReplaceAll(address, ".", "")
	run(t, "", "ip", "link", "add", name, "type", "veth", "peer", "name", "card")
	run(t, "", "ip", "link", "set", name, "master", "br0", "up")
	run(t, "", "ip", "link", "set", "card", "netns", strconv.Itoa(<-tid))
	s.do(func() {
		run(t, "", "ip", "address", "add", address+"/8", "dev", "card")
		run(t, "", "ip", "link", "set", "card", "up")
	})
	return s
}

// do runs f on this host.
func (s *station) do(f func()) {
	done := make(chan struct{})
	s.work <- func() {
		defer close(done)
		f()
	}
	<-done
}

// reaches returns which of the node's ports answer a connection. One that neither
// answers nor refuses fails the test.
func (s *station) reaches(ports []int) (open []int) {
	s.t.Helper()
	s.do(func() {
		for _, port := range ports {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(node, strconv.Itoa(port)), 30*time.Second)
			switch {
			case err == nil:
				conn.Close()
				open = append(open, port)
			case !errors.Is(err, unix.ECONNREFUSED):
				s.t.Errorf("port %d is not refused aloud: %v", port, err)
			}
		}
	})
	return open
}

// answered says whether a datagram to a port of the node comes back.
func (s *station) answered(port int) (ok bool) {
	s.do(func() {
		conn, err := net.Dial("udp", net.JoinHostPort(node, strconv.Itoa(port)))
		if err != nil {
			s.t.Error(err)
			return
		}
		defer conn.Close()
		// Either the echo or ICMP's refusal comes. A kernel sends one of these a second
		// to a host that has had its share (icmp_ratelimit), so it is asked again; then
		// the refusal may come with the next word.
		for range 30 {
			if _, err = conn.Write([]byte("x")); err == nil {
				_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
				_, err = conn.Read(make([]byte, 1))
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
		}
		if ok = err == nil; !ok && !errors.Is(err, unix.EHOSTUNREACH) {
			s.t.Errorf("UDP port %d is not refused aloud: %v", port, err)
		}
	})
	return ok
}

func TestWhoReachesWhat(t *testing.T) {
	run(t, "", "ip", "link", "set", "lo", "up")
	run(t, "", "ip", "link", "add", "br0", "type", "bridge")
	run(t, "", "ip", "address", "add", node+"/8", "dev", "br0")
	run(t, "", "ip", "link", "set", "br0", "up")
	t.Cleanup(func() { run(t, "", "ip", "link", "delete", "br0") })
	// What listens on a node, and ports of CNIs and exporters.
	tcp, udp := []int{22, 179, 2379, 2380, 4240, 6443, 9100, 10250, 30080, 50500}, []int{53, 8472}
	for _, port := range tcp {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
		}()
	}
	for _, port := range udp {
		c, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			b := make([]byte, 1)
			for {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(b[:n], from)
			}
		}()
	}
	in := firewall.Input{
		APIServer: true, ControlPlanes: addrs(node, "10.0.0.12"), Workers: addrs("10.0.0.21"), Pods: prefixes("10.244.0.0/16"),
		Allow: []firewall.Allow{
			{From: prefixes("10.9.0.0/24"), Ports: []uint16{9100}},
			{From: prefixes("0.0.0.0/0"), Ports: []uint16{53}, UDP: true},
		},
	}
	worker := in
	worker.APIServer = false
	without := func(ports ...int) []int {
		return slices.DeleteFunc(slices.Clone(tcp), func(p int) bool { return slices.Contains(ports, p) })
	}
	hosts := map[string]*station{}
	for name, address := range map[string]string{"control plane": "10.0.0.12", "worker": "10.0.0.21", "pod": "10.244.3.7", "monitoring": "10.9.0.9", "stranger": "10.0.0.99"} {
		hosts[name] = plug(t, address)
	}
	for _, tc := range []struct {
		rules  string
		script string
		tcp    map[string][]int
		udp    map[string][]int
	}{
		{"no table", firewall.Remove(), map[string][]int{"stranger": tcp}, map[string][]int{"stranger": {53, 8472}}},
		{"baseline", firewall.Rules(firewall.Input{}),
			map[string][]int{"control plane": {50500}, "worker": {50500}, "pod": {50500}, "stranger": {50500}},
			map[string][]int{"worker": nil, "stranger": nil}},
		{"control plane", firewall.Rules(in),
			map[string][]int{"control plane": tcp, "worker": without(2379, 2380), "pod": without(2379, 2380), "monitoring": {6443, 9100, 50500}, "stranger": {6443, 50500}},
			map[string][]int{"control plane": {53, 8472}, "worker": {53, 8472}, "pod": {53, 8472}, "stranger": {53}}},
		{"worker", firewall.Rules(worker),
			map[string][]int{"control plane": tcp, "worker": without(2379, 2380), "stranger": {50500}},
			map[string][]int{"stranger": {53}}},
		{"no table again", firewall.Remove(), map[string][]int{"stranger": tcp}, nil},
	} {
		run(t, tc.script, "nft", "--file", "-")
		for name, want := range tc.tcp {
			if got := hosts[name].reaches(tcp); !slices.Equal(got, want) {
				t.Errorf("%s: a %s reaches TCP %v, want %v", tc.rules, name, got, want)
			}
		}
		for name, want := range tc.udp {
			for _, port := range udp {
				if got := hosts[name].answered(port); got != slices.Contains(want, port) {
					t.Errorf("%s: a %s reaches UDP %d: %v", tc.rules, name, port, got)
				}
			}
		}
		// The node itself and what it began are never cut off.
		if conn, err := net.Dial("tcp", node+":10250"); err != nil {
			t.Errorf("%s: the node itself: %v", tc.rules, err)
		} else {
			conn.Close()
		}
	}
}

// The rules take the place of others in one step: connections live on, and other
// tables are as they were.
func TestReplacingTheRulesDisturbsNothingElse(t *testing.T) {
	run(t, "", "ip", "link", "set", "lo", "up")
	others := "table ip kube-proxy {\n\tchain filter-input {\n\t\ttype filter hook input priority filter; policy accept;\n\t}\n}\n"
	run(t, others, "nft", "--file", "-")
	t.Cleanup(func() { run(t, "", "nft", "delete", "table", "ip", "kube-proxy") })
	for _, script := range []string{firewall.Rules(firewall.Input{}), firewall.Rules(controlPlane()), firewall.Rules(controlPlane()), firewall.Remove(), firewall.Remove()} {
		run(t, script, "nft", "--file", "-")
		if got := run(t, "", "nft", "list", "table", "ip", "kube-proxy"); got != others {
			t.Errorf("the other table is now:\n%s", got)
		}
	}
	if got := run(t, "", "nft", "list", "tables"); got != "table ip kube-proxy\n" {
		t.Errorf("tables at the end:\n%s", got)
	}
	// A script that the kernel refuses changes nothing.
	run(t, firewall.Rules(firewall.Input{ControlPlanes: []netip.Addr{netip.MustParseAddr(node)}}), "nft", "--file", "-")
	before := run(t, "", "nft", "list", "ruleset")
	cmd := exec.Command("nft", "--file", "-")
	cmd.Stdin = strings.NewReader(strings.Replace(firewall.Rules(firewall.Input{}), "policy drop", "policy drop; jump nowhere", 1))
	if err := cmd.Run(); err == nil {
		t.Error("a broken script loads")
	}
	if got := run(t, "", "nft", "list", "ruleset"); got != before {
		t.Errorf("after a broken script:\n%s", got)
	}
	run(t, firewall.Remove(), "nft", "--file", "-")
}
