package agent

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

func TestWhatAnInstallerDoesAboutItsLinks(t *testing.T) {
	t.Parallel()
	const patience = time.Minute
	on, off := linkTrial{declared: true}, linkTrial{}
	again := linkTrial{declared: true, seen: true}
	for _, c := range []struct {
		name    string
		from    linkTrial
		elapsed time.Duration
		reached bool
		want    linkTrial
		does    linkVerdict
	}{
		{"the declared links reach the server", on, 0, true, on, linkKeep},
		{"not yet", on, patience - 1, false, on, linkStay},
		{"not in time, and the server may be away", on, patience, false, off, linkTurn},
		{"without them it is away too", off, patience - 1, false, off, linkStay},
		{"so they are tried again", off, patience, false, on, linkTurn},
		{"without them it is there: once more, for it may have been away", off, 0, true, again, linkTurn},
		{"not yet, once more", again, patience - 1, false, again, linkStay},
		{"it had been away", again, 0, true, again, linkKeep},
		{"it had not", again, patience, false, again, linkGiveUp},
	} {
		if got, does := c.from.next(c.elapsed, patience, c.reached); got != c.want || does != c.does {
			t.Errorf("%s: got %+v and %d, want %+v and %d", c.name, got, does, c.want, c.does)
		}
	}
}

func TestWhichAddressesAreOfDeclaredLinks(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr
	m := nodeconf.MachineLinks{Made: []string{"bond0", "nodes"}, Own: map[string][]netip.Addr{
		"02:00:00:00:00:01": nil, "eno2": nil, "nodes": {addr("10.42.0.21")}, "eno3": {addr("10.7.0.21")},
	}}
	links := func(where, at string) []link {
		out := []link{
			{name: "eno1", mac: "02:00:00:00:00:01"}, {name: "eno2", mac: "02:00:00:00:00:02"}, {name: "eno3", mac: "02:00:00:00:00:03"}, {name: "eno4", mac: "02:00:00:00:00:04"},
			{name: "bond0", mac: "02:00:00:00:00:01"}, {name: "nodes", mac: "02:00:00:00:00:01"},
		}
		for i := range out {
			if out[i].name == where {
				out[i].addresses = []netip.Addr{addr(at)}
			}
		}
		return out
	}
	for _, c := range []struct {
		where, at string
		want      bool
	}{
		{"nodes", "10.42.0.21", true},
		{"nodes", "10.42.0.99", false}, // of a lease that networkd has not taken yet
		{"eno1", "10.5.0.9", false},    // a card of the bond, by its MAC address
		{"eno2", "10.5.0.9", false},    // by its name
		{"bond0", "10.5.0.9", true},    // asks by DHCP, with the MAC address of eno1
		{"eno3", "10.5.0.9", false},
		{"eno3", "10.7.0.21", true},
		{"eno4", "10.5.0.9", true}, // cluster.yaml does not speak of it
	} {
		if got := declaredAddress(m, addr(c.at), links(c.where, c.at)); got != c.want {
			t.Errorf("%s on %s: got %v, want %v", c.at, c.where, got, c.want)
		}
	}
}

// linksFor makes an installer find links of its own. own says which addresses of the loopback
// interface, by which the lab's server is reached, the declared links leave.
func (l *lab) linksFor(uuid string, own []netip.Addr) {
	l.t.Helper()
	b, err := json.Marshal(nodeconf.Links{Machines: []nodeconf.MachineLinks{
		{Machine: "cp2", UUID: "another", Files: []nodeconf.LinkFile{{Path: linksDir + "20-imagectl-other.network"}}},
		{Machine: "cp1", UUID: uuid, Files: []nodeconf.LinkFile{{Path: bondFile, Content: "a bond"}}, Own: map[string][]netip.Addr{"lo": own}, Made: []string{"bond0"}},
	}})
	if err != nil {
		l.t.Fatal(err)
	}
	l.put(nodeconf.LinksPath, string(b))
	l.put("/sys/class/dmi/id/product_uuid", "THIS-MACHINE\n")
	l.put("/sys/class/net/bond0/operstate", "up\n")
	l.put("/sys/class/net/bond0/bonding/mode", "802.3ad 4\n")
	l.put("/sys/class/net/bond0/bonding/ad_partner_mac", "00:00:00:00:00:00\n")
	l.node.Program("networkctl", func(host.Command) ([]byte, error) { return nil, nil })
}

func networkctls(l *lab) []string {
	return slices.DeleteFunc(l.node.Ran(), func(c string) bool { return !strings.HasPrefix(c, "networkctl") })
}

func TestAnInstallerTakesItsDeclaredLinks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.linksFor("this-machine", []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	l.start(nodeconf.Installer)
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Install{Install: l.order()}})
	l.wait("the end", func(r *api.SyncRequest) bool { return r.GetInstalled() })
	if got := networkctls(l); !slices.Equal(got, []string{"networkctl reload"}) {
		t.Errorf("asked for %q", got)
	}
	if l.read(bondFile) != "a bond" || l.exists(linksDir+"20-imagectl-other.network") {
		t.Error("it has not the files of its own links, or another's")
	}
	if console := l.read("/dev/console"); !strings.Contains(console, "imagectl: the links that cluster.yaml gives cp1 reach the server") {
		t.Errorf("the console says:\n%s", console)
	}
}

func TestAnInstallerWritesNothingWhereItsLinksWouldCutItOff(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.linksFor("this-machine", nil)
	l.start(nodeconf.Installer)
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Install{Install: l.order()}})
	r := l.wait("a refusal", func(r *api.SyncRequest) bool { return r.GetFailure() != "" })
	const why = "the links that cluster.yaml gives cp1 do not reach the server within 0s: bond0 is up, but no switch answers LACP on it"
	if !strings.HasPrefix(r.GetFailure(), "nothing was written: "+why) {
		t.Errorf("it says %q", r.GetFailure())
	}
	if got := stepsOf(r); got != "links=failed install=failed" {
		t.Errorf("the steps are %s", got)
	}
	if disk := l.read("/dev/vda"); strings.Trim(disk, "\xff") != "" {
		t.Error("the disk was written")
	}
	want := []string{"networkctl reload", "networkctl delete bond0", "networkctl reload", "networkctl reload", "networkctl delete bond0", "networkctl reload"}
	if got := networkctls(l); !slices.Equal(got, want) || l.exists(bondFile) {
		t.Errorf("asked for %q, want %q, and nothing left", got, want)
	}
	if console := l.read("/dev/console"); !strings.Contains(console, why) {
		t.Errorf("the console says:\n%s", console)
	}
}
