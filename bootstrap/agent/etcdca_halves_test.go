package agent

import (
	"context"
	"crypto/tls"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// A turn counts when all its files are there: its number is written last. Killed in between, or
// kept from writing one, the node does not say that it has it, and the next run ends it.
func TestATurnOfEtcdsCACountsWhenItsFilesAreThere(t *testing.T) {
	t.Parallel()
	c := newCALab(t)
	n := c.node1()
	if err := c.node.Remove(kubeadm.EtcdCAPath); err != nil {
		t.Fatal(err)
	}
	c.put(kubeadm.EtcdCAPath+"/in-the-way", "x")
	c.tell(1, c.old, c.new)
	out := once(n, c.run)
	if got := n.observe(t.Context(), c.run, out).etcd.GetCaTurn(); out.done || len(c.cas(etcd.CAPath)) != 2 || got != 0 {
		t.Errorf("it has turn %d, with %d CAs for etcd and none for the API server: %s", got, len(c.cas(etcd.CAPath)), states(out))
	}
	if err := c.node.Remove(kubeadm.EtcdCAPath + "/in-the-way"); err != nil {
		t.Fatal(err)
	}
	for _, lost := range []string{kubeadm.EtcdCAPath, etcdTurnPath} {
		if err := c.node.Remove(lost); err != nil {
			t.Fatal(err)
		}
		out := once(c.node1(), c.run)
		if got := n.observe(t.Context(), c.run, out).etcd.GetCaTurn(); !out.done || !slices.Contains(out.changed, "etcd-authority") || got != 1 {
			t.Errorf("without %s: it has turn %d: %s", lost, got, states(out))
		}
	}
}

// What is no certificate takes the place of no CA: the member could not be started any more.
func TestWhatIsNoCAOfEtcdIsNotTaken(t *testing.T) {
	t.Parallel()
	c := newCALab(t)
	before := c.read(etcd.CAPath)
	c.run.Etcd.CaTurn, c.run.Etcd.CaPem = 1, "no certificate"
	out := once(c.node1(), c.run)
	const want = "reading the CAs of etcd that the server sent: parsing certificates: there is something else than PEM blocks CERTIFICATE"
	if got := detailOf(out, "etcd-authority"); got != want || c.read(etcd.CAPath) != before {
		t.Errorf("got  %q\nwant %q; the CAs are %q", got, want, c.read(etcd.CAPath))
	}
}

// A node is through when all that it shows says so, whatever lies on its disk: on both ports, by
// the CA that signs, with the CAs of now, and the API server's own certificate too.
func TestANodeIsThroughWhenAllOfItIs(t *testing.T) {
	t.Parallel()
	c := newCALab(t)
	former := c.read(kubeadm.EtcdClient)
	c.tell(2, c.new, c.old)
	c.run.Etcd.Restart = true
	c.turn()
	before := c.manifests()
	once(c.node1(), c.run)
	c.kubelet(before)
	if out := once(c.node1(), c.run); !out.done {
		t.Fatalf("%s\n%s", states(out), c.log)
	}
	old, err := parseChain([]byte(former))
	if err != nil {
		t.Fatal(err)
	}
	done := func(change func(port string, s *etcd.Shown)) uint64 {
		n := c.node1()
		ask := n.askShown
		n.askShown = func(ctx context.Context, address string, conf *tls.Config) (etcd.Shown, error) {
			s, err := ask(ctx, address, conf)
			s.Accepts = slices.Clone(s.Accepts)
			change(address[strings.LastIndex(address, ":")+1:], &s)
			return s, err
		}
		return n.observe(t.Context(), c.run, outcome{}).etcd.GetCaDone()
	}
	for _, port := range []string{etcd.ClientPort, etcd.PeerPort} {
		if got := done(func(p string, s *etcd.Shown) {
			if p == port {
				s.Leaf = old[0]
			}
		}); got != 0 {
			t.Errorf("port %s shows a certificate of before, and it is through with %d", port, got)
		}
		if got := done(func(p string, s *etcd.Shown) {
			if p == port {
				s.Accepts = s.Accepts[:1]
			}
		}); got != 0 {
			t.Errorf("port %s takes one CA, and it is through with %d", port, got)
		}
	}
	as := func(string, *etcd.Shown) {}
	now := c.read(kubeadm.EtcdClient)
	c.put(kubeadm.EtcdClient, former)
	if got := done(as); got != 0 {
		t.Errorf("the API server's certificate is of before, and it is through with %d", got)
	}
	c.put(kubeadm.EtcdClient, now)
	if got := done(as); got != 2 {
		t.Errorf("it is through with %d, want 2", got)
	}
}

// A server out of an old backup knows of no replacement, and tells of no CA: what is lost on the
// disk is made again by what it signs with.
func TestALostCAOfEtcdComesBackWithACertificate(t *testing.T) {
	t.Parallel()
	for _, lost := range []string{etcd.CAPath, kubeadm.EtcdCAPath} {
		c := newCALab(t)
		c.tell(3, c.new)
		c.run.Etcd.Restart = true
		once(c.node1(), c.run)
		c.run.Etcd.CaTurn, c.run.Etcd.CaPem, c.run.Etcd.Restart = 0, "", false
		if err := c.node.Remove(lost); err != nil {
			t.Fatal(err)
		}
		out := once(c.node1(), c.run)
		if all := c.cas(lost); len(all) != 1 || !all[0].Equal(c.new.Certificate()) {
			t.Errorf("%s has %d CAs: %s", lost, len(all), states(out))
		}
	}
}

// A member alone has nobody to let lead, and is started anew all the same; it is through with
// that when it follows a leader again.
func TestAMemberThatWasStartedAnewIsWaitedFor(t *testing.T) {
	t.Parallel()
	c := newCALab(t)
	c.database.peers = c.database.peers[:1]
	c.database.peers[0].Leader = true
	n := c.node1()
	asked, ask := 0, n.askEtcd
	n.askEtcd = func(ctx context.Context, endpoint string, conf *tls.Config) (etcd.Status, error) {
		s, err := ask(ctx, endpoint, conf)
		if c.starts > 0 && err == nil {
			asked++
			s.Follows = asked > 2
		}
		return s, err
	}
	c.tell(1, c.old, c.new)
	c.run.Etcd.Restart = true
	if out := once(n, c.run); !slices.Contains(out.changed, "etcd-restarted") || c.starts != 1 || asked != 3 || len(c.database.did) > 0 {
		t.Errorf("%s; started %d times, asked %d times, it did %q", states(out), c.starts, asked, c.database.did)
	}
}
