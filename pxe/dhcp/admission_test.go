package dhcp

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/admit"
)

// full is a Line that lets nobody in, and remembers whom it was asked about.
type full struct{ asked []bool }

func (f *full) Ask(_ admit.MAC, listed bool, _ time.Time) admit.Verdict {
	f.asked = append(f.asked, listed)
	return admit.Verdict{Wait: 25 * time.Second, Limit: 18 * time.Second, Window: 8 * time.Second}
}

// While the line is full, firmware that has no address yet gets silence; all that has
// begun goes on.
func TestWhoHasToWaitForAdmission(t *testing.T) {
	for _, c := range []struct {
		name string
		m    *dhcpv4.DHCPv4
		want string
	}{
		{"UEFI", discover(node1, pxe(7)), "silence: busy"},
		{"BIOS", discover(laptop, pxe(0)), "silence: busy"},
		{"iPXE, which firmware has loaded", discover(node1, ipxe), "10.0.0.11"},
		{"a system", discover(node1), "10.0.0.11"},
		{"firmware that has its offer", request(node1, pxe(7), wants("10.0.0.11"), toServer("10.0.0.1")), "10.0.0.11"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.line = &full{}
			if got := l.offered(c.m); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	l, line := newLab(t), &full{}
	l.line = line
	d := l.send(discover(node1, pxe(7)))
	if want := "no offer yet: so many machines boot now that its boot program would come after 25s, and its firmware gives up when that takes longer than about 18s; it asks again in about 8s"; !strings.HasPrefix(d.Reason, want) || !d.Refused {
		t.Errorf("the reason is %q", d.Reason)
	}
	l.send(discover(laptop, pxe(7)))
	if len(line.asked) != 2 || !line.asked[0] || line.asked[1] {
		t.Errorf("asked whether they are in cluster.yaml: %v, want the first only", line.asked)
	}
}

// UEFI HTTP boot has a line of its own.
func TestHTTPBootHasItsOwnLine(t *testing.T) {
	http := []modifier{opt(60, []byte("HTTPClient:Arch:00016:UNDI:003001")...), opt(93, 0, 16)}
	l, line := newLab(t), &full{}
	l.line = line
	if got := l.offered(discover(node1, http...)); got != "10.0.0.11" || len(line.asked) > 0 {
		t.Errorf("it waits for TFTP: %s", got)
	}
	l = newLab(t)
	l.httpLine = line
	if got := l.offered(discover(node1, http...)); got != "silence: busy" || len(line.asked) != 1 {
		t.Errorf("got %s", got)
	}
	if got := l.offered(discover(node1, pxe(7))); got != "10.0.0.11" {
		t.Errorf("TFTP waits for it: %s", got)
	}
}

// Beside another server, silence sends firmware to its next boot device: only who may be
// invented gets it.
func TestBesideAnotherServerOnlyStrangersWait(t *testing.T) {
	for name, options := range map[string][]modifier{"PXE": {pxe(7)}, "HTTP boot": {opt(60, []byte("HTTPClient:Arch:00016:UNDI:003001")...), opt(93, 0, 16)}} {
		l := newLab(t)
		l.src.network.Proxy = true
		l.line, l.httpLine = &full{}, &full{}
		d := l.send(discover(node1, options...))
		if d.Code != "proxy-offer" || d.Verdict == nil || !d.Verdict.Admitted {
			t.Errorf("%s of a machine of cluster.yaml: %s, %+v", name, d.Code, d.Verdict)
		}
		if d := l.send(discover(laptop, options...)); d.Code != "busy" || d.Reply != nil || d.Verdict.Admitted {
			t.Errorf("%s of a stranger: %s, %+v", name, d.Code, d.Verdict)
		}
	}
	l := newLab(t)
	l.src.network.Proxy, l.bootServer, l.line = true, true, &full{}
	ask := request(laptop, pxe(7))
	ask.ClientIPAddr = []byte{10, 0, 0, 200}
	if d := l.send(ask); d.Code != "busy" || d.Reply != nil {
		t.Errorf("a stranger at port 4011: %s: %s", d.Code, d.Reason)
	}
}

func TestServerKeepsTheLine(t *testing.T) {
	t.Parallel()
	now := noon
	line := &admit.Line{}
	s, err := NewServer(Config{Address: us, Files: files, Source: source(), Store: &memStore{}, Line: line, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	s.handle(discover(node1, pxe(7)).ToBytes(), Socket{}, netip.AddrPort{})
	s.handle(discover(node1, pxe(7)).ToBytes(), Socket{}, netip.AddrPort{})
	s.handle(discover(laptop, ipxe).ToBytes(), Socket{}, netip.AddrPort{})
	if u := line.Usage(now); u.Admitted != 1 {
		t.Errorf("%d machines are in the line, want node1 alone", u.Admitted)
	}
}
