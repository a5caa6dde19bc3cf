package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// caLab is a control plane whose member of etcd is data: it trusts the CAs that were on the disk when
// it was started, and shows the certificates that are there now.
type caLab struct {
	*controlPlane
	database *database
	old, new *pki.CA
	trusts   [][]byte
	// timing is what it was started with; leaderless: it sees no leader.
	timing     etcd.Timing
	leaderless bool
	starts     int
	kills      int
	// die is called before and after what is done to the member.
	die func()
}

func newCALab(t *testing.T) *caLab {
	t.Helper()
	base, _ := policedLab(t)
	c := &caLab{controlPlane: base, old: base.etcd, die: func() {}}
	var err error
	if c.new, err = pki.NewCA("etcd lab 2", 24*365*time.Hour, 48*time.Hour, time.Now(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	own, other := peer(0x8e9e05c52164694d, "cp1", "127.0.0.1"), peer(2, "cp2", "10.0.0.2")
	own.Follows, other.Follows = true, true
	c.database = &database{peers: []etcd.Peer{own, other}}
	c.put(wal, "x")
	c.run.Etcd.Action, c.run.Etcd.Endpoints = api.EtcdWanted_ACTION_RUN, []string{"https://10.0.0.2:2379"}
	c.trusts = [][]byte{c.old.Certificate().RawSubject}
	c.node.Program("systemctl", func(cmd host.Command) ([]byte, error) {
		unit := cmd.Argv[len(cmd.Argv)-1]
		switch {
		case cmd.Argv[1] == "is-active":
			if c.node.Units()[unit] != "active" {
				return []byte("inactive\n"), &host.RunError{Argv: cmd.Argv, Cause: errors.New("exit status 3")}
			}
			return []byte("active\n"), nil
		case unit != etcd.Unit:
		case cmd.Argv[1] == "kill":
			c.die()
			c.kills++
		case cmd.Argv[1] == "stop":
			c.die()
			c.node.SetUnit(unit, "inactive")
			c.die()
		case cmd.Argv[1] == "start":
			c.die()
			c.node.SetUnit(unit, "active")
			c.starts++
			if c.timing, err = etcd.ReadTiming([]byte(c.read(etcd.ConfigPath))); err != nil {
				t.Error(err)
			}
			c.trusts = nil
			for _, ca := range c.cas(etcd.CAPath) {
				c.trusts = append(c.trusts, ca.RawSubject)
			}
			c.die()
		}
		return nil, nil
	})
	if out := once(c.node1(), c.run); !out.done {
		t.Fatalf("%s\n%s", states(out), c.log)
	}
	return c
}

func (c *caLab) cas(path string) []*x509.Certificate {
	c.t.Helper()
	all, err := pki.ParseCertificatesPEM([]byte(c.read(path)))
	if err != nil {
		c.t.Fatal(err)
	}
	return all
}

// node1 is another process of the agent.
func (c *caLab) node1() *node {
	n := c.newNode()
	n.openEtcd = func(context.Context, []string, *tls.Config) (etcdCluster, error) { return c.database, nil }
	up := func() error {
		if c.node.Units()[etcd.Unit] != "active" {
			return errors.New("connection refused")
		}
		return nil
	}
	n.askEtcd = func(context.Context, string, *tls.Config) (etcd.Status, error) {
		return etcd.Status{MemberID: "8e9e05c52164694d", Healthy: !c.leaderless, Follows: !c.leaderless, Leaderless: c.leaderless}, up()
	}
	n.askShown = func(_ context.Context, address string, conf *tls.Config) (etcd.Shown, error) {
		c.die()
		path := etcd.ServerPath
		if strings.HasSuffix(address, ":"+etcd.PeerPort) {
			path = etcd.PeerPath
		}
		leaf, err := n.readBundle(path)
		if err == nil {
			_, err = leaf.Verify(x509.VerifyOptions{Roots: conf.RootCAs, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		}
		return etcd.Shown{Leaf: leaf, Accepts: c.trusts}, errors.Join(err, up())
	}
	n.askEncryption = func(context.Context, string) (string, error) { return "", errors.New("not asked here") }
	return n
}

// tell has the server tell of a turn, with the CAs to trust; the first signs.
func (c *caLab) tell(turn uint64, cas ...*pki.CA) {
	var text []byte
	for _, ca := range cas {
		text = append(text, ca.CertificatePEM()...)
	}
	c.run.Etcd.CaTurn, c.run.Etcd.CaPem, c.run.Etcd.Restart, c.run.Kubernetes.RenewBefore = turn, string(text), false, nil
	c.set(func() { c.controlPlane.etcd = cas[0] })
}

func (c *caLab) turn() { c.run.Kubernetes.RenewBefore = timestamppb.New(c.clock().Add(time.Hour)) }

// by says whether all that is signed for etcd here is by one CA.
func (c *caLab) by(ca *pki.CA) bool {
	c.t.Helper()
	n := c.newNode()
	for _, b := range append(etcdBundles(), apiServerBundle()) {
		leaf, err := n.readBundle(b.path)
		if err != nil {
			c.t.Fatal(err)
		}
		if leaf.CheckSignatureFrom(ca.Certificate()) != nil {
			return false
		}
	}
	return true
}

// A node goes through the three turns of a replacement. What needs a start of etcd or the API server
// waits until it is this node's turn, and it is through when all of it is seen.
func TestANodeGoesThroughTheTurnsOfEtcdsCA(t *testing.T) {
	t.Parallel()
	c := newCALab(t)
	n := c.node1()
	once(n, c.run)
	report := func() (turn, done uint64, stale, outdated bool) {
		c.t.Helper()
		r := n.observe(t.Context(), c.run, outcome{})
		return r.etcd.GetCaTurn(), r.etcd.GetCaDone(), r.etcd.GetCaStale(), r.kubernetes.GetApiServerOutdated()
	}
	says := func(when string, turn, done uint64, stale, outdated bool) {
		t.Helper()
		if a, b, s, o := report(); a != turn || b != done || s != stale || o != outdated {
			t.Errorf("%s: turn %d, through with %d, etcd stale %v, API server outdated %v, want %d, %d, %v, %v", when, a, b, s, o, turn, done, stale, outdated)
		}
	}
	acts := func(when string, finished bool, want ...string) {
		t.Helper()
		if out := once(n, c.run); !slices.Equal(out.changed, want) || out.done != finished {
			t.Fatalf("%s: it changed %v, want %v: %s\n%s", when, out.changed, want, states(out), c.log)
		}
	}
	restarts := func(when string, turn uint64) {
		t.Helper()
		starts := c.starts
		says(when+", before etcd's turn", turn, 0, true, true)
		c.run.Etcd.Restart = true
		acts(when+", etcd", true, "etcd-restarted")
		says(when+", before the API server's turn", turn, 0, false, true)
		acts(when+", etcd again", true)
		if c.starts != starts+1 {
			t.Errorf("%s: etcd was started %d times", when, c.starts-starts)
		}
		c.run.Etcd.Restart = false
		c.turn()
		before := c.manifests()
		acts(when+", API server", false, "api-server-policy-in-use")
		says(when+", while the old API server runs", turn, 0, false, false)
		c.kubelet(before)
		acts(when+", API server started", true, "control-plane-restarted")
		says(when+", at its end", turn, turn, false, false)
	}
	says("never replaced", 0, 0, false, false)
	if strings.Contains(c.read(kubeadm.APIServerManifest), "etcd-ca") {
		t.Error("the API server is marked where nothing was replaced")
	}

	c.tell(1, c.old, c.new)
	acts("trusting", true, "etcd-authority", "api-server-policy")
	if !c.by(c.old) || len(c.cas(kubeadm.EtcdCAPath)) != 2 {
		t.Error("trusting: certificates are others, or the API server does not find both CAs")
	}
	restarts("trusting", 1)

	c.tell(2, c.new, c.old)
	starts := c.starts
	acts("signing", true, "etcd-authority", "etcd-certificates", "etcd-client-certificate")
	says("signing", 2, 2, false, false)
	if !c.by(c.new) || c.starts != starts || len(c.cas(etcd.CAPath)) != 2 {
		t.Errorf("signing: all by the new one %v, etcd started %d times, %d CAs", c.by(c.new), c.starts-starts, len(c.cas(etcd.CAPath)))
	}

	c.tell(3, c.new)
	acts("dropping", true, "etcd-authority", "api-server-policy")
	restarts("dropping", 3)
	if len(c.cas(etcd.CAPath)) != 1 || len(c.cas(kubeadm.EtcdCAPath)) != 1 || len(c.trusts) != 1 {
		t.Error("the old CA is trusted still")
	}

	// A server out of a backup of before.
	c.tell(2, c.old, c.new)
	acts("an older turn", true)
	says("an older turn", 3, 3, false, false)
	c.run.Etcd.CaTurn, c.run.Etcd.CaPem = 0, ""
	acts("a server that knows of nothing", true)
	says("a server that knows of nothing", 3, 3, false, false)
	if !c.by(c.new) || len(c.cas(etcd.CAPath)) != 1 {
		t.Error("an older server brought the old CA back")
	}
}

// Killed wherever it touches etcd or looks at it, it is through in the end.
func TestANodeThatIsKilledGoesThroughTheTurns(t *testing.T) {
	t.Parallel()
	for at := 0; ; at++ {
		c := newCALab(t)
		count, died := 0, false
		c.die = func() {
			if count++; count == at+1 {
				panic(killed{})
			}
		}
		for turn, cas := range [][]*pki.CA{{c.old, c.new}, {c.new, c.old}, {c.new}} {
			c.tell(uint64(turn+1), cas...)
			c.run.Etcd.Restart = true
			c.turn()
			done := uint64(0)
			for i := 0; i < 12 && done != uint64(turn+1); i++ {
				before := c.manifests()
				died = dies(func() {
					n := c.node1()
					done = n.observe(t.Context(), c.run, once(n, c.run)).etcd.GetCaDone()
				}) || died
				c.kubelet(before)
			}
			if done != uint64(turn+1) {
				t.Fatalf("killed at %d: it is through with %d of %d\n%s", at, done, turn+1, c.log)
			}
		}
		if !c.by(c.new) || len(c.trusts) != 1 || c.node.Units()[etcd.Unit] != "active" {
			t.Errorf("killed at %d: all by the new one %v, etcd trusts %d CAs and is %s", at, c.by(c.new), len(c.trusts), c.node.Units()[etcd.Unit])
		}
		if !died {
			if at < 12 {
				t.Errorf("only %d places to be killed at", at)
			}
			return
		}
	}
}

// Whatever the server says, a member is not taken away from others that are not well.
func TestAMemberIsNotStartedAnewWhileAnotherIsNotWell(t *testing.T) {
	t.Parallel()
	c := newCALab(t)
	n := c.node1()
	c.tell(1, c.old, c.new)
	c.run.Etcd.Restart = true
	c.database.peers[1].Follows = false
	out := once(n, c.run)
	if got, want := detailOf(out, "etcd-restarted"), "cp2 is not well, and a member that is started anew answers nobody meanwhile"; got != want || c.starts != 0 {
		t.Errorf("got %q, want %q; etcd was started %d times", got, want, c.starts)
	}
	c.database.peers[1].Learner = true // it has no vote
	if out := once(n, c.run); !out.done || c.starts != 1 || c.kills != 1 || len(c.database.did) > 0 {
		t.Errorf("%s; etcd was started %d times and killed %d times, it did %q", states(out), c.starts, c.kills, c.database.did)
	}
}

// A leader lets another voter lead before its etcd is started anew.
func TestALeaderIsNotStartedAnew(t *testing.T) {
	t.Parallel()
	c := newCALab(t)
	n := c.node1()
	c.tell(1, c.old, c.new)
	c.run.Etcd.Restart = true
	learner := peer(3, "cp3", "10.0.0.3")
	learner.Learner, learner.Follows = true, true
	c.database.peers = slices.Insert(c.database.peers, 1, learner)
	c.database.peers[0].Leader = true
	c.database.fails = errors.New("no leader")
	if out := once(n, c.run); detailOf(out, "etcd-restarted") != "no leader" || c.starts+c.kills != 0 {
		t.Errorf("%s; etcd was started %d times and killed %d times", states(out), c.starts, c.kills)
	}
	c.database.fails, c.database.did = nil, nil
	if out := once(n, c.run); !out.done || c.starts != 1 || !slices.Equal(c.database.did, []string{"let 2 lead"}) {
		t.Errorf("%s; etcd was started %d times, it did %q", states(out), c.starts, c.database.did)
	}
}

// A certificate by a CA that this node was not told of is not put in the place of one that works.
func TestACertificateByAnUnknownCAOfEtcdIsNotTaken(t *testing.T) {
	t.Parallel()
	c := newCALab(t)
	n := c.node1()
	c.tell(1, c.old, c.new)
	once(n, c.run)
	c.set(func() { c.controlPlane.etcd = c.new }) // the server is a stage further
	before := c.read(etcd.ServerPath)
	err := n.issueAll(t.Context(), etcdBundles())
	const want = "the server signs with another CA of etcd than it has told this node of; it tells of it next"
	if wait := waiting(""); !errors.As(err, &wait) || err.Error() != want || c.read(etcd.ServerPath) != before {
		t.Errorf("got %v", err)
	}
	if len(c.cas(etcd.CAPath)) != 2 {
		t.Error("the CAs on the disk are others")
	}
}
