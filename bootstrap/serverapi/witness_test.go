package serverapi

import (
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// What a control plane has signed is kept beside the log and handed to operators, with the
// certificate of the key; what is not its own is refused.
func TestSignaturesOfTheLogAreKept(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	r := start(t, cfg)
	cp, w := r.approvedMachine("cp1", "52:54:00:00:00:01"), r.approvedMachine("w1", "52:54:00:00:00:02")
	fetch := func(f *fake, after uint64) (lines [][]byte, err error) {
		s, err := f.agent().FetchAudit(t.Context(), connect.NewRequest(&api.FetchAuditRequest{After: after}))
		if err != nil {
			return nil, err
		}
		defer s.Close()
		for s.Receive() {
			lines = append(lines, s.Msg().GetLines()...)
		}
		return lines, s.Err()
	}
	if _, err := fetch(w, 0); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a worker reads the log: %v", err)
	}
	head := cp.sync(running()).GetAuditHead()
	lines, err := fetch(cp, 0)
	if err != nil {
		t.Fatal(err)
	}
	some, err := fetch(cp, 3)
	if err != nil || len(some)+3 != len(lines) {
		t.Errorf("%d lines behind entry 3 of %d, %v", len(some), len(lines), err)
	}
	said, err := audit.Witness{Cluster: "demo", Node: "cp1"}.Follow(nil, audit.Tip{Seq: head.GetSeq(), Hash: head.GetHash()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	sign := func(w audit.Witness, by *fake) *api.AuditWitness {
		b, err := w.Statement()
		if err != nil {
			t.Fatal(err)
		}
		sig, err := pki.Attest(by.key, rand.Reader, audit.WitnessDomain, b)
		if err != nil {
			t.Fatal(err)
		}
		return &api.AuditWitness{Statement: b, Signature: sig}
	}
	kept := func() []*api.AuditWitness {
		resp, err := r.operator(pki.RoleReader).ListAuditSignatures(t.Context(), connect.NewRequest(&api.ListAuditSignaturesRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Msg.GetWitnesses()
	}
	tell := func(f *fake, w *api.AuditWitness) error {
		req := running()
		req.Witness = w
		_, err := f.agent().Sync(t.Context(), connect.NewRequest(req))
		return err
	}
	other, elsewhere, long := said, said, said
	other.Node, elsewhere.Cluster = "cp2", "prod"
	long.Lost = []audit.Loss{{Tip: audit.Tip{Seq: 1, Hash: strings.Repeat("a", maxStatement)}}}
	for what, c := range map[string]struct {
		from *fake
		w    *api.AuditWitness
	}{
		"a worker's":         {w, sign(said, w)},
		"by another key":     {cp, sign(said, w)},
		"in another's name":  {cp, sign(other, cp)},
		"of another cluster": {cp, sign(elsewhere, cp)},
		"no statement":       {cp, &api.AuditWitness{Statement: []byte("{}")}},
		"too long":           {cp, sign(long, cp)},
	} {
		// None of it keeps a node from being told what to do.
		if err := tell(c.from, c.w); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if all := kept(); len(all) != 0 {
		t.Errorf("kept: %v", all)
	}
	before, err := r.VerifyAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tell(cp, sign(said, cp)); err != nil {
		t.Fatal(err)
	}
	// To keep one is no news to sign.
	if after, err := r.VerifyAudit(t.Context()); err != nil || after != before {
		t.Errorf("the log went on from entry %d to %d, %v", before.Seq, after.Seq, err)
	}
	r.restart(cfg)
	all := kept()
	if len(all) != 1 {
		t.Fatalf("kept: %v", all)
	}
	leaf, err := pki.ParseCertificatePEM([]byte(all[0].GetCertificatePem()))
	if err != nil || fingerprint(leaf) != fingerprint(cp.cert.Leaf) {
		t.Errorf("the certificate is %v, %v", leaf, err)
	}
	if err := pki.CheckAttested(leaf, audit.WitnessDomain, all[0].GetStatement(), all[0].GetSignature()); err != nil {
		t.Error(err)
	}
}
