package agent

import (
	"context"
	"encoding/pem"
	"errors"
	"io"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/tpm"
)

// isTPMKey tells what a key's file is.
func isTPMKey(file []byte) bool {
	block, _ := pem.Decode(file)
	return block != nil && block.Type == tpm.KeyType
}

// makeInTPM makes the key in the TPM. Where that fails it makes one for this run, with
// which the machine can at least tell the server why.
func (i *identity) makeInTPM(rand io.Reader) error {
	key, err := i.device.NewKey()
	if err != nil {
		i.trouble = err
		if i.key == nil {
			i.key, _, err = newKey(rand)
			return err
		}
		return nil
	}
	file, err := key.PEM()
	if err != nil {
		return err
	}
	if err := i.host.WriteFile(KeyPath, file, 0o600); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key, i.file, i.trouble = key, file, nil
	return nil
}

// ask makes one enrolment, and proves who the machine is when the server wants it.
func (a *Agent) ask(ctx context.Context, mode api.Mode) (*api.EnrolResponse, error) {
	if a.id.trouble != nil {
		// A TPM may be busy, and its driver late.
		if err := a.id.makeInTPM(a.Rand); err != nil {
			return nil, err
		}
	}
	csr, err := request(a.Rand, a.id.key)
	if err != nil {
		return nil, err
	}
	req := &api.EnrolRequest{
		CsrDer: csr, Facts: a.wireFacts(a.Host.Facts()), Mode: mode, AgentVersion: a.Version, Token: a.Config.Token, CaSha256: pki.Digest(a.authority.given[0]),
	}
	key, inTPM := a.id.key.(*tpm.Key)
	trouble := a.id.trouble
	if inTPM {
		req.Tpm, trouble = a.id.claimed()
	}
	req.TpmTrouble = a.troubleOf(trouble)
	resp, err := a.servers.current().enrol.Enrol(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	ch := resp.Msg.GetTpmChallenge()
	if ch == nil || !inTPM {
		return resp.Msg, nil
	}
	if req.TpmProof, err = a.prove(key, ch); err != nil {
		req.Tpm, req.TpmTrouble = nil, a.troubleOf(err)
	}
	if resp, err = a.servers.current().enrol.Enrol(ctx, connect.NewRequest(req)); err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// claimed is which TPM this is. It is asked once: a slow TPM takes seconds for it.
func (i *identity) claimed() (*api.TpmClaim, error) {
	if i.claim == nil {
		c, err := i.device.Claim()
		if err != nil {
			return nil, err
		}
		i.claim = &api.TpmClaim{EkPublic: c.EK, AkPublic: c.AK}
	}
	return i.claim, nil
}

// troubleOf words a trouble for the server. What exactly it is, the journal and the
// console say, once.
func (a *Agent) troubleOf(err error) api.TpmTrouble {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != a.id.said && text != "" {
		a.Log.Error("the TPM is of no use", "err", err)
		a.Host.Print("imagectl: " + text)
	}
	a.id.said = text
	switch {
	case err == nil:
		return api.TpmTrouble_TPM_TROUBLE_UNSPECIFIED
	case errors.Is(err, tpm.ErrAbsent):
		return api.TpmTrouble_TPM_TROUBLE_ABSENT
	case errors.Is(err, tpm.ErrBusy):
		return api.TpmTrouble_TPM_TROUBLE_BUSY
	default:
		return api.TpmTrouble_TPM_TROUBLE_FAILED
	}
}

// prove answers a challenge.
func (a *Agent) prove(key *tpm.Key, ch *api.TpmChallenge) (*api.TpmProof, error) {
	p, err := a.id.device.Prove(tpm.Challenge{Nonce: ch.GetNonce(), Credential: ch.GetCredential(), Secret: ch.GetSecret()}, a.authority.given[0].RawSubjectPublicKeyInfo, key)
	if err != nil {
		return nil, err
	}
	return &api.TpmProof{
		Nonce: p.Nonce, Activated: p.Activated, KeyPublic: p.Key, Certified: p.Certified, CertifySignature: p.CertifySignature,
		Quoted: p.Quoted, QuoteSignature: p.QuoteSignature, Pcrs: p.PCRs,
	}, nil
}
