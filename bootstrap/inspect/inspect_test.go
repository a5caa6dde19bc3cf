package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// in is a system in a directory with some files.
func in(t *testing.T, files map[string]string) *System {
	t.Helper()
	s := New(t.TempDir(), time.Now)
	for name, text := range files {
		put(t, s, name, text)
	}
	return s
}

func put(t *testing.T, s *System, name, text string) {
	t.Helper()
	p := s.path(name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOpenFollowsNoLink(t *testing.T) {
	t.Parallel()
	s := in(t, map[string]string{"/etc/hosts": "hosts", "/secret/key": "the key", "/etc/dir/file": "file"})
	for link, target := range map[string]string{"/etc/relative": "../secret/key", "/etc/absolute": "/secret/key", "/etc/real": s.path("/secret/key"), "/etc/inside": "hosts", "/etc/linked": "dir"} {
		if err := os.Symlink(target, s.path(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(s.path("/secret/key"), s.path("/etc/hard")); err != nil {
		t.Fatal(err)
	}
	f, err := s.Open("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); string(b) != "hosts" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	for name, want := range map[string]string{
		"/etc/relative":      "/etc/relative is a symbolic link, or lies behind one",
		"/etc/absolute":      "/etc/absolute is a symbolic link, or lies behind one",
		"/etc/real":          "/etc/real is a symbolic link, or lies behind one",
		"/etc/inside":        "/etc/inside is a symbolic link, or lies behind one",
		"/etc/linked/file":   "/etc/linked/file is a symbolic link, or lies behind one",
		"/etc/hard":          "/etc/hard has 2 names, and may be a file that must not be read",
		"/etc/dir":           "/etc/dir is no regular file",
		"/etc/../etc/hosts":  `"/etc/../etc/hosts" is no clean absolute path`,
		"etc/hosts":          `"etc/hosts" is no clean absolute path`,
		"/etc/missing":       "open /etc/missing: no such file or directory",
		"/etc/hosts/further": "open /etc/hosts/further: not a directory",
	} {
		if f, err := s.Open(name); err == nil || err.Error() != want {
			t.Errorf("got %v, %v, want %s", f, err, want)
		}
	}
	if _, err := s.Open("/etc/missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if got := s.Match("/etc/h*"); fmt.Sprint(got) != "[/etc/hard /etc/hosts]" {
		t.Errorf("got %v", got)
	}
}

func TestRecordsOfTheKernel(t *testing.T) {
	t.Parallel()
	boot := time.Unix(1_700_000_000, 0)
	for text, want := range map[string]string{
		"6,339,5140900,-,caller=T1;NET: Registered PF_INET6\n SUBSYSTEM=net\n": "6 0 339 5.1409s NET: Registered PF_INET6",
		"12,7,1,-;a\\x0atab\\x09 b\\xzz\n":                                     "4 1 7 1µs a\ntab\t b\\xzz",
		"30,1,0,c;\\xff\n":                                                     "6 3 1 0s \uFFFD",
	} {
		m, ok := record([]byte(text), boot)
		if !ok {
			t.Errorf("%q is not read", text)
			continue
		}
		if got := fmt.Sprintf("%d %d %d %s %s", m.GetLevel(), m.GetFacility(), m.GetSeq(), m.GetSinceBoot().AsDuration(), m.GetLine()); got != want || !m.GetAt().AsTime().Equal(boot.Add(m.GetSinceBoot().AsDuration())) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	for _, text := range []string{"", "6", "6,1,2,-", "x,1,2,-;y", "6,1,-2,-;y", "6,1,99999999999999999999,-;y", "6,1,9223372036854775807,-;y"} {
		if m, ok := record([]byte(text), boot); ok {
			t.Errorf("%q is read as %v", text, m)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte("6,339,5140900,-,caller=T1;text \\x0a\n K=v\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, ok := record(b, time.Unix(0, 0)); ok && len(m.GetLine()) > 3*len(b) {
			t.Errorf("%d bytes become %d", len(b), len(m.GetLine()))
		}
	})
}

func TestTailKeepsTheLast(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		lines, bytes int
		want         string
	}{{0, 1 << 20, "[0 1 2 3 4 5 6 7 8 9]"}, {3, 1 << 20, "[7 8 9]"}, {0, 200, "[8 9]"}, {5, 1, "[9]"}} {
		l := newTail[int](c.lines, c.bytes)
		for i := range 10 {
			l.add(i, 10)
		}
		var got []int
		for i := range l.all() {
			got = append(got, i)
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%d lines, %d bytes: got %v, want %s", c.lines, c.bytes, got, c.want)
		}
	}
}

func TestOffsetOfTheClock(t *testing.T) {
	t.Parallel()
	// 10 ms there, 30 ms back, and a clock that is 1 s behind its source.
	m := ntpMessage{Origin: 1_000_000, Receive: 2_010_000, Transmit: 2_010_100, Destination: 1_040_100}
	if got := m.offset(); got != 990*time.Millisecond {
		t.Errorf("got %s", got)
	}
}

const cri = "2026-01-02T03:04:0%d.123456789Z %s %s %s\n"

func logs(t *testing.T, s *System, req *api.ContainerLogsRequest) (string, error) {
	t.Helper()
	var got []string
	err := s.ContainerLogs(t.Context(), req, func(m *api.ContainerLogsResponse) error {
		got = append(got, fmt.Sprintf("%d %s %s", m.GetAt().AsTime().Second(), m.GetStream(), m.GetLine()))
		return nil
	})
	return strings.Join(got, "|"), err
}

func TestContainerLogs(t *testing.T) {
	t.Parallel()
	const dir = "/var/log/pods/kube-system_dns-1_uid/dns/"
	s := in(t, map[string]string{
		dir + "0.log":                    fmt.Sprintf(cri, 0, "stdout", "F", "before the restart"),
		dir + "1.log.20260101-000000.gz": "not for us",
		dir + "1.log.20260102-000000":    fmt.Sprintf(cri, 1, "stdout", "F", "rotated"),
		dir + "1.log": fmt.Sprintf(cri, 2, "stderr", "P", "in ") + fmt.Sprintf(cri, 3, "stdout", "F", "between") + fmt.Sprintf(cri, 4, "stderr", "F", "pieces") +
			"no such line\n" + fmt.Sprintf(cri, 5, "stdout", "F", "") + fmt.Sprintf(cri, 6, "stdout", "P:x", "half") + "2026-01-02T03:04:07Z stdout F not at its en",
		"/var/log/pods/kube-system_dns-1_uid/sidecar/0.log": fmt.Sprintf(cri, 0, "stdout", "F", "other"),
		"/var/log/pods/kube-system_dns-10_uid/dns/0.log":    fmt.Sprintf(cri, 0, "stdout", "F", "not this pod"),
		"/var/log/pods/odd/0.log":                           "x",
		"/etc/shadow/0.log":                                 fmt.Sprintf(cri, 0, "stdout", "F", "secret"),
	})
	if err := os.Symlink("../../../etc/shadow", s.path("/var/log/pods/kube-system_evil_uid")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.path("/var/log/pods/kube-system_bad_uid"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/shadow", s.path("/var/log/pods/kube-system_bad_uid/c")); err != nil {
		t.Fatal(err)
	}
	dns := func(change func(*api.ContainerLogsRequest)) *api.ContainerLogsRequest {
		q := &api.ContainerLogsRequest{Namespace: "kube-system", Pod: "dns-1", Container: "dns"}
		change(q)
		return q
	}
	for what, c := range map[string]struct {
		req       *api.ContainerLogsRequest
		want, err string
	}{
		"all":      {dns(func(*api.ContainerLogsRequest) {}), "1 stdout rotated|3 stdout between|4 stderr in pieces|5 stdout ", ""},
		"last two": {dns(func(q *api.ContainerLogsRequest) { q.Lines = 2 }), "4 stderr in pieces|5 stdout ", ""},
		"since": {dns(func(q *api.ContainerLogsRequest) {
			q.Since = timestamppb.New(time.Date(2026, 1, 2, 3, 4, 4, 0, time.UTC))
		}), "4 stderr in pieces|5 stdout ", ""},
		"previous":  {dns(func(q *api.ContainerLogsRequest) { q.Previous = true }), "0 stdout before the restart", ""},
		"which one": {dns(func(q *api.ContainerLogsRequest) { q.Container = "" }), "", "reading a container's log: pod dns-1 of namespace kube-system has the containers dns, sidecar; name one: file does not exist"},
		"no such":   {dns(func(q *api.ContainerLogsRequest) { q.Container = "x" }), "", "reading a container's log: this node keeps no log of pod dns-1 of namespace kube-system's container x; it has dns, sidecar: file does not exist"},
		"no pod":    {dns(func(q *api.ContainerLogsRequest) { q.Pod = "dns" }), "", "reading a container's log: this node keeps no log of pod dns of namespace kube-system: file does not exist"},
		"out":       {&api.ContainerLogsRequest{Namespace: "kube-system", Pod: "evil"}, "", "reading a container's log: this node keeps no log of pod evil of namespace kube-system: file does not exist"},
		"out too":   {&api.ContainerLogsRequest{Namespace: "kube-system", Pod: "bad", Container: "c"}, "", "reading a container's log: this node keeps no log of pod bad of namespace kube-system's container c; it has c: file does not exist"},
	} {
		got, err := logs(t, s, c.req)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && (err.Error() != c.err || !errors.Is(err, fs.ErrNotExist)) {
			t.Errorf("%s: got  %q, %v\nwant %q, %s", what, got, err, c.want, c.err)
		}
	}
	all, err := s.Containers()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range all.GetContainers() {
		got = append(got, fmt.Sprintf("%s/%s/%s %d", c.GetNamespace(), c.GetPod(), c.GetContainer(), c.GetRestarts()))
	}
	if want := "[kube-system/dns-1/dns 1 kube-system/dns-1/sidecar 0 kube-system/dns-10/dns 0]"; fmt.Sprint(got) != want {
		t.Errorf("got  %v\nwant %s", got, want)
	}
	if all, err := in(t, nil).Containers(); err != nil || len(all.GetContainers()) > 0 {
		t.Errorf("a node without: %v, %v", all, err)
	}
}

// Following goes over a rotation in the middle of a line's pieces, a restart, and to the pod's end.
func TestContainerLogsAreFollowed(t *testing.T) {
	t.Parallel()
	const dir = "/var/log/pods/shop_db_uid/db/"
	s := in(t, map[string]string{dir + "0.log": fmt.Sprintf(cri, 1, "stdout", "F", "old")})
	lines, done := make(chan string), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		done <- s.ContainerLogs(ctx, &api.ContainerLogsRequest{Namespace: "shop", Pod: "db", Follow: true, Lines: 10}, func(m *api.ContainerLogsResponse) error {
			lines <- m.GetLine()
			return nil
		})
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-lines:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case err := <-done:
			t.Fatalf("it ended with %v, want %q", err, want)
		}
	}
	add := func(name, text string) {
		t.Helper()
		f, err := os.OpenFile(s.path(dir+name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	expect("old")
	add("0.log", fmt.Sprintf(cri, 2, "stdout", "F", "new")+"2026-01-02T03:04:03Z stdout F in tw")
	expect("new")
	add("0.log", "o writes\n"+fmt.Sprintf(cri, 3, "stdout", "P", "over a "))
	expect("in two writes")
	if err := os.Rename(s.path(dir+"0.log"), s.path(dir+"0.log.20260102-030404")); err != nil {
		t.Fatal(err)
	}
	add("0.log.20260102-030404", fmt.Sprintf(cri, 4, "stderr", "F", "by who has it open"))
	add("0.log", fmt.Sprintf(cri, 5, "stdout", "F", "rotation"))
	expect("by who has it open")
	expect("over a rotation")
	add("1.log", fmt.Sprintf(cri, 6, "stdout", "F", "started anew"))
	expect("started anew")
	if err := os.RemoveAll(s.path("/var/log/pods/shop_db_uid")); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the pod's end: %v", err)
	}
}

func TestALineWithoutEndTakesNoMemory(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 3*logLineMax)
	s := in(t, map[string]string{"/var/log/pods/n_p_u/c/0.log": fmt.Sprintf(cri, 1, "stdout", "F", long) + strings.Repeat(fmt.Sprintf(cri, 2, "stdout", "P", strings.Repeat("y", 16<<10)), 9) + fmt.Sprintf(cri, 2, "stdout", "F", "") + fmt.Sprintf(cri, 3, "stdout", "F", "z")})
	var sizes []int
	err := s.ContainerLogs(t.Context(), &api.ContainerLogsRequest{Namespace: "n", Pod: "p"}, func(m *api.ContainerLogsResponse) error {
		sizes = append(sizes, len(m.GetLine()))
		return nil
	})
	if want := fmt.Sprint([]int{logLineMax, 1}); err != nil || fmt.Sprint(sizes) != want {
		t.Errorf("got %v, %v, want %s", sizes, err, want)
	}
}

// frame is an Ethernet frame, perhaps with VLAN tags.
func ether(kind uint16, tags int, payload ...byte) []byte {
	b := make([]byte, 12)
	for range tags {
		b = append(b, 0x81, 0, 0, 7)
	}
	return append(append(b, byte(kind>>8), byte(kind)), payload...)
}

func ip4(protocol byte, from, to string, fragment byte, rest ...byte) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, fragment, 64, protocol, 0, 0}
	b = append(b, netip.MustParseAddr(from).AsSlice()...)
	return append(append(b, netip.MustParseAddr(to).AsSlice()...), rest...)
}

func ip6(protocol byte, from, to string, rest ...byte) []byte {
	b := []byte{0x60, 0, 0, 0, 0, 0, protocol, 64}
	b = append(b, netip.MustParseAddr(from).AsSlice()...)
	return append(append(b, netip.MustParseAddr(to).AsSlice()...), rest...)
}

func TestWhichFramesAreCaptured(t *testing.T) {
	t.Parallel()
	ports := []byte{0x30, 0x39, 0, 53} // 12345 to 53
	frames := map[string][]byte{
		"udp4":     ether(0x800, 0, ip4(17, "192.0.2.1", "192.0.2.2", 0, ports...)...),
		"tcp4vlan": ether(0x800, 1, ip4(6, "192.0.2.1", "192.0.2.2", 0, ports...)...),
		"tcp4qinq": ether(0x800, 2, ip4(6, "192.0.2.1", "192.0.2.2", 0, ports...)...),
		"fragment": ether(0x800, 0, ip4(17, "192.0.2.1", "192.0.2.2", 9, ports...)...),
		"udp6":     ether(0x86dd, 0, ip6(17, "2001:db8::1", "2001:db8::2", ports...)...),
		"tcp6hop":  ether(0x86dd, 0, ip6(0, "2001:db8::1", "2001:db8::2", append([]byte{6, 0, 0, 0, 0, 0, 0, 0}, ports...)...)...),
		"icmp":     ether(0x800, 0, ip4(1, "192.0.2.1", "192.0.2.2", 0, 8, 0, 0, 0)...),
		"icmp6":    ether(0x86dd, 0, ip6(58, "fe80::1", "ff02::1", 135, 0, 0, 0)...),
		"arp":      ether(0x806, 0, 0, 1, 8, 0, 6, 4, 0, 1, 1, 1, 1, 1, 1, 1, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 9),
		"short":    {1, 2, 3},
		"cut":      ether(0x800, 0, 0x45, 0),
	}
	own := [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:53"), netip.MustParseAddrPort("[::ffff:192.0.2.1]:12345")}
	for _, c := range []struct {
		req  *api.CaptureRequest
		own  [2]netip.AddrPort
		want string
	}{
		{&api.CaptureRequest{}, [2]netip.AddrPort{}, "arp cut fragment icmp icmp6 short tcp4qinq tcp4vlan tcp6hop udp4 udp6"},
		{&api.CaptureRequest{}, own, "arp cut fragment icmp icmp6 short tcp6hop udp4 udp6"},
		{&api.CaptureRequest{Protocol: "tcp"}, [2]netip.AddrPort{}, "tcp4qinq tcp4vlan tcp6hop"},
		{&api.CaptureRequest{Protocol: "udp", Port: 53}, [2]netip.AddrPort{}, "udp4 udp6"},
		{&api.CaptureRequest{Protocol: "udp"}, [2]netip.AddrPort{}, "fragment udp4 udp6"},
		{&api.CaptureRequest{Port: 12345}, [2]netip.AddrPort{}, "tcp4qinq tcp4vlan tcp6hop udp4 udp6"},
		{&api.CaptureRequest{Port: 54}, [2]netip.AddrPort{}, ""},
		{&api.CaptureRequest{Host: "192.0.2.9"}, [2]netip.AddrPort{}, "arp"},
		{&api.CaptureRequest{Host: "2001:db8::2"}, [2]netip.AddrPort{}, "tcp6hop udp6"},
		{&api.CaptureRequest{Protocol: "icmp"}, [2]netip.AddrPort{}, "icmp icmp6"},
		{&api.CaptureRequest{Protocol: "ip6"}, [2]netip.AddrPort{}, "icmp6 tcp6hop udp6"},
		{&api.CaptureRequest{Protocol: "arp"}, [2]netip.AddrPort{}, "arp"},
	} {
		f, err := newFilter(c.req, c.own, true)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range strings.Fields("arp cut fragment icmp icmp6 short tcp4qinq tcp4vlan tcp6hop udp4 udp6") {
			if f.fits(frames[name]) {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%v: got %v, want %s", c.req, got, c.want)
		}
	}
	for want, req := range map[string]*api.CaptureRequest{
		`protocol "sctp" is not known; these are: [tcp udp icmp arp ip ip6]`: {Protocol: "sctp"},
		`host "example.org" is no IP address`:                                {Host: "example.org"},
		"port 65536 is above 65535":                                          {Port: 65536},
	} {
		if _, err := newFilter(req, own, true); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add(ether(0x86dd, 1, ip6(0, "2001:db8::1", "2001:db8::2", 44, 0, 0, 0, 0, 0, 0, 0)...), true)
	f.Add(ip4(6, "192.0.2.1", "192.0.2.2", 0, 1, 2, 3, 4), false)
	f.Fuzz(func(t *testing.T, b []byte, ethernet bool) {
		for _, p := range Protocols() {
			filter{protocol: p, ethernet: ethernet, port: 1}.fits(b)
		}
	})
}

func FuzzContainerLog(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(cri, 1, "stdout", "P", "a") + fmt.Sprintf(cri, 1, "stdout", "F", "b")))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := criReader{parts: map[string][]byte{}}
		for line := range strings.Lines(string(b)) {
			if m, ok := r.line([]byte(strings.TrimSuffix(line, "\n"))); ok && len(m.GetLine()) > 3*logLineMax {
				t.Errorf("a line of %d bytes", len(m.GetLine()))
			}
		}
	})
}

func TestSmallParts(t *testing.T) {
	t.Parallel()
	if got := unescape(`/a\040b\134c`); got != `/a b\c` {
		t.Errorf("got %q", got)
	}
	s := in(t, map[string]string{
		"/etc/passwd": "root:x:0:0::/root:/bin/sh\nbad\nx:y:z\n", "/usr/share/baselayout/passwd": "core:x:500:500::/home/core:\nother:x:0:0::/:\n",
		"/etc/resolv.conf": "nameserver 127.0.0.53\n", "/run/systemd/resolve/resolv.conf": "# x\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch a\n",
		"/run/udev/data/b8:1": "S:disk/by-id/x\nE:ID_FS_TYPE=ext4\nE:ID_FS_LABEL=ROOT\nE:ID_PART_ENTRY_NAME=a=b\n",
	})
	if diff := cmp.Diff(s.users(), map[uint64]string{0: "root", 500: "core"}); diff != "" {
		t.Error(diff)
	}
	if got := fmt.Sprint(s.nameServers()); got != "[192.0.2.1 2001:db8::1]" {
		t.Errorf("got %s", got)
	}
	if diff := cmp.Diff(s.udev("8:1"), map[string]string{"ID_FS_TYPE": "ext4", "ID_FS_LABEL": "ROOT", "ID_PART_ENTRY_NAME": "a=b"}); diff != "" {
		t.Error(diff)
	}
	if got := bootTime([]byte("cpu 1\nbtime 1700000000\nprocesses 3\n")); got.Unix() != 1_700_000_000 {
		t.Errorf("got %s", got)
	}
}

// A network file system whose server is gone holds up neither the answer nor, again and again,
// the next ones.
func TestFileSystemsThatHang(t *testing.T) {
	t.Parallel()
	s := in(t, nil)
	s.Stuck = make(chan struct{}, 1)
	s.Stuck <- struct{}{} // one hangs
	if _, err := s.statfs(t.Context(), s.Root); err == nil || err.Error() != "not asked: too many file systems do not answer" {
		t.Errorf("got %v", err)
	}
	<-s.Stuck
	if st, err := s.statfs(t.Context(), s.Root); err != nil || st.Blocks == 0 {
		t.Errorf("got %v, %v", st, err)
	}
}
