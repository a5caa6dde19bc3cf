package dhcp

import (
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
	l.src.network.Proxy = true
	if got := l.offered(discover(node1, pxe(7))); strings.HasPrefix(got, "silence") {
		t.Errorf("beside another DHCP server: %s", got)
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
	s.handle(discover(node1, pxe(7)).ToBytes(), Socket{}, nil)
	s.handle(discover(node1, pxe(7)).ToBytes(), Socket{}, nil)
	s.handle(discover(laptop, ipxe).ToBytes(), Socket{}, nil)
	if u := line.Usage(now); u.Admitted != 1 {
		t.Errorf("%d machines are in the line, want node1 alone", u.Admitted)
	}
}
