//go:build root

package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/test/uml"
)

// TestMain is also the programs that run inside the Linux of the test below.
func TestMain(m *testing.M) {
	var err error
	switch role := os.Getenv("LINKS_ROLE"); role {
	case "":
		os.Exit(m.Run())
	case "server":
		err = serveLinks(os.Getenv("WORK"))
	default:
		err = (&linkLab{work: os.Getenv("WORK")}).run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	if err != nil {
		os.Exit(1)
	}
}

// An installer on Debian's systemd-networkd and Linux takes the bond and the VLAN that
// cluster.yaml gives its machine, where the server is behind that VLAN only; goes back to what
// it has by itself where they lead nowhere, and says what the switch lacks; and an installed
// node goes back from changed links that cut it off to those that worked.
func TestDeclaredLinksOnALinuxOfItsOwn(t *testing.T) {
	work := t.TempDir()
	ca, err := pki.NewCA("imagectl", time.Hour*24*365, time.Hour*48, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	profile, err := pki.Server("lab", []string{"server.lab"}, nil, pki.Lifetimes{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own, err := pki.OwnKey(key)
	if err != nil {
		t.Fatal(err)
	}
	prepared, err := ca.Prepare(profile, own, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue(prepared)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"ca.pem": ca.CertificatePEM(), "server.pem": issued.PEM, "key.pem": keyPEM(t, tls.Certificate{PrivateKey: key})} {
		if err := os.WriteFile(filepath.Join(work, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := uml.Run(t, "testdata/links.sh", work, "AGENT="+program)
	defer func() {
		if t.Failed() {
			for word, lines := range s {
				t.Logf("%s:\n%s", word, strings.Join(lines, "\n"))
			}
		}
	}()
	if !slices.Equal(s["exit"], []string{"0"}) {
		t.Fatalf("the agent ended with %v", s["exit"])
	}
	const why = "the links that cluster.yaml gives cp1 do not reach the server within 8s: bond0 is up, but no switch answers LACP on it"
	if got := strings.Join(s["refused"], "\n"); !strings.HasPrefix(got, why) {
		t.Errorf("refused: got %q, want %q", got, why)
	}
	for word, want := range map[string]string{
		"taken":    "10.42.0.21 [bond0 eno1 eno2 lo nodes]",
		"itself":   "10.5.0.11 [eno1 eno2 lo]",
		"kept":     "10.42.0.21 [bond0 eno1 eno2 lo nodes]",
		"cut off":  "cut off",
		"returned": "10.42.0.21 [bond0 eno1 eno2 lo nodes]",
	} {
		word = strings.ReplaceAll(word, " ", "-")
		if !slices.Equal(s[word], []string{want}) {
			t.Errorf("%s: got %q, want %q", word, s[word], want)
		}
	}
}

func serveLinks(work string) error {
	pair, err := tls.LoadX509KeyPair(filepath.Join(work, "server.pem"), filepath.Join(work, "key.pem"))
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", ":8443", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}})
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_ = c.(*tls.Conn).Handshake()
		_ = c.Close()
	}
}

// linkLab is a machine inside the Linux.
type linkLab struct {
	work     string
	networkd *exec.Cmd
	boots    int
	host     *host.Host
}

func (l *linkLab) run(ctx context.Context) error {
	l.host = &host.Host{Root: "/run/root", Exec: l.exec}
	steps := []func(context.Context) error{l.lacpSwitch, l.boot, l.taken, l.plainSwitch, l.refused, l.lacpSwitch, l.way}
	for i, s := range steps {
		fmt.Println("step", i, time.Now().Format(time.TimeOnly)) // for who reads why it took too long
		if err := s(ctx); err != nil {
			return err
		}
	}
	return nil
}

// exec really runs programs, but for a restart of the machine.
func (l *linkLab) exec(ctx context.Context, c host.Command) ([]byte, error) {
	if c.Argv[0] == "systemctl" {
		return nil, l.boot(ctx)
	}
	out, err := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...).CombinedOutput()
	if err != nil {
		return nil, &host.RunError{Argv: c.Argv, Output: out, Cause: err}
	}
	return out, nil
}

func (l *linkLab) sh(ctx context.Context, script string) error {
	out, err := exec.CommandContext(ctx, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// boot is what a start of the machine does to its links: none of networkd's is left, and a new
// networkd reads the files.
func (l *linkLab) boot(ctx context.Context) error {
	if l.networkd != nil {
		if err := l.networkd.Process.Kill(); err != nil {
			return err
		}
		_ = l.networkd.Wait()
	}
	l.boots++
	if err := errors.Join(l.host.WriteFile(bootIDPath, fmt.Appendf(nil, "boot-%d\n", l.boots), 0o644), l.host.WriteFile(uptimePath, []byte("10.00 1.00\n"), 0o644)); err != nil {
		return err
	}
	if err := l.sh(ctx, `for l in nodes bond0; do if ip link show "$l" >/dev/null 2>&1; then ip link delete "$l"; fi; done
for l in eno1 eno2; do ip link set "$l" down; ip address flush dev "$l"; done`); err != nil {
		return err
	}
	log, err := os.OpenFile("/run/networkd.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	l.networkd = exec.Command("/lib/systemd/systemd-networkd")
	l.networkd.Env = append(os.Environ(), "SYSTEMD_LOG_TARGET=console")
	l.networkd.Stderr = log
	return l.networkd.Start()
}

// lacpSwitch: both ports in a group that speaks LACP, the server in VLAN 42 alone.
func (l *linkLab) lacpSwitch(ctx context.Context) error {
	return l.sh(ctx, `if ip -n switch link show br0 >/dev/null 2>&1; then ip -n switch link delete br0; fi
ip -n switch link add lag type bond mode 802.3ad lacp_rate fast miimon 100
for p in port1 port2; do ip -n switch link set "$p" down; ip -n switch link set "$p" master lag; done
ip -n switch link set lag up
ip -n switch link add link lag name lag.42 type vlan id 42
ip -n switch address add 10.42.0.1/24 dev lag.42
ip -n switch link set lag.42 up`)
}

// plainSwitch knows nothing of LACP, nor of VLAN 42; the server is in its one network.
func (l *linkLab) plainSwitch(ctx context.Context) error {
	return l.sh(ctx, `ip -n switch link delete lag.42
ip -n switch link delete lag
ip -n switch link add br0 type bridge
for p in port1 port2; do ip -n switch link set "$p" master br0; ip -n switch link set "$p" up; done
ip -n switch address add 10.5.0.1/24 dev br0
ip -n switch link set br0 up`)
}

// files are what cluster.yaml's bond0 and VLAN become (butane/render).
func (l *linkLab) files(vlan int, address string) []nodeconf.LinkFile {
	at := func(name string) string { return nodeconf.LinkFiles + name }
	return []nodeconf.LinkFile{
		{Path: at("bond0.netdev"), Content: "[NetDev]\nName=bond0\nKind=bond\n\n[Bond]\nMode=802.3ad\nMIIMonitorSec=100ms\nLACPTransmitRate=fast\nTransmitHashPolicy=layer3+4\n"},
		{Path: at("bond0.network"), Content: "[Match]\nName=bond0\n\n[Link]\nRequiredForOnline=carrier\n\n[Network]\nDHCP=no\nIPv6AcceptRA=no\nLinkLocalAddressing=no\nVLAN=nodes\n"},
		{Path: at("eno1.network"), Content: "[Match]\nName=eno1\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nBond=bond0\n"},
		{Path: at("eno2.network"), Content: "[Match]\nName=eno2\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nBond=bond0\n"},
		{Path: at("nodes.netdev"), Content: fmt.Sprintf("[NetDev]\nName=nodes\nKind=vlan\n\n[VLAN]\nId=%d\n", vlan)},
		{Path: at("nodes.network"), Content: "[Match]\nName=nodes\n\n[Network]\nAddress=" + address + "/24\nDHCP=no\nIPv6AcceptRA=no\n"},
	}
}

func (l *linkLab) agent(mode nodeconf.Mode, server string, patience time.Duration) (*Agent, error) {
	ca, err := os.ReadFile(filepath.Join(l.work, "ca.pem"))
	if err != nil {
		return nil, err
	}
	a := &Agent{
		Host: l.host, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Version: "test", Now: time.Now, Rand: rand.Reader, Jitter: func() float64 { return 0 },
		Config:       nodeconf.Config{Cluster: "lab", Mode: mode, Servers: []string{"https://" + server + ":8443"}, CA: string(ca)},
		linkPatience: patience,
	}
	return a, a.open()
}

// installer tries links, and says what came of it and how the machine is connected then.
func (l *linkLab) installer(ctx context.Context, server string, vlan int, address string, patience time.Duration) (problem, where string, err error) {
	own := map[string][]netip.Addr{"eno1": nil, "eno2": nil, "bond0": nil, "nodes": {netip.MustParseAddr(address)}}
	b, err := json.Marshal(nodeconf.Links{Machines: []nodeconf.MachineLinks{{Machine: "cp1", MACs: []string{"02:00:00:00:00:21"}, Files: l.files(vlan, address), Own: own, Made: []string{"bond0", "nodes"}}}})
	if err == nil {
		err = l.host.WriteFile(nodeconf.LinksPath, b, 0o644)
	}
	if err != nil {
		return "", "", err
	}
	a, err := l.agent(nodeconf.Installer, server, patience)
	if err != nil {
		return "", "", err
	}
	if problem, err = a.declaredLinks(ctx); err != nil {
		return problem, "", err
	}
	where, err = l.where(ctx, a)
	return problem, where, err
}

// where waits for the server, and says by which address and with which links it was reached.
func (l *linkLab) where(ctx context.Context, a *Agent) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		own, err := a.servers.reached(ctx)
		if err == nil {
			var names []string
			for _, i := range a.links() {
				names = append(names, i.name)
			}
			slices.Sort(names)
			return fmt.Sprint(own, " ", slices.DeleteFunc(names, func(n string) bool { return n == "sit0" })), nil
		}
		if pause(ctx, linkLook) != nil {
			return "", err
		}
	}
}

func (l *linkLab) taken(ctx context.Context) error {
	problem, where, err := l.installer(ctx, "10.42.0.1", 42, "10.42.0.21", time.Minute)
	fmt.Println("@@taken " + where + problem)
	return err
}

func (l *linkLab) refused(ctx context.Context) error {
	if err := l.sh(ctx, "rm /etc/systemd/network/20-imagectl-*"); err != nil {
		return err
	}
	if err := l.boot(ctx); err != nil { // another installer
		return err
	}
	problem, where, err := l.installer(ctx, "10.5.0.1", 43, "10.43.0.21", 8*time.Second)
	fmt.Println("@@refused " + problem)
	fmt.Println("@@itself " + where)
	return err
}

// way is an installed node's: links that work, and then others.
func (l *linkLab) way(ctx context.Context) error {
	a, err := l.agent(nodeconf.Node, "10.42.0.1", 0)
	if err != nil {
		return err
	}
	n := newNode(a)
	follow := func(vlan int, address string) error {
		var pairs []string
		for _, f := range l.files(vlan, address) {
			pairs = append(pairs, f.Path, f.Content)
		}
		run := connected(pairs...)
		n.use(run)
		out := runSteps(ctx, n.Log, []Step{n.networkFiles(run)}, nil, false, func([]*api.StepStatus) {})
		if !out.done {
			return fmt.Errorf("%v", out.steps)
		}
		return l.boot(ctx)
	}
	if err := follow(42, "10.42.0.21"); err != nil {
		return err
	}
	where, err := l.where(ctx, a)
	fmt.Println("@@kept " + where)
	if err != nil {
		return err
	}
	if _, err := n.watchLinks(ctx); err != nil {
		return err
	}
	if err := follow(43, "10.43.0.21"); err != nil {
		return err
	}
	if restarts, err := n.watchLinks(ctx); err != nil || restarts {
		return fmt.Errorf("at the start of the trial: restarts %v, %w", restarts, err)
	}
	if n.connected(ctx) {
		return errors.New("a VLAN that nobody has reaches the server")
	}
	fmt.Println("@@cut-off cut off")
	if err := l.host.WriteFile(uptimePath, []byte("611.00 1.00\n"), 0o644); err != nil {
		return err
	}
	if restarts, err := n.watchLinks(ctx); err != nil || !restarts {
		return fmt.Errorf("at the end of the trial: restarts %v, %w", restarts, err)
	}
	where, err = l.where(ctx, a)
	fmt.Println("@@returned " + where)
	return err
}
