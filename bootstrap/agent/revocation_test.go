package agent

import (
	"context"
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// revocations is the list of a CA with a number.
func (l *lab) revocations(name string, ca *pki.CA, number uint64, revoked ...*x509.Certificate) *api.RevocationList {
	l.t.Helper()
	var all []pki.Revocation
	for _, c := range revoked {
		all = append(all, pki.Revocation{Serial: pki.Serial(c), At: time.Now()})
	}
	der, err := ca.RevocationList(number, all, time.Now())
	if err != nil {
		l.t.Fatal(err)
	}
	return &api.RevocationList{Ca: name, CrlDer: der}
}

func (l *lab) person() *x509.Certificate {
	l.t.Helper()
	return l.certificate(pki.Operator("lab", "ada", pki.RoleReader, pki.Lifetimes{})).Leaf
}

func runOf(run *api.Run) *api.SyncResponse {
	return &api.SyncResponse{Directive: &api.SyncResponse_Run{Run: run}}
}

// A node takes newer lists that their CA signed, and nothing else; it has them on
// its disk.
func TestANodeKeepsTheNewestList(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n, ada := l.newNode(), l.person()
	for _, step := range []struct {
		name    string
		list    *api.RevocationList
		revoked bool
		number  string
		says    string
	}{
		{"the first", l.revocations(caImagectl, l.ca, 3), false, "3", "new revocation list"},
		{"a newer one", l.revocations(caImagectl, l.ca, 4, ada), true, "4", "new revocation list"},
		{"an older one, as of a restored server", l.revocations(caImagectl, l.ca, 2), true, "4", "the server has an older revocation list"},
		{"the same number with other content", l.revocations(caImagectl, l.ca, 4), true, "4", ""},
		{"of another CA", l.revocations(caImagectl, l.kube, 9), true, "4", "its CA did not sign it"},
		{"no list at all", &api.RevocationList{Ca: caImagectl, CrlDer: []byte("x")}, true, "4", "reading a revocation list"},
	} {
		before := len(l.log.String())
		run := initRun(l)
		run.Revocations = []*api.RevocationList{step.list}
		news := n.revokedNews
		n.handle(context.Background(), runOf(run))
		trust, err := n.apiTLS()
		if err != nil {
			t.Fatal(err)
		}
		if got := trust.Revoked.Has(ada); got != step.revoked || trust.Revoked.Number() != step.number {
			t.Errorf("%s: revoked %v by list %s, want %v by %s", step.name, got, trust.Revoked.Number(), step.revoked, step.number)
		}
		if said := l.log.String()[before:]; !strings.Contains(said, step.says) {
			t.Errorf("%s: the log does not say %q:\n%s", step.name, step.says, said)
		}
		if step.says == "new revocation list" {
			<-news
		}
	}
	// A new process, and no server.
	trust, err := l.newNode().apiTLS()
	if err != nil || !trust.Revoked.Has(ada) {
		t.Errorf("after a restart: %v, revoked %v", err, trust.Revoked.Has(ada))
	}
}

// etcd's list is there before etcd starts, changes with the directive, and a
// certificate of the node's own that is on it is made anew.
func TestEtcdsListFollowsTheDirective(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	n, run := l.newNode(), initRun(l)
	n.handle(context.Background(), runOf(run))
	if out := once(n, run); !out.done || l.read(etcd.CRLPath) != string(run.GetRevocations()[1].GetCrlDer()) {
		t.Fatalf("first: %s", states(out))
	}
	old, err := n.readBundle(etcd.PeerPath)
	if err != nil {
		t.Fatal(err)
	}
	next := initRun(l)
	next.Revocations[1] = l.revocations(caEtcd, l.etcd, 2, old)
	n.handle(context.Background(), runOf(next))
	out := once(n, n.directive())
	if got, want := strings.Join(out.changed, " "), "etcd-certificates etcd-revocations"; got != want || !out.done {
		t.Errorf("changed %s, want %s: %s", got, want, states(out))
	}
	fresh, err := n.readBundle(etcd.PeerPath)
	if err != nil || pki.Serial(fresh) == pki.Serial(old) {
		t.Errorf("the revoked certificate is still in use: %v", err)
	}
	der, err := os.ReadFile(l.node.Root + etcd.CRLPath)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := pki.ParseRevocationList(der, l.etcd.Certificate()); err != nil || !list.Has(old) || list.Has(fresh) {
		t.Errorf("etcd's list: %v", err)
	}

	// A list that etcd's CA did not sign never gets to etcd.
	forged := initRun(l)
	forged.Revocations[1] = l.revocations(caEtcd, l.kube, 7, fresh)
	n.handle(context.Background(), runOf(forged))
	if out := once(n, n.directive()); len(out.changed) > 0 || !out.done || l.read(etcd.CRLPath) != string(der) {
		t.Errorf("a forged list: changed %v: %s", out.changed, states(out))
	}
	forged = initRun(l)
	forged.Revocations[1] = l.revocations(caEtcd, l.kube, 7, fresh)
	for _, s := range once(n, forged).steps {
		if s.GetName() == "etcd-revocations" && !strings.Contains(s.GetDetail(), "its CA did not sign it") {
			t.Errorf("a forged list from the disk: %v", s)
		}
	}
}

func TestTheTokenIsShownAtEnrolment(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.agent(nodeconf.Node)
	a.Config.Token = "cp1.secret"
	if err := a.open(); err != nil {
		t.Fatal(err)
	}
	if err := a.ensureEnrolled(t.Context(), api.Mode_MODE_NODE); err != nil {
		t.Fatal(err)
	}
	if l.token != "cp1.secret" || strings.Contains(l.log.String(), "secret") {
		t.Errorf("the server was shown %q; the log: %s", l.token, l.log)
	}
}

// An agent turns away from a server whose certificate is revoked.
func TestARevokedServerIsNoServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.newNode()
	n.servers.reconnect()
	cert := l.server
	run := initRun(l)
	run.Revocations[0] = l.revocations(caImagectl, l.ca, 2, cert)
	n.use(run)
	_, err := n.sync(context.Background(), api.Mode_MODE_NODE, 0, true, nil, report{})
	if err == nil || !strings.Contains(err.Error(), "verifying the server: its certificate (serial "+pki.Serial(cert)+") is revoked") {
		t.Errorf("got %v", err)
	}
}
