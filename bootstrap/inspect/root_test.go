//go:build root

package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// These tests run in namespaces of their own for network, processes and mounts: make
// test-root. Each compares with the program that a person would have used.

func run(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s%s", strings.Join(argv, " "), err, out, errOut.Bytes())
	}
	return string(out)
}

func readJSON[T any](t *testing.T, argv ...string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(run(t, argv...)), &v); err != nil {
		t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	return v
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: got\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestProcessesAreThoseOfPs(t *testing.T) {
	s := New("", time.Now)
	child := exec.Command("sleep", "4321")
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	got, err := s.Processes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ours, theirs []string
	seen := false
	for _, p := range got.GetProcesses() {
		line := fmt.Sprintf("%d %d %s %s", p.GetPid(), p.GetParent(), p.GetUser(), p.GetCommand())
		if p.GetPid() == uint32(child.Process.Pid) {
			seen = p.GetCommand() == "sleep 4321" && p.GetUid() == 65534 && p.GetResident() > 0
		}
		ours = append(ours, line)
	}
	ps := 0
	for line := range strings.Lines(run(t, "ps", "-ww", "-eo", "pid=,ppid=,euser:32=,args=")) {
		f := strings.Fields(line)
		if f[3] == "ps" {
			ps++
			continue // was not there before
		}
		theirs = append(theirs, strings.Join(f, " "))
	}
	if ps != 1 {
		t.Fatalf("ps shows itself %d times", ps)
	}
	same(t, "processes", ours, theirs)
	if !seen {
		t.Errorf("the child is not as it should be:\n%s", strings.Join(ours, "\n"))
	}
	total := strings.Fields(run(t, "sh", "-c", "grep MemTotal /proc/meminfo"))[1]
	if want, _ := strconv.ParseUint(total, 10, 64); got.GetMemoryTotal() != want*1024 {
		t.Errorf("memory: got %d, want %d KiB", got.GetMemoryTotal(), want)
	}
}

func TestNetworkIsThatOfIpAndSs(t *testing.T) {
	s := New("", time.Now)
	for _, line := range []string{
		"link add name va type veth peer name vb", "link add name br0 type bridge", "link set vb master br0", "link set va up", "link set vb up", "link set br0 up",
		"addr add 192.0.2.1/24 dev va", "addr add 192.0.2.2/24 dev va", "addr add 2001:db8::1/64 dev va nodad", "link set va mtu 1400",
		"route add 198.51.100.0/24 via 192.0.2.254 metric 77", "route add default via 192.0.2.253", "route add blackhole 203.0.113.0/24",
		"route add 198.51.100.7 table 100 dev va", "-6 route add 2001:db8:1::/48 via 2001:db8::2", "route add 10.1.0.0/16 nexthop via 192.0.2.3 nexthop via 192.0.2.4",
	} {
		run(t, append([]string{"ip"}, strings.Fields(line)...)...)
	}
	l, err := net.Listen("tcp4", "192.0.2.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", "192.0.2.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	u, err := net.ListenPacket("udp6", "[2001:db8::1]:7778")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()

	// Links come up, and their own IPv6 addresses and routes, a moment after they are told to.
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		links := readJSON[[]struct {
			Name  string `json:"ifname"`
			State string `json:"operstate"`
		}](t, "ip", "-j", "link")
		up := 0
		for _, l := range links {
			if l.Name != "lo" && l.State == "UP" {
				up++
			}
		}
		if own := run(t, "ip", "-6", "-o", "addr", "show", "scope", "link"); up == 3 && strings.Count(own, "\n") == 3 && !strings.Contains(own, "tentative") {
			break
		} else if time.Now().After(end) {
			t.Fatalf("%d links are up, of 3, and have\n%s", up, own)
		}
	}

	got, err := s.Network(t.Context(), &api.NetworkRequest{})
	if err != nil {
		t.Fatal(err)
	}
	type ipLink struct {
		Name      string `json:"ifname"`
		Index     int    `json:"ifindex"`
		MTU       int    `json:"mtu"`
		State     string `json:"operstate"`
		Master    string `json:"master"`
		Address   string `json:"address"`
		Addresses []struct {
			Local  string `json:"local"`
			Prefix int    `json:"prefixlen"`
		} `json:"addr_info"`
	}
	var ours, theirs []string
	for _, l := range got.GetLinks() {
		mac := l.GetMac()
		if l.GetName() == "lo" {
			mac = "00:00:00:00:00:00" // which is none
		}
		ours = append(ours, fmt.Sprintf("%d %s %d %s %s %s %v", l.GetIndex(), l.GetName(), l.GetMtu(), l.GetState(), l.GetMaster(), mac, slices.Sorted(slices.Values(l.GetAddresses()))))
	}
	for _, l := range readJSON[[]ipLink](t, "ip", "-j", "addr") {
		var all []string
		for _, a := range l.Addresses {
			all = append(all, fmt.Sprintf("%s/%d", a.Local, a.Prefix))
		}
		slices.Sort(all)
		theirs = append(theirs, fmt.Sprintf("%d %s %d %s %s %s %v", l.Index, l.Name, l.MTU, strings.ToLower(l.State), l.Master, l.Address, all))
	}
	same(t, "links", ours, theirs)

	type ipRoute struct {
		Type     string `json:"type"`
		Dst      string `json:"dst"`
		Gateway  string `json:"gateway"`
		Dev      string `json:"dev"`
		Source   string `json:"prefsrc"`
		Metric   int    `json:"metric"`
		Protocol string `json:"protocol"`
		Nexthops []struct {
			Gateway string `json:"gateway"`
			Dev     string `json:"dev"`
		} `json:"nexthops"`
	}
	ours, theirs = nil, nil
	for _, r := range got.GetRoutes() {
		d := strings.TrimSuffix(strings.TrimSuffix(r.GetDestination(), "/32"), "/128")
		if d == "0.0.0.0/0" || d == "::/0" {
			d = "default"
		}
		ours = append(ours, fmt.Sprintf("%s %s via %s dev %s src %s metric %d", r.GetType(), d, r.GetGateway(), r.GetLink(), r.GetSource(), r.GetMetric()))
	}
	for _, family := range []string{"-4", "-6"} {
		for _, r := range readJSON[[]ipRoute](t, "ip", "-j", "-N", family, "route", "show", "table", "all") {
			kind := r.Type
			// -N writes kinds as numbers too.
			if n, err := strconv.Atoi(kind); err == nil {
				kind = routeType(n)
			}
			if kind == "" {
				kind = "unicast"
			}
			line := func(gateway, dev string) {
				theirs = append(theirs, fmt.Sprintf("%s %s via %s dev %s src %s metric %d", kind, r.Dst, gateway, dev, r.Source, r.Metric))
			}
			if len(r.Nexthops) == 0 {
				line(r.Gateway, r.Dev)
			}
			for _, h := range r.Nexthops {
				line(h.Gateway, h.Dev)
			}
		}
	}
	same(t, "routes", ours, theirs)

	ours, theirs = nil, nil
	for _, c := range got.GetSockets() {
		ours = append(ours, fmt.Sprintf("%s %s %s %s %s,pid=%d", c.GetProtocol(), c.GetState(), c.GetLocal(), c.GetRemote(), c.GetProcess(), c.GetPid()))
	}
	for line := range strings.Lines(run(t, "ss", "-Hntuap")) {
		f := strings.Fields(line)
		process, pid := "", "0"
		if len(f) > 6 {
			process, _, _ = strings.Cut(strings.TrimPrefix(f[6], `users:(("`), `"`)
			_, pid, _ = strings.Cut(f[6], "pid=")
			pid, _, _ = strings.Cut(pid, ",")
		}
		theirs = append(theirs, fmt.Sprintf("%s %s %s %s %s,pid=%s", f[0], f[1], strings.ReplaceAll(f[4], "*:*", "[::]:*"), f[5], process, pid))
	}
	same(t, "sockets", ours, theirs)
	if len(ours) != 4 {
		t.Errorf("%d sockets are open, want 4", len(ours))
	}
}

func TestDisksAreThoseOfLsblkAndFindmnt(t *testing.T) {
	s := New("", time.Now)
	dir := t.TempDir()
	run(t, "mount", "--make-rprivate", "/")
	at := filepath.Join(dir, "a b")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-t", "tmpfs", "-o", "size=8m", "some thing", at)
	defer run(t, "umount", at)
	if err := os.WriteFile(filepath.Join(at, "f"), make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := s.Disks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	type device struct {
		Name, Type, Pkname string
		Size               uint64
		RO, RM, Rota       bool
		Mountpoints        []*string
	}
	var ours, theirs []string
	for _, d := range got.GetDevices() {
		kind := d.GetType()
		if kind == "zram" {
			kind = "disk"
		}
		ours = append(ours, fmt.Sprintf("%s %s of %s %d %v %v %v", d.GetName(), kind, d.GetParent(), d.GetSize(), d.GetReadOnly(), d.GetRemovable(), d.GetRotational()))
	}
	all := readJSON[struct{ Blockdevices []device }](t, "lsblk", "-Jbl", "-o", "NAME,TYPE,PKNAME,SIZE,RO,RM,ROTA")
	for _, d := range all.Blockdevices {
		if d.Size == 0 {
			continue // lsblk shows a zram device that is not set up
		}
		theirs = append(theirs, fmt.Sprintf("%s %s of %s %d %v %v %v", d.Name, d.Type, d.Pkname, d.Size, d.RO, d.RM, d.Rota))
	}
	// Loop devices come and go: other tests of this machine use them.
	notLoop := func(line string) bool { return strings.HasPrefix(line, "loop") }
	same(t, "devices", slices.DeleteFunc(ours, notLoop), slices.DeleteFunc(theirs, notLoop))

	type mount struct {
		Target, Source, FSType string
		Size, Used, Avail      uint64
	}
	found := readJSON[struct{ Filesystems []mount }](t, "findmnt", "-Jbl", "-o", "TARGET,SOURCE,FSTYPE,SIZE,USED,AVAIL", "--mountpoint", at).Filesystems
	if len(found) != 1 {
		t.Fatalf("findmnt has %v", found)
	}
	i := slices.IndexFunc(got.GetFileSystems(), func(f *api.NodeFileSystem) bool { return f.GetTarget() == at })
	if i < 0 {
		t.Fatalf("%s is not listed", at)
	}
	f := got.GetFileSystems()[i]
	if g, w := fmt.Sprint(f.GetSource(), f.GetType(), f.GetSize(), f.GetUsed(), f.GetAvailable()), fmt.Sprint(found[0].Source, found[0].FSType, found[0].Size, found[0].Used, found[0].Avail); g != w || f.GetUsed() != 3<<20 {
		t.Errorf("got  %s\nwant %s", g, w)
	}
	// Every file system that df would show is there.
	for line := range strings.Lines(run(t, "findmnt", "-rn", "--real", "-o", "TARGET")) {
		target := strings.ReplaceAll(strings.TrimSpace(line), `\x20`, " ")
		if !slices.ContainsFunc(got.GetFileSystems(), func(f *api.NodeFileSystem) bool { return f.GetTarget() == target }) {
			t.Errorf("findmnt has %s", target)
		}
	}
}

func TestKernelLogIsThatOfDmesg(t *testing.T) {
	s := New("", time.Now)
	mark := fmt.Sprintf("imagectl test %d", time.Now().UnixNano())
	say := func(text string) {
		t.Helper()
		if err := os.WriteFile("/dev/kmsg", []byte("<13>"+text+"\n"), 0); err != nil {
			t.Fatal(err)
		}
	}
	say(mark + " one \t tab")
	var got []string
	ours := func(m *api.DmesgResponse) string {
		return fmt.Sprintf("%d %d %.6f %s", m.GetFacility(), m.GetLevel(), m.GetSinceBoot().AsDuration().Seconds(), m.GetLine())
	}
	if err := s.Dmesg(t.Context(), &api.DmesgRequest{}, func(m *api.DmesgResponse) error { got = append(got, ours(m)); return nil }); err != nil {
		t.Fatal(err)
	}
	// What one of both saw only, since the kernel goes on, is at the end or the begin.
	var theirs []string
	for line := range strings.Lines(run(t, "dmesg", "--raw")) {
		head, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ">[")
		n, err := strconv.Atoi(strings.TrimPrefix(head, "<"))
		at, text, ok2 := strings.Cut(rest, "] ")
		if (!ok || err != nil) && len(theirs) > 0 { // some records have more lines than one
			theirs[len(theirs)-1] += "\n" + strings.TrimSuffix(line, "\n")
			continue
		}
		if !ok || !ok2 || err != nil {
			t.Fatalf("dmesg says %q", line)
		}
		seconds, err := strconv.ParseFloat(strings.TrimSpace(at), 64)
		if err != nil {
			t.Fatal(err)
		}
		theirs = append(theirs, fmt.Sprintf("%d %d %.6f %s", n>>3, n&7, seconds, text))
	}
	end := slices.IndexFunc(theirs, func(l string) bool { return strings.Contains(l, mark) })
	mine := slices.IndexFunc(got, func(l string) bool { return strings.Contains(l, mark) })
	if end < 0 || mine < 0 {
		t.Fatalf("the mark is at %d and %d", mine, end)
	}
	n := min(end, mine, 200)
	if n < 5 {
		t.Fatalf("%d records before the mark", n)
	}
	// dmesg --raw leaves what is not printable as the kernel writes it; marks have some.
	marked := func(l string) bool { return strings.Contains(l, "imagectl test ") }
	same(t, "records", slices.DeleteFunc(got[mine-n:mine], marked), slices.DeleteFunc(theirs[end-n:end], marked))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines, done := make(chan string, 100), make(chan error, 1)
	go func() {
		done <- s.Dmesg(ctx, &api.DmesgRequest{Follow: true, Lines: 1000}, func(m *api.DmesgResponse) error {
			if strings.Contains(m.GetLine(), mark) {
				lines <- m.GetLine()
			}
			return nil
		})
	}()
	for _, text := range []string{" one \t tab", " two"} {
		if text == " two" {
			say(mark + text)
		}
		select {
		case l := <-lines:
			if l != mark+text {
				t.Errorf("got %q, want %q", l, mark+text)
			}
		case err := <-done:
			t.Fatalf("it ended with %v", err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A capture beside tcpdump's, of the same frames: tcpdump reads both and says the same.
func TestCaptureIsReadByTcpdump(t *testing.T) {
	s := New("", time.Now)
	for _, line := range []string{"link add name ca type veth peer name cb", "link set ca up", "link set cb up", "addr add 192.0.2.1/24 dev ca", "neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev ca"} {
		run(t, append([]string{"ip"}, strings.Fields(line)...)...)
	}
	file := filepath.Join(t.TempDir(), "ours.pcap")
	theirs := filepath.Join(t.TempDir(), "theirs.pcap")
	tcpdump := exec.Command("tcpdump", "-i", "cb", "-n", "-U", "--immediate-mode", "-Z", "root", "-w", theirs, "udp and port 9999")
	errOut, err := tcpdump.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tcpdump.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcpdump.Process.Kill(); _ = tcpdump.Wait() }()
	for said := ""; !strings.Contains(said, "listening on"); {
		var b [256]byte
		n, err := errOut.Read(b[:])
		if said += string(b[:n]); err != nil {
			t.Fatalf("tcpdump says %q, %v", said, err)
		}
	}
	conn, err := net.Dial("udp4", "192.0.2.9:9999")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const packets = 20
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	end, ready := make(chan *api.CaptureEnd, 1), make(chan struct{})
	req := &api.CaptureRequest{Link: "cb", Seconds: 120, Packets: packets, Bytes: 1 << 20, Protocol: "udp", Port: 9999}
	go func() {
		e, err := s.Capture(t.Context(), req, [2]netip.AddrPort{}, &onFirst{w: out, first: func() { close(ready) }})
		if err != nil {
			t.Error(err)
		}
		end <- e
	}()
	select {
	case <-ready: // the file's head is written when the socket is open
	case e := <-end:
		t.Fatalf("it ended with %v", e)
	}
	for i := range packets {
		if _, err := conn.Write(fmt.Appendf(nil, "packet %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	e := <-end
	if e.GetPackets() != packets || e.GetReason() != "packets" || e.GetDropped() != 0 {
		t.Errorf("got %v", e)
	}
	if st, err := out.Stat(); err != nil || uint64(st.Size()) != e.GetBytes() {
		t.Errorf("the file has %d bytes, %d are said", st.Size(), e.GetBytes())
	}
	read := func(name string) string { return run(t, "tcpdump", "-nn", "-XX", "-t", "-r", name) }
	for read(file) != read(theirs) {
		// tcpdump writes each frame when it comes, which may be after us.
		if st, err := os.Stat(theirs); err != nil || st.Size() >= int64(e.GetBytes()) {
			t.Fatalf("ours:\n%s\ntheirs:\n%s", read(file), read(theirs))
		}
	}
	if n := strings.Count(read(file), "IP 192.0.2.1."); n != packets {
		t.Errorf("tcpdump reads %d packets", n)
	}

	// Other bounds: bytes, snap, and none of who asks.
	var b bytes.Buffer
	go func() {
		for t.Context().Err() == nil {
			if _, err := conn.Write(make([]byte, 500)); err != nil {
				return
			}
		}
	}()
	e, err = s.Capture(t.Context(), &api.CaptureRequest{Link: "cb", Seconds: 120, Packets: 1000, Bytes: fileHead + 3*(frameHead+64), Snap: 64}, [2]netip.AddrPort{}, &b)
	if err != nil || e.GetReason() != "bytes" || e.GetPackets() != 3 || b.Len() != fileHead+3*(frameHead+64) {
		t.Errorf("got %v, %v, %d bytes", e, err, b.Len())
	}
	b.Reset()
	e, err = s.Capture(t.Context(), &api.CaptureRequest{Link: "cb", Seconds: 1, Packets: 1000, Bytes: 1 << 20, Protocol: "arp"}, [2]netip.AddrPort{}, &b)
	if err != nil || e.GetReason() != "time" || e.GetPackets() != 0 {
		t.Errorf("got %v, %v", e, err)
	}
	if _, err := s.Capture(t.Context(), &api.CaptureRequest{Link: "none"}, [2]netip.AddrPort{}, &b); err == nil {
		t.Error("there is no such link")
	}
}

// A connection over the loopback is seen once a frame, and not at all by who has it.
func TestCaptureLeavesTheCallerOut(t *testing.T) {
	s := New("", time.Now)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		for t.Context().Err() == nil {
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
		}
	}()
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	go func() {
		for b := make([]byte, 64<<10); ; {
			if _, err := a.Read(b); err != nil {
				return
			}
		}
	}()
	own := [2]netip.AddrPort{netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String())}
	var b bytes.Buffer
	req := &api.CaptureRequest{Link: "lo", Seconds: 1, Packets: 5, Bytes: 1 << 20, Port: uint32(own[1].Port())}
	if e, err := s.Capture(t.Context(), req, own, &b); err != nil || e.GetPackets() != 0 {
		t.Errorf("got %v, %v: it sees itself", e, err)
	}
	req.Seconds = 120 // five packets end it
	if e, err := s.Capture(t.Context(), req, [2]netip.AddrPort{}, &b); err != nil || e.GetPackets() != 5 {
		t.Errorf("got %v, %v: the test shows nothing", e, err)
	}
}

type onFirst struct {
	w     *os.File
	first func()
}

func (o *onFirst) Write(p []byte) (int, error) {
	if o.first != nil {
		o.first()
		o.first = nil
	}
	return o.w.Write(p)
}
