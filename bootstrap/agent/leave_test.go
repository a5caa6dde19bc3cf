package agent

import (
	"context"
	"crypto"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// A voter takes the member of a retired machine off the list, and nothing else.
func TestAVoterRemovesTheMemberOfARetiredMachine(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l).ready = true
	m := newMembers(l, peer(2, "cp2", "10.0.0.2"))
	n, run := l.newNode(), joinRun(l)
	if out := once(n, run); !out.done {
		t.Fatal(states(out))
	}
	run.Etcd.Action, run.Kubernetes.Action = api.EtcdWanted_ACTION_RUN, api.KubernetesWanted_ACTION_RUN
	once(n, run)
	m.changes = nil

	gone := peer(3, "cp3", "10.0.0.3")
	gone.Answers, gone.Healthy = false, false
	m.list = append(m.list, gone)
	run.Etcd.Remove = "cp3"
	// With another one down, three have no quorum.
	m.list[0].Healthy = false
	out := once(n, run)
	if len(m.changes) > 0 || out.done || !strings.Contains(states(out), "etcd-removal=pending") && !strings.Contains(states(out), "etcd-removal=running") {
		t.Errorf("without a quorum: %v, %s", m.changes, states(out))
	}
	m.list[0].Healthy = true
	if out := once(n, run); !out.done || !slices.Equal(out.changed, []string{"etcd-removal"}) || !slices.Equal(m.changes, []string{"remove 3"}) {
		t.Errorf("changed %v, %v: %s", out.changed, m.changes, states(out))
	}
	if again := once(n, run); len(again.changed) > 0 || !again.done {
		t.Errorf("the second run changed %v: %s", again.changed, states(again))
	}
	if slices.ContainsFunc(m.list, func(p etcd.Peer) bool { return p.Name == "cp3" }) || len(m.list) != 2 {
		t.Errorf("the list is %v", m.list)
	}
}

// What kubeadm made ends a year later; the server hears of the first end.
func TestAControlPlaneReportsWhenKubeadmsCertificatesEnd(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.newNode()
	if got := n.kubeadmEnds(); !got.IsZero() {
		t.Errorf("without any: %s", got)
	}
	long, month := l.operatorFor(300*24*time.Hour), l.operatorFor(30*24*time.Hour)
	pemOf := func(c tls.Certificate) string { return string(pki.EncodeCertificate(c.Leaf.Raw)) }
	l.put(kubeadm.PKIDir+"/apiserver.crt", pemOf(long))
	l.put(kubeadm.PKIDir+"/front-proxy-client.crt", "not yet written")
	l.put("/etc/kubernetes/scheduler.conf", "half of")
	if got := n.kubeadmEnds(); !got.Equal(long.Leaf.NotAfter) {
		t.Errorf("got %s, want %s", got, long.Leaf.NotAfter)
	}
	l.put("/etc/kubernetes/controller-manager.conf", l.kubeconfig(month))
	if got := n.kubeadmEnds(); !got.Equal(month.Leaf.NotAfter) {
		t.Errorf("got %s, want %s", got, month.Leaf.NotAfter)
	}
}

// kubeconfig is one with a certificate in it, as kubeadm writes them.
func (l *lab) kubeconfig(c tls.Certificate) string {
	l.t.Helper()
	key, err := pki.EncodeKey(c.PrivateKey.(crypto.Signer))
	if err != nil {
		l.t.Fatal(err)
	}
	b64 := func(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
	return fmt.Sprintf("clusters: [{name: c, cluster: {server: 'https://127.0.0.1:6443', certificate-authority-data: %s}}]\nusers: [{name: u, user: {client-certificate-data: %s, client-key-data: %s}}]\n",
		b64(l.kube.CertificatePEM()), b64(pki.EncodeCertificate(c.Leaf.Raw)), b64(key))
}

// operatorFor is some certificate of that lifetime.
func (l *lab) operatorFor(life time.Duration) tls.Certificate {
	l.t.Helper()
	return l.certificate(pki.Operator("lab", "ada", pki.RoleReader, pki.Lifetimes{Operator: life}))
}

// A node tells which lists it has, sends them when it is asked to, and keeps them
// until the server has others.
func TestANodeSendsItsListsToARestoredServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n, ada := l.newNode(), l.person()
	run := initRun(l)
	run.Revocations = []*api.RevocationList{l.revocations(caImagectl, l.ca, 7, ada), l.revocations(caEtcd, l.etcd, 4)}
	n.handle(context.Background(), runOf(run))
	for _, whole := range []bool{false, true, false} {
		resp := runOf(initRun(l))
		resp.GetRun().Revocations, resp.SendLists = nil, whole
		n.handle(context.Background(), resp)
		held := n.news().held
		if len(held) != 2 || held[0].GetCa() != caImagectl || held[0].GetNumber() != 7 || held[1].GetCa() != caEtcd || held[1].GetNumber() != 4 {
			t.Fatalf("got %v", held)
		}
		for i, h := range held {
			if sent := len(h.GetCrlDer()) > 0; sent != whole || sent && !slices.Equal(h.GetCrlDer(), run.GetRevocations()[i].GetCrlDer()) {
				t.Errorf("asked %v, sent %v", whole, sent)
			}
		}
	}
}
