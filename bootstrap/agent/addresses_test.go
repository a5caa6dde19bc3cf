package agent

import (
	"encoding/base64"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
)

const (
	contextDevice = "/dev/disk/by-label/CONTEXT"
	cardFile      = "/etc/systemd/network/30-imagectl-context-"
)

// platformed is a virtual machine with a CONTEXT medium, in which networkctl reloads, and
// what it saw of files and names then.
type platformed struct {
	*hosttest.Node
	t       *testing.T
	script  string
	reloads []map[string]string
}

func newPlatformed(t *testing.T, script string) *platformed {
	t.Helper()
	n, _, _ := unconfigured(t)
	p := &platformed{Node: n, t: t, script: script}
	n.Program("modprobe", func(host.Command) ([]byte, error) { return nil, nil })
	n.Program("mount", func(host.Command) ([]byte, error) {
		return nil, n.WriteFile("/run/imagectl/medium/context.sh", []byte(p.script), 0o644)
	})
	n.Program("networkctl", p.reload)
	for name, content := range map[string]string{contextDevice: "", "/dev/console": "", "/proc/sys/kernel/hostname": "localhost\n"} {
		if err := n.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *platformed) reload(c host.Command) ([]byte, error) {
	if !slices.Equal(c.Argv, []string{"networkctl", "reload"}) {
		p.t.Errorf("ran %v", c.Argv)
	}
	p.reloads = append(p.reloads, p.cards())
	return nil, nil
}

// cards are the addresses of the files that networkd has of cards.
func (p *platformed) cards() map[string]string {
	p.t.Helper()
	files, err := p.Glob(cardFile + "*")
	if err != nil {
		p.t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range files {
		for line := range strings.Lines(p.read(f)) {
			if a, ok := strings.CutPrefix(strings.TrimSpace(line), "Address="); ok {
				out[strings.TrimPrefix(f, cardFile)] = a
			}
		}
	}
	return out
}

func (p *platformed) read(name string) string {
	p.t.Helper()
	b, err := p.ReadFile(name)
	if err != nil && !notExist(err) {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// start is a start of the agent.
func (p *platformed) start() error {
	_, err := Configure(p.t.Context(), p.Host, slog.New(slog.DiscardHandler), nil)
	return err
}

func (p *platformed) want(what string, reloads int, cards map[string]string, hostname string) {
	p.t.Helper()
	if len(p.reloads) != reloads {
		p.t.Errorf("%s: networkd was told %d times, want %d", what, len(p.reloads), reloads)
	}
	if diff := cmp.Diff(cards, p.cards()); diff != "" {
		p.t.Errorf("%s: files of cards (-want +got):\n%s", what, diff)
	}
	if reloads > 0 && len(p.reloads) == reloads && !maps.Equal(p.reloads[reloads-1], cards) {
		p.t.Errorf("%s: networkd has read %v, want %v", what, p.reloads[reloads-1], cards)
	}
	if got := p.read(hostnamePath); got != hostname {
		p.t.Errorf("%s: /etc/hostname is %q, want %q", what, got, hostname)
	}
}

func eth0(address string) string {
	return "ETH0_IP='" + address + "'\nETH0_MAC='02:00:00:00:00:01'\nETH0_MASK='255.255.255.0'\n"
}

const eth1 = "ETH1_IP='10.1.0.5'\nETH1_MAC='02:00:00:00:00:02'\n"

// nodeVariable is a CONTEXT's with node.json.
func nodeVariable(t *testing.T) string {
	t.Helper()
	_, _, text := unconfigured(t)
	return "IMAGECTL_NODE='" + base64.StdEncoding.EncodeToString(text) + "'\n"
}

func TestConfigureTakesThePlatformsAddressesAtEachStart(t *testing.T) {
	t.Parallel()
	p := newPlatformed(t, eth0("10.0.0.5")+eth1+nodeVariable(t)+"SET_HOSTNAME='vm-1'\n")
	steps := []struct {
		name     string
		script   string // of the medium; - for none, empty as before
		reloads  int    // so far
		cards    map[string]string
		hostname string
	}{
		{"the first start", "", 1, map[string]string{"eth0.network": "10.0.0.5/24", "eth1.network": "10.1.0.5/24"}, "vm-1"},
		{"the second, as before", "", 2, map[string]string{"eth0.network": "10.0.0.5/24", "eth1.network": "10.1.0.5/24"}, "vm-1"},
		{"one card of no use, which keeps what it had", eth0("10.0.0.7") + "ETH1_MAC='x'\n", 3, map[string]string{"eth0.network": "10.0.0.7/24", "eth1.network": "10.1.0.5/24"}, "vm-1"},
		{"another address, a card less, another name", eth0("10.0.0.6") + "SET_HOSTNAME='vm-2'\n", 4, map[string]string{"eth0.network": "10.0.0.6/24"}, "vm-2"},
		{"none of use", "ETH0_MAC='x'\n", 4, map[string]string{"eth0.network": "10.0.0.6/24"}, "vm-2"},
		{"no script", "id\n", 4, map[string]string{"eth0.network": "10.0.0.6/24"}, "vm-2"},
		{"no medium", "-", 4, map[string]string{"eth0.network": "10.0.0.6/24"}, "vm-2"},
		{"a card whose addresses come by DHCP", "ETH0_MAC='02:00:00:00:00:01'\nETH0_IP=''\n", 5, map[string]string{}, "vm-2"},
	}
	for _, s := range steps {
		if s.script != "" {
			p.script = s.script
		}
		if s.script == "-" {
			if err := p.Remove(contextDevice); err != nil {
				t.Fatal(err)
			}
		} else if err := p.WriteFile(contextDevice, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := p.start(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		p.want(s.name, s.reloads, s.cards, s.hostname)
		if now := p.read("/proc/sys/kernel/hostname"); now != s.hostname {
			t.Errorf("%s: the kernel's host name is %q, want %q", s.name, now, s.hostname)
		}
	}
	const said = `imagectl: the platform's addresses are not all of use: ETH1_MAC "x" is no card's MAC address`
	if console := p.read("/dev/console"); strings.Count(console, said) != 1 {
		t.Errorf("the console shows %q, want %q once", console, said)
	}
}

// A stick with the right label gives no addresses to a machine that was installed.
func TestConfigureLeavesInstalledMachinesAlone(t *testing.T) {
	t.Parallel()
	p := newPlatformed(t, eth0("10.0.0.66")+"SET_HOSTNAME='mine'\n")
	_, conf, _ := unconfigured(t)
	if err := keep(p.Host, conf); err != nil {
		t.Fatal(err)
	}
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	p.want("installed", 0, map[string]string{}, "")
	if ran := p.Ran(); ran != nil {
		t.Errorf("it ran %v", ran)
	}
}

func TestThePlatformsNameIsOnlyForANamelessMachine(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, file, content, want string }{
		{"the user's", hostnamePath, "theirs\n", "theirs"},
		{"one that the server knows", RunPath, "{}", ""},
	} {
		p := newPlatformed(t, nodeVariable(t)+"SET_HOSTNAME='vm-1'\n")
		if err := p.WriteFile(tt.file, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		if got, now := p.read(hostnamePath), p.read("/proc/sys/kernel/hostname"); got != tt.want || now != "localhost" {
			t.Errorf("%s: /etc/hostname is %q and the kernel's name %q, want %q and localhost", tt.name, got, now, tt.want)
		}
	}
	// The platform's own is given up for the cluster's for ever.
	p := newPlatformed(t, nodeVariable(t)+"SET_HOSTNAME='vm-1'\n")
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{hostnamePath: "w1\n", RunPath: "{}"} {
		if err := p.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.script = "SET_HOSTNAME='w1'\n"
	for range 2 {
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		if got := p.read(hostnamePath); got != "w1" {
			t.Errorf("/etc/hostname is %q, want w1", got)
		}
		p.script = "SET_HOSTNAME='vm-3'\n"
	}
}

// networkd was not told: the next look tells it, though the files are there. That nothing
// works does not keep the machine from its server.
func TestConfigureTellsNetworkdAgainAfterAFailure(t *testing.T) {
	t.Parallel()
	p := newPlatformed(t, eth0("10.0.0.5")+nodeVariable(t))
	tells := p.reload
	p.Program("networkctl", func(host.Command) ([]byte, error) { return nil, errors.New("no bus") })
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	if console := p.read("/dev/console"); !strings.Contains(console, "no bus") {
		t.Errorf("the console shows %q", console)
	}
	p.Program("networkctl", tells)
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	p.want("the second start", 1, map[string]string{"eth0.network": "10.0.0.5/24"}, "")
}
