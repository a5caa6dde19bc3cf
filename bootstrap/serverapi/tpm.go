package serverapi

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/bootstrap/tpm"
)

// byTPM is who approved a key that a TPM let in.
const byTPM = "its TPM"

// attest judges what a request says about its machine's TPM. Both results are nil for
// a claim that is not proven yet.
func (s *Server) attest(name string, key pki.PublicKey, req *api.EnrolRequest) (*tpm.Attested, *enrol.Refusal) {
	if req.GetTpm() == nil {
		trouble := enrol.TPMUnused
		switch req.GetTpmTrouble() {
		case api.TpmTrouble_TPM_TROUBLE_ABSENT:
			trouble = enrol.TPMAbsent
		case api.TpmTrouble_TPM_TROUBLE_BUSY:
			trouble = enrol.TPMBusy
		case api.TpmTrouble_TPM_TROUBLE_FAILED:
			trouble = enrol.TPMFailed
		}
		return nil, enrol.TPMTrouble(name, trouble)
	}
	p := req.GetTpmProof()
	if p == nil {
		return nil, nil
	}
	got, err := s.tpm.For(s.trust.Load().named(req.GetCaSha256())).Verify(claimOf(req), tpm.Proof{
		Nonce: p.GetNonce(), Activated: p.GetActivated(), Key: p.GetKeyPublic(),
		Certified: p.GetCertified(), CertifySignature: p.GetCertifySignature(),
		Quoted: p.GetQuoted(), QuoteSignature: p.GetQuoteSignature(), PCRs: p.GetPcrs(),
	}, key.SPKI(), s.cfg.Now())
	var refusal *tpm.Refusal
	switch {
	case errors.As(err, &refusal):
		return nil, &enrol.Refusal{Code: refusal.Code, Reason: refusal.Reason}
	case err != nil: // nothing that is not understood is a proof
		return nil, &enrol.Refusal{Code: tpm.CodeMalformed, Reason: err.Error()}
	}
	return &got, nil
}

func claimOf(req *api.EnrolRequest) tpm.Claim {
	return tpm.Claim{EK: req.GetTpm().GetEkPublic(), AK: req.GetTpm().GetAkPublic()}
}

// challenge asks a machine to prove its claim.
func (s *Server) challenge(d enrol.Decision, key pki.PublicKey, req *api.EnrolRequest) (*connect.Response[api.EnrolResponse], error) {
	ch, err := s.tpm.Challenge(claimOf(req), key.SPKI(), s.cfg.Now(), s.cfg.Rand)
	var refusal *tpm.Refusal
	switch {
	case errors.As(err, &refusal):
		return s.answer(enrol.Decision{Status: enrol.Pending, Code: refusal.Code, Reason: refusal.Reason}), nil
	case err != nil:
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	resp := s.answer(d)
	resp.Msg.TpmChallenge = &api.TpmChallenge{Nonce: ch.Nonce, Credential: ch.Credential, Secret: ch.Secret}
	return resp, nil
}

// tpmOf is what enrolment looks at.
func (s *Server) tpmOf(m store.Machine) *enrol.TPMRecord {
	listed, _ := s.machineOf(m.Name)
	r := &enrol.TPMRecord{Listed: listed.EK, Waiting: map[string]enrol.Proven{}, PCRs: s.cfg.PCRs}
	if b := m.TPM; b != nil {
		r.Bound = &tpm.Attested{EK: b.EK, AK: b.AK, Challenged: b.At, Resets: b.Resets, Clock: b.Clock, Firmware: b.Firmware, PCRs: b.PCRs}
	}
	for _, k := range m.Pending {
		if k.TPM != nil {
			r.Waiting[k.Fingerprint] = enrol.Proven{EK: k.TPM.EK, PCRs: k.TPM.PCRs, Resets: k.TPM.Resets}
		}
	}
	return r
}

// proofOf is what is kept of a proof.
func proofOf(a *tpm.Attested) *store.TPM {
	if a == nil {
		return nil
	}
	return &store.TPM{EK: a.EK, AK: a.AK, At: a.Challenged, Resets: a.Resets, Clock: a.Clock, Firmware: a.Firmware, PCRs: a.PCRs}
}

// otherOwner names another machine that a TPM belongs to: by cluster.yaml, or by the
// record.
func (s *Server) otherOwner(name, ek, recorded string) string {
	for _, m := range s.cfg.Machines {
		if m.EK == ek && m.Name != name {
			return m.Name
		}
	}
	if recorded != name {
		return recorded
	}
	return ""
}

// valueEK is the name of the value that says which machine a TPM was accepted for.
func valueEK(ek string) string { return "tpm-ek/" + ek }

// ownerOf names the machine that a TPM was accepted for; empty for none.
func (c *change) ownerOf(ek string) (string, error) {
	var name string
	_, err := c.tx.Value(valueEK(ek), &name)
	return name, err
}

// bind makes a TPM the machine's, and no other one's; nil is none.
func (c *change) bind(m *store.Machine, p *store.TPM) error {
	if p == nil {
		return nil
	}
	owner, err := c.ownerOf(p.EK)
	if err != nil {
		return err
	}
	if owner != "" && owner != m.Name {
		return &enrol.Refusal{Code: enrol.CodeTPMElsewhere, Reason: fmt.Sprintf("the TPM that this key is in belongs to %s; if it has another name now: imagectl machines retire %s", owner, owner)}
	}
	next, detail := *p, ""
	if m.TPM != nil {
		if m.TPM.EK == p.EK {
			next.Before = m.TPM.PCRs
			if changed := changedPCRs(next); len(changed) > 0 {
				detail = fmt.Sprintf(", registers %d differ from its last proof", changed)
			}
		} else if err := c.unbind(m); err != nil {
			return err
		}
	}
	m.TPM = &next
	c.log(audit.Entry{Action: "tpm-proven", Machine: m.Name, Detail: fmt.Sprintf("endorsement key %s, %d starts, firmware %x%s", p.EK, p.Resets, p.Firmware, detail)})
	return c.tx.PutValue(valueEK(p.EK), m.Name)
}

// unbind lets another machine have the TPM.
func (c *change) unbind(m *store.Machine) error {
	if m.TPM == nil {
		return nil
	}
	owner, err := c.ownerOf(m.TPM.EK)
	if err != nil || owner != m.Name {
		return err
	}
	return c.tx.PutValue(valueEK(m.TPM.EK), "")
}

// changedPCRs are the registers that differ from the proof before.
func changedPCRs(p store.TPM) []uint {
	var out []uint
	for i, index := range tpm.PCRIndexes() {
		if i < len(p.PCRs) && i < len(p.Before) && !bytes.Equal(p.PCRs[i], p.Before[i]) {
			out = append(out, index)
		}
	}
	return out
}

// admit takes a key that its machine's TPM lets in.
func (s *Server) admit(c *change, m *store.Machine, key store.Key) error {
	if m.Key != nil {
		if _, err := s.revoke(c, holderOf(pki.KindNode, m.Name), "the machine's key was replaced", every); err != nil {
			return err
		}
	}
	m.Pending = append(m.Pending, key)
	if err := c.approve(m, len(m.Pending)-1, byTPM); err != nil {
		return err
	}
	return c.move(m, "conflict-resolved", "", machine.ConflictResolved)
}

// tpmView is the TPM of the key that waits, or of the approved one; nil for none.
func tpmView(r store.Machine) *api.TpmView {
	p, accepted := r.TPM, true
	if n := len(r.Pending); n > 0 && r.Pending[n-1].TPM != nil {
		p, accepted = r.Pending[n-1].TPM, false
	}
	if p == nil {
		return nil
	}
	v := &api.TpmView{Ek: p.EK, Ak: p.AK, ProvenAt: timestamppb.New(p.At), Accepted: accepted, Resets: p.Resets, Firmware: p.Firmware}
	changed := changedPCRs(*p)
	for i, index := range tpm.PCRIndexes() {
		if i < len(p.PCRs) {
			v.Pcrs = append(v.Pcrs, &api.Pcr{Index: uint32(index), Sha256: hex.EncodeToString(p.PCRs[i]), Changed: slices.Contains(changed, index)})
		}
	}
	return v
}
