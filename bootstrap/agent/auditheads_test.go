package agent

import (
	"context"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// head is one that a CA has signed.
func (l *lab) head(ca *pki.CA, cluster string, seq uint64, hash string) *api.AuditHead {
	l.t.Helper()
	b, err := ca.Attest(audit.HeadDomain, audit.Tip{Seq: seq, Hash: hash}.Statement(cluster))
	if err != nil {
		l.t.Fatal(err)
	}
	return &api.AuditHead{Seq: seq, Hash: hash, Signature: b}
}

// A node remembers what the server has signed, also after a restart, and nothing else.
func TestANodeRemembersTheEndsOfTheAuditLog(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.newNode()
	show := func(h *api.AuditHead) {
		resp := runOf(initRun(l))
		resp.AuditHead = h
		n.handle(context.Background(), resp)
	}
	said := func() string {
		var out []string
		for _, all := range [][]*api.AuditHeadsResponse_Seen{n.AuditHeads().GetHeads(), n.AuditHeads().GetLost()} {
			var s []string
			for _, h := range all {
				s = append(s, h.GetHead().GetHash())
			}
			out = append(out, strings.Join(s, " "))
		}
		return strings.Join(out, "; lost ")
	}
	show(nil)
	show(l.head(l.ca, "lab", 7, "a7"))
	show(l.head(l.etcd, "lab", 8, "by another CA"))
	show(l.head(l.ca, "prod", 8, "of another cluster"))
	forged := l.head(l.ca, "lab", 8, "a8")
	forged.Hash = "b8"
	show(forged)
	if got, want := said(), "a7; lost "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	n = l.newNode()
	if err := n.loadHeads(); err != nil {
		t.Fatal(err)
	}
	show(l.head(l.ca, "lab", 9, "a9"))
	show(l.head(l.ca, "lab", 8, "b8"))
	if got, want := said(), "a7 b8; lost a9"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !strings.Contains(l.log.String(), "the server's audit log went back") {
		t.Error(l.log)
	}
	if got, err := l.node.Mode(headsPath); err != nil || got != 0o600 {
		t.Errorf("mode %v, %v", got, err)
	}
	// What cannot be read is not thrown away.
	l.put(headsPath, "half of")
	n = l.newNode()
	if err := n.loadHeads(); err != nil || said() != "; lost " || l.read(headsPath+".bad") != "half of" {
		t.Errorf("got %v, %s", err, said())
	}
}
