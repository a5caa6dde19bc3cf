package agent

import (
	"context"
	"crypto/tls"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func TestWhatBecomesOfChangedLinks(t *testing.T) {
	t.Parallel()
	const patience = 10 * time.Minute
	made := linkChange{Tried: "new", Made: "b1"}
	trial := linkChange{Tried: "new", Made: "b1", Boot: "b2", Since: time.Minute}
	back, done := trial, trial
	back.Back = true
	done.Back, done.Done = true, true
	later := trial
	later.Boot, later.Since = "b3", 5*time.Second
	for _, c := range []struct {
		name    string
		from    linkChange
		boot    string
		up      time.Duration
		reached bool
		want    linkChange
		does    changeVerdict
	}{
		{"they do not hold yet, and what is reached says nothing of them", made, "b1", time.Hour, true, made, changeRest},
		{"they hold, and the trial begins", made, "b2", time.Minute, false, trial, changeNote},
		{"they work at once", made, "b2", time.Minute, true, made, changeKeep},
		{"there is time left", trial, "b2", 11*time.Minute - 1, false, trial, changeRest},
		{"they work in the end", trial, "b2", time.Hour, true, trial, changeKeep},
		{"the time is over", trial, "b2", 11 * time.Minute, false, back, changeBack},
		{"another start is another trial", trial, "b3", 5 * time.Second, false, later, changeNote},
		{"a death before the files were written", back, "b3", time.Second, true, back, changeBack},
		{"it has not restarted yet", done, "b2", time.Hour, true, done, changeBack},
		{"it has", done, "b3", time.Hour, false, done, changeRest},
	} {
		if got, does := c.from.next(c.boot, c.up, patience, func() bool { return c.reached }); got.Tried != c.want.Tried || got.Boot != c.want.Boot || got.Since != c.want.Since || got.Back != c.want.Back || does != c.does {
			t.Errorf("%s: got %+v and %d, want %+v and %d", c.name, got, does, c.want, c.does)
		}
	}
}

// cutOff makes a node whose server is reached or not, with links in a pair of path and content.
type cutOff struct {
	*lab
	n *node
}

func newCutOff(t *testing.T) *cutOff {
	l := newLab(t)
	l.put(uptimePath, "60.00 100.00\n")
	return &cutOff{lab: l}
}

// begin is a new process of the agent in a boot; with a server when it can be reached.
func (c *cutOff) begin(boot string, server bool) {
	c.t.Helper()
	c.put(bootIDPath, boot+"\n")
	a := c.agent(nodeconf.Node)
	if !server {
		a.Config.Servers = []string{"https://127.0.0.1:1"}
	}
	if err := a.open(); err != nil {
		c.t.Fatal(err)
	}
	c.n = newNode(a)
}

// follow is what the node does about a directive; it returns the word on links.
func (c *cutOff) follow(run *api.Run) string {
	c.n.use(run)
	out := runSteps(context.Background(), c.n.Log, []Step{c.n.networkFiles(run), c.n.networkLinks()}, nil, false, func([]*api.StepStatus) {})
	return out.steps[1].GetDetail()
}

func (c *cutOff) watch() (restarted bool) {
	c.t.Helper()
	c.node.Ran()
	_, err := c.n.watchLinks(context.Background())
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.Contains(c.node.Ran(), "systemctl reboot")
}

func TestLinksThatCutAMachineOffAreTakenBack(t *testing.T) {
	t.Parallel()
	const vlanFile = linksDir + "20-imagectl-nodes.netdev"
	c := newCutOff(t)
	good, bad := connected(bondFile, "good", dnsFile, "dns 1"), connected(bondFile, "bad", vlanFile, "a VLAN that no switch has", dnsFile, "dns 2")
	c.begin("b1", true)
	c.follow(good)
	c.begin("b2", true)
	if c.watch(); c.exists(linkChangePath) {
		t.Fatal("links that reach the server are still on trial")
	}
	c.follow(bad)
	if c.watch() || !c.exists(linkChangePath) {
		t.Fatal("a change that does not hold yet was taken for good, or back")
	}

	c.begin("b3", false)
	c.follow(bad)
	if c.watch() || !strings.Contains(c.read("/dev/console"), "goes back to those before") {
		t.Fatalf("it restarts at once, or says nothing: %s", c.read("/dev/console"))
	}
	c.put(uptimePath, "659.00 1.00\n")
	c.begin("b3", false) // the agent has died meanwhile
	if c.watch() {
		t.Fatal("it goes back before its time")
	}
	c.put(uptimePath, "661.00 1.00\n")
	if !c.watch() {
		t.Fatal("it does not restart")
	}
	if c.read(bondFile) != "good" || c.exists(vlanFile) || c.read(dnsFile) != "dns 2" {
		t.Errorf("bond0 is %q, there is a VLAN: %v, resolvers are %q", c.read(bondFile), c.exists(vlanFile), c.read(dnsFile))
	}
	if !strings.Contains(c.read(recordPath), `"links-back"`) {
		t.Errorf("this node's log says %s", c.read(recordPath))
	}

	// It is back, and stays so whatever the directive says.
	c.begin("b4", true)
	for range 2 {
		if word := c.follow(bad); !strings.Contains(word, "this machine went back to those before") {
			t.Errorf("it says %q", word)
		}
		if c.watch() || c.read(bondFile) != "good" || c.exists(vlanFile) || !strings.Contains(c.read(networkList), bondFile) || strings.Contains(c.read(networkList), vlanFile) {
			t.Error("it restarts, or has other links than before")
		}
	}
	// Until cluster.yaml says something else, which is on trial in its turn.
	other := connected(bondFile, "another", dnsFile, "dns 2")
	if word := c.follow(other); !strings.Contains(word, "from the next start of this machine on") || c.read(bondFile) != "another" {
		t.Errorf("it says %q and has %q", word, c.read(bondFile))
	}
	c.begin("b5", false)
	c.watch()
	c.put(uptimePath, "9999.00 1.00\n")
	if !c.watch() || c.read(bondFile) != "good" {
		t.Errorf("it is left with %q", c.read(bondFile))
	}
}

// A second change before the first has shown anything goes back to what worked before both.
func TestTwoChangesOfLinksGoBackToTheLastThatWorked(t *testing.T) {
	t.Parallel()
	c := newCutOff(t)
	c.begin("b1", false)
	c.follow(connected(bondFile, "bad"))
	c.follow(connected(bondFile, "worse"))
	c.begin("b2", false)
	c.watch()
	c.put(uptimePath, "9999.00 1.00\n")
	if !c.watch() || c.exists(bondFile) {
		t.Error("it does not go back to DHCP on every card, which a clone of a template has reached its server by")
	}
	// Killed after it was decided and before the files were written.
	c.put(bondFile, "worse")
	c.put(linkChangePath, strings.Replace(c.read(linkChangePath), `"done":true`, `"done":false`, 1))
	c.begin("b3", false)
	if !c.watch() || c.exists(bondFile) {
		t.Error("a machine that died on its way back stays cut off")
	}
}

func TestAnotherMachinesAPIServerIsEnough(t *testing.T) {
	t.Parallel()
	c := newCutOff(t)
	c.begin("b1", false)
	if c.n.connected(context.Background()) {
		t.Error("a machine without a directive and without a server is connected")
	}
	if c.begin("b1", true); !c.n.connected(context.Background()) {
		t.Error("a machine that reaches its server is not connected")
	}
	c.begin("b1", false)
	run := &api.Run{Address: "192.0.2.1", Kubernetes: &api.KubernetesWanted{CaPem: string(c.kube.CertificatePEM()), ApiServers: []string{c.apiServer("127.0.0.1:0", "kubernetes")}}}
	if c.n.use(run); !c.n.connected(context.Background()) {
		t.Error("a machine that reaches another's API server is not connected")
	}
	run.Address = "127.0.0.1"
	if c.n.connected(context.Background()) {
		t.Error("its own API server proves that the network works")
	}
	run.Address, run.Kubernetes.CaPem = "192.0.2.1", string(c.ca.CertificatePEM())
	if c.n.connected(context.Background()) {
		t.Error("a stranger's API server proves that the network works")
	}
}

// apiServer listens with an API server's certificate by the lab's CA of Kubernetes.
func (c *cutOff) apiServer(at, name string) string {
	c.t.Helper()
	p, err := pki.APIServer(pki.Machine{Cluster: "lab", Name: "cp2", Address: netip.MustParseAddr("127.0.0.1")}, []string{name}, nil, pki.Lifetimes{})
	l, err := tls.Listen("tcp", at, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.certificateOf(c.kube, p, err)}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}
