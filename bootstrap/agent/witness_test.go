package agent

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// entries is a chain of n entries, those after the first same of which are forged.
func entries(t *testing.T, n, same int) (lines [][]byte, tips []audit.Tip) {
	t.Helper()
	var tip audit.Tip
	for i := range n {
		e := audit.Entry{Action: "test", Detail: fmt.Sprint(i)}
		if i >= same {
			e.Detail = "forged"
		}
		line, next, err := audit.Seal(tip, e)
		if err != nil {
			t.Fatal(err)
		}
		lines, tips, tip = append(lines, line), append(tips, next), next
	}
	return lines, tips
}

// A control plane signs how far it has followed the log, also after a restart, and tells in
// what it signs when the log does not hold what it signed before.
func TestAControlPlaneSignsTheLogThatItFollows(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.newNode()
	n.handle(t.Context(), runOf(initRun(l)))
	honest, tips := entries(t, 9, 9)
	forged, others := entries(t, 9, 2)
	// show is the server showing an end of its log; it returns what the node then says.
	show := func(lines [][]byte, tip audit.Tip) (string, error) {
		l.set(func() { l.audit = lines })
		n.see(l.head(l.ca, "lab", tip.Seq, tip.Hash))
		done, err := n.followAudit(context.Background())
		w := n.AuditHeads().GetWitness()
		if w == nil {
			return "nothing", err
		}
		said, perr := audit.ParseWitness(w.GetStatement())
		if perr != nil {
			t.Fatal(perr)
		}
		leaf, perr := pki.ParseCertificatePEM([]byte(w.GetCertificatePem()))
		if perr != nil {
			t.Fatal(perr)
		}
		if err := pki.CheckAttested(leaf, audit.WitnessDomain, w.GetStatement(), w.GetSignature()); err != nil || said.Cluster != "lab" || said.Node != "cp1" {
			t.Errorf("%+v: %v", said, err)
		}
		out := fmt.Sprintf("%v %d-%d", done, said.Since.Seq, said.Seq)
		for _, lost := range said.Lost {
			out += fmt.Sprintf(" lost %d", lost.Seq)
		}
		return out, err
	}
	check := func(when string, lines [][]byte, tip audit.Tip, want, wantErr string) {
		t.Helper()
		got, err := show(lines, tip)
		if got != want || wantErr == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), wantErr) {
			t.Errorf("%s: got %s, %v; want %s, %s", when, got, err, want, wantErr)
		}
	}
	check("at first", honest, tips[1], "true 2-2", "")
	check("nothing new", honest, tips[1], "false 2-2", "")
	check("it grew", honest, tips[4], "true 2-5", "")
	check("the server holds entries back", honest[:5], tips[6], "false 2-5", "entries come up to 5 only")
	n = l.newNode()
	if err := n.loadHeads(); err != nil {
		t.Fatal(err)
	}
	if err := n.loadWitness(); err != nil {
		t.Fatal(err)
	}
	check("after a restart", honest, tips[7], "true 2-8", "")
	check("made anew", forged, others[8], "true 9-9 lost 8", "")
	check("and back", honest, tips[8], "true 9-9 lost 8 lost 9", "")
	if !strings.Contains(l.log.String(), "does not hold what this node has signed") {
		t.Error(l.log)
	}
	if mode, err := l.node.Mode(witnessPath); err != nil || mode != 0o600 {
		t.Errorf("mode %v, %v", mode, err)
	}
	l.put(witnessPath, "half of")
	n = l.newNode()
	if err := n.loadWitness(); err != nil || l.read(witnessPath+".bad") != "half of" || n.AuditHeads().GetWitness() != nil {
		t.Errorf("what cannot be read: %v", err)
	}
}

// Who follows the log reads it: only control planes do.
func TestAWorkerSignsNothing(t *testing.T) {
	t.Parallel()
	for controlPlane, want := range map[bool]bool{true: true, false: false} {
		l := newLab(t)
		lines, tips := entries(t, 3, 3)
		l.audit = lines
		run := runOf(&api.Run{Machine: "cp1", Cluster: "lab", ControlPlane: controlPlane, ClientCaPem: string(l.ca.CertificatePEM())})
		run.AuditHead = l.head(l.ca, "lab", 3, tips[2].Hash)
		run.Backup = l.offer(l.ca, 1, "to know that it was heard", 1)
		l.direct(run)
		l.start(nodeconf.Node)
		r := l.wait("a report", func(r *api.SyncRequest) bool {
			return len(r.GetBackups()) == 1 && (r.GetWitness() != nil || !want)
		})
		if (r.GetWitness() != nil) != want {
			t.Errorf("control plane %v: it signed %v", controlPlane, r.GetWitness())
		}
	}
}
