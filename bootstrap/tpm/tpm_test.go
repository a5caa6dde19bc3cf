package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/imagectl/imagectl/bootstrap/tpm"
	"github.com/imagectl/imagectl/bootstrap/tpm/tpmtest"
)

// rig is a server's CA and judge, and a machine with a TPM and a key in it.
type rig struct {
	now    time.Time
	ca     *x509.Certificate
	judge  *tpm.Verifier
	tpm    *tpmtest.TPM
	device *tpm.Device
	key    *tpm.Key
	claim  tpm.Claim
	spki   []byte
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), ca: newCA(t), tpm: tpmtest.New(t, "")}
	r.judge = newJudge(t, r.ca)
	r.device = r.tpm.Device()
	var err error
	if r.key, err = r.device.NewKey(); err != nil {
		t.Fatal(err)
	}
	if r.claim, err = r.device.Claim(); err != nil {
		t.Fatal(err)
	}
	r.spki = spkiOf(t, r.key.Public())
	return r
}

func newCA(t testing.TB) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newJudge(t testing.TB, ca *x509.Certificate) *tpm.Verifier {
	t.Helper()
	v, err := tpm.NewVerifier(ca, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func spkiOf(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (r *rig) challenge(t *testing.T) tpm.Challenge {
	t.Helper()
	ch, err := r.judge.Challenge(r.claim, r.spki, r.now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func (r *rig) prove(t *testing.T) tpm.Proof {
	t.Helper()
	p, err := r.device.Prove(r.challenge(t), r.ca.RawSubjectPublicKeyInfo, r.key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// public changes a public area.
func public(t *testing.T, area []byte, change func(*tpm2.TPMTPublic)) []byte {
	t.Helper()
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil {
		t.Fatal(err)
	}
	change(p)
	return tpm2.Marshal(*p)
}

func TestATPMProvesWhichMachineItIsIn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	firmware := sha256.Sum256([]byte("firmware"))
	r.tpm.Measure(0, firmware)
	got, err := r.judge.Verify(r.claim, r.prove(t), r.spki, r.now.Add(tpm.Answer))
	if err != nil {
		t.Fatal(err)
	}
	// An EK is named by what openssl makes of its public key.
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](r.claim.EK)
	if err != nil {
		t.Fatal(err)
	}
	ek, err := tpm2.Pub(*area)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(spkiOf(t, ek))
	if want := hex.EncodeToString(sum[:]); got.EK != want {
		t.Errorf("got EK %s, want %s", got.EK, want)
	}
	zero := make([]byte, 32)
	extended := sha256.Sum256(append(zero[:32:32], firmware[:]...))
	if !got.Challenged.Equal(r.now) || len(got.AK) != 64 || len(got.PCRs) != len(tpm.PCRIndexes()) || !bytes.Equal(got.PCRs[0], extended[:]) || !bytes.Equal(got.PCRs[1], zero) {
		t.Errorf("got %+v", got)
	}

	// It is the same TPM after its power was off, and it counts.
	r.tpm.Off()
	r.tpm.On()
	later, err := r.judge.Verify(r.claim, r.prove(t), r.spki, r.now)
	if err != nil {
		t.Fatal(err)
	}
	if later.EK != got.EK || later.AK != got.AK || later.Resets <= got.Resets {
		t.Errorf("got %+v after %+v", later, got)
	}
}

// Every proof that does not hold, word by word: this is what a machine's console and
// the operator are shown.
func TestProofsThatDoNotHold(t *testing.T) {
	t.Parallel()
	r, other := newRig(t), newRig(t)
	good, before := r.prove(t), r.prove(t)
	second, err := r.device.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	soft, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	flipped := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
		return b
	}
	point := func(k *ecdsa.PublicKey) func(*tpm2.TPMTPublic) {
		return func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: k.X.FillBytes(make([]byte, 32))}, Y: tpm2.TPM2BECCParameter{Buffer: k.Y.FillBytes(make([]byte, 32))},
			})
		}
	}
	softArea := public(t, good.Key, point(&soft.PublicKey))
	// For another CA, as when somebody swapped it on the wire.
	swapped, err := r.device.Prove(r.challenge(t), other.ca.RawSubjectPublicKeyInfo, r.key)
	if err != nil {
		t.Fatal(err)
	}
	// With another key in the same TPM than the one that the request is for.
	unbound, err := r.device.Prove(r.challenge(t), r.ca.RawSubjectPublicKeyInfo, second)
	if err != nil {
		t.Fatal(err)
	}
	foreign := other.prove(t)

	type attempt struct {
		claim tpm.Claim
		proof tpm.Proof
		spki  []byte
		at    time.Time
	}
	for _, c := range []struct {
		name   string
		change func(*attempt)
		code   string
		reason string
	}{
		{"an endorsement key that is none", func(a *attempt) { a.claim.EK = []byte("EK") }, tpm.CodeMalformed, "its endorsement key is no public area of a TPM key"},
		{"a long endorsement key", func(a *attempt) { a.claim.EK = make([]byte, 4096) }, tpm.CodeMalformed, "its endorsement key of 4096 bytes exceeds 2048"},
		{"an endorsement key of another kind", func(a *attempt) { a.claim.EK = a.claim.AK }, tpm.CodeForeignEK, "its endorsement key is not RSA-2048 of the TCG's default template"},
		{"an endorsement key that may leave its TPM", func(a *attempt) {
			a.claim.EK = public(t, a.claim.EK, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false })
		}, tpm.CodeForeignEK, "its endorsement key is not RSA-2048 of the TCG's default template"},
		{"an attestation key that signs anything", func(a *attempt) { a.claim.AK = a.proof.Key }, tpm.CodeAKRestricted,
			"its attestation key is not restricted: it signs what anybody hands it, not only what its TPM says"},
		{"an attestation key that may leave its TPM", func(a *attempt) {
			a.claim.AK = public(t, a.claim.AK, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false })
		}, tpm.CodeAKFixed, "its attestation key is not fixed to its TPM: it may have been made outside, or be in another one too"},
		{"an attestation key that came from outside", func(a *attempt) {
			a.claim.AK = public(t, a.claim.AK, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false })
		}, tpm.CodeAKFixed, "its attestation key is not fixed to its TPM: it may have been made outside, or be in another one too"},
		{"an attestation key of another form", func(a *attempt) {
			a.claim.AK = public(t, a.claim.AK, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = false })
		}, tpm.CodeAKForm, "its attestation key is not of the form that this server takes (P-256, ECDSA with SHA-256, signing only)"},
		{"no nonce", func(a *attempt) { a.proof.Nonce = nil }, tpm.CodeNonceForeign, "it answers a challenge that was not made for it, or before this server started"},
		{"a nonce with another time in it", func(a *attempt) {
			a.proof.Nonce = bytes.Clone(a.proof.Nonce)
			binary.BigEndian.PutUint64(a.proof.Nonce, uint64(r.now.UnixMilli()+1))
		}, tpm.CodeNonceForeign, "it answers a challenge that was not made for it, or before this server started"},
		{"the nonce of another machine", func(a *attempt) { a.proof.Nonce = foreign.Nonce }, tpm.CodeNonceForeign, "it answers a challenge that was not made for it, or before this server started"},
		{"the nonce of another key", func(a *attempt) { a.spki = spkiOf(t, soft.Public()) }, tpm.CodeNonceForeign, "it answers a challenge that was not made for it, or before this server started"},
		{"another attestation key than the one that was challenged", func(a *attempt) { a.claim.AK = other.claim.AK }, tpm.CodeNonceForeign, "it answers a challenge that was not made for it, or before this server started"},
		{"a stale nonce", func(a *attempt) { a.at = r.now.Add(tpm.Answer + time.Second) }, tpm.CodeNonceStale, "it answers a challenge that was made 2m1s ago; 2m0s is the most"},
		{"a nonce from the future", func(a *attempt) { a.at = r.now.Add(-time.Hour) }, tpm.CodeNonceStale, "it answers a challenge that was made -1h0m0s ago; 2m0s is the most"},
		{"an attestation key that was not activated", func(a *attempt) { a.proof.Activated = nil }, tpm.CodeNotActivated,
			"its TPM did not open the credential, so its attestation key is not in the TPM of its endorsement key"},
		{"a secret that was guessed", func(a *attempt) { a.proof.Activated = flipped(a.proof.Activated) }, tpm.CodeNotActivated,
			"its TPM did not open the credential, so its attestation key is not in the TPM of its endorsement key"},
		{"the secret of an earlier challenge", func(a *attempt) { a.proof.Activated = before.Activated }, tpm.CodeNotActivated,
			"its TPM did not open the credential, so its attestation key is not in the TPM of its endorsement key"},
		{"a key that is none", func(a *attempt) { a.proof.Key = nil }, tpm.CodeMalformed, "its key is no public area of a TPM key"},
		{"a key that may leave its TPM", func(a *attempt) {
			a.proof.Key = public(t, a.proof.Key, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false })
		}, tpm.CodeKeyForm, "its key is not of the form that this server takes (P-256, made in its TPM and fixed to it, signing only)"},
		{"a request for another key", func(a *attempt) { a.proof.Key = unbound.Key }, tpm.CodeKeyOther, "the key in its TPM is not the one that its certificate request is for"},
		{"a statement about another key", func(a *attempt) {
			a.proof.Certified, a.proof.CertifySignature = unbound.Certified, unbound.CertifySignature
		}, tpm.CodeKeyOther, "the statement of its TPM is about another key"},
		{"a quote for a statement", func(a *attempt) {
			a.proof.Certified, a.proof.CertifySignature = a.proof.Quoted, a.proof.QuoteSignature
		}, tpm.CodeKeyOther, "what it sent about its key is another kind of statement"},
		{"a statement with a wrong signature", func(a *attempt) { a.proof.CertifySignature = flipped(a.proof.CertifySignature) }, tpm.CodeCertifySigned,
			"its statement about its key is not signed by its attestation key"},
		{"a statement of another TPM", func(a *attempt) {
			a.proof.Certified, a.proof.CertifySignature = foreign.Certified, foreign.CertifySignature
		}, tpm.CodeCertifySigned, "its statement about its key is not signed by its attestation key"},
		{"a replayed statement", func(a *attempt) {
			a.proof.Certified, a.proof.CertifySignature = before.Certified, before.CertifySignature
		}, tpm.CodeCertifyBound, "the statement about its key was not made for this challenge, this server and this key"},
		{"a machine that was shown another CA", func(a *attempt) { a.proof = swapped }, tpm.CodeCertifyBound,
			"the statement about its key was not made for this challenge, this server and this key"},
		{"a quote with a wrong signature", func(a *attempt) { a.proof.QuoteSignature = flipped(a.proof.QuoteSignature) }, tpm.CodeQuoteSigned,
			"its quote is not signed by its attestation key"},
		{"a quote that was changed", func(a *attempt) { a.proof.Quoted = flipped(a.proof.Quoted) }, tpm.CodeQuoteSigned, "its quote is not signed by its attestation key"},
		{"a quote without a signature", func(a *attempt) { a.proof.QuoteSignature = nil }, tpm.CodeQuoteSigned, "its quote is not signed by its attestation key"},
		{"a long quote", func(a *attempt) { a.proof.Quoted = make([]byte, 4096) }, tpm.CodeMalformed, "its quote is longer than 2048 bytes"},
		{"a quote of another TPM", func(a *attempt) {
			a.proof.Quoted, a.proof.QuoteSignature = foreign.Quoted, foreign.QuoteSignature
		}, tpm.CodeQuoteSigned, "its quote is not signed by its attestation key"},
		{"another statement for a quote", func(a *attempt) {
			a.proof.Quoted, a.proof.QuoteSignature = a.proof.Certified, a.proof.CertifySignature
		}, tpm.CodeQuoteForm, "what it sent as a quote is another kind of statement"},
		{"a quote without the nonce", func(a *attempt) {
			a.proof.Quoted, a.proof.QuoteSignature = before.Quoted, before.QuoteSignature
		}, tpm.CodeQuoteBound, "its quote was not made for this challenge, this server and this key"},
		{"registers that were made up", func(a *attempt) { a.proof.PCRs = append([][]byte{flipped(a.proof.PCRs[0])}, a.proof.PCRs[1:]...) }, tpm.CodeQuotePCRs,
			"the registers that it sent are not those of its quote"},
		{"too few registers", func(a *attempt) { a.proof.PCRs = a.proof.PCRs[1:] }, tpm.CodeQuotePCRs,
			"its quote is not about the SHA-256 registers [0 1 2 3 4 5 6 7 8 9 14]; its firmware may have that bank switched off"},
		{"registers cut in another way", func(a *attempt) {
			all := bytes.Join(a.proof.PCRs, nil)
			a.proof.PCRs = append([][]byte{all[:31], all[31:64]}, a.proof.PCRs[2:]...)
		}, tpm.CodeQuotePCRs, "a register of its quote has 31 bytes, want 32"},
		{"a key of its own for an attestation key", func(a *attempt) { a.claim.AK = public(t, a.claim.AK, point(&soft.PublicKey)) }, tpm.CodeNonceForeign,
			"it answers a challenge that was not made for it, or before this server started"},
		{"a key on disk, as if it were the TPM's", func(a *attempt) { a.proof.Key, a.spki = softArea, spkiOf(t, r.key.Public()) }, tpm.CodeKeyOther,
			"the key in its TPM is not the one that its certificate request is for"},
	} {
		a := attempt{r.claim, good, r.spki, r.now}
		c.change(&a)
		_, err := r.judge.Verify(a.claim, a.proof, a.spki, a.at)
		var refusal *tpm.Refusal
		if !errors.As(err, &refusal) || refusal.Code != c.code || refusal.Reason != c.reason {
			t.Errorf("%s: got %v\nwant %s %q", c.name, err, c.code, c.reason)
		}
	}
	if _, err := r.judge.Verify(r.claim, good, r.spki, r.now); err != nil {
		t.Errorf("the proof that was changed does not hold unchanged: %v", err)
	}
	if _, err := newJudge(t, r.ca).Verify(r.claim, good, r.spki, r.now); err == nil {
		t.Error("a server that started anew takes the challenge of an earlier one")
	}
	if _, err := r.judge.Challenge(tpm.Claim{EK: r.claim.EK, AK: good.Key}, r.spki, r.now, rand.Reader); err == nil {
		t.Error("there is a challenge for an attestation key that is not restricted")
	}
}

// A credential is opened only by the TPM of the endorsement key, for the attestation
// key that it names.
func TestACredentialOpensInItsOwnTPMOnly(t *testing.T) {
	t.Parallel()
	r, other := newRig(t), newRig(t)
	if _, err := other.device.Prove(r.challenge(t), r.ca.RawSubjectPublicKeyInfo, other.key); err == nil {
		t.Error("another TPM opened it")
	}
	mixed, err := r.judge.Challenge(tpm.Claim{EK: r.claim.EK, AK: other.claim.AK}, r.spki, r.now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.device.Prove(mixed, r.ca.RawSubjectPublicKeyInfo, r.key); err == nil {
		t.Error("it opened for an attestation key of another TPM")
	}
}

func TestAKeyWorksInItsOwnTPMOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	file, err := r.key.PEM()
	if err != nil {
		t.Fatal(err)
	}
	r.tpm.Off()
	r.tpm.On()
	key, err := r.device.OpenKey(file)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("a handshake"))
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(r.key.Public().(*ecdsa.PublicKey), digest[:], signature) {
		t.Error("the signature is not good")
	}
	if _, err := key.Sign(rand.Reader, digest[:31], crypto.SHA256); err == nil {
		t.Error("it signs what is no digest")
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	if request, err := x509.ParseCertificateRequest(der); err != nil || request.CheckSignature() != nil {
		t.Errorf("its certificate request is not good: %v", err)
	}
	stolen := tpmtest.New(t, "").Device()
	if _, err := stolen.OpenKey(file); !errors.Is(err, tpm.ErrForeignKey) ||
		!strings.HasPrefix(err.Error(), "opening a TPM's key: the key belongs to another TPM: this disk comes from another machine, or the mainboard or its TPM was replaced or reset; install the machine again") {
		t.Errorf("in another TPM: %v", err)
	}
	for _, damaged := range [][]byte{nil, []byte("garbage"), pem.EncodeToMemory(&pem.Block{Type: tpm.KeyType, Bytes: []byte{0x30, 0}})} {
		if _, err := r.device.OpenKey(damaged); err == nil || errors.Is(err, tpm.ErrForeignKey) {
			t.Errorf("of %q: %v", damaged, err)
		}
	}
}

func TestATPMThatDoesNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cause, want error
		text        string
	}{
		{os.ErrNotExist, tpm.ErrAbsent, "asking the TPM who it is: this machine shows no TPM 2.0; switch it on in the firmware (TPM, fTPM or PTT) (file does not exist)"},
		{syscall.EBUSY, tpm.ErrBusy, "asking the TPM who it is: another program holds the TPM (device or resource busy)"},
		{io.ErrClosedPipe, io.ErrClosedPipe, "asking the TPM who it is: opening the TPM: io: read/write on closed pipe"},
	} {
		d := &tpm.Device{Open: func() (io.ReadWriteCloser, error) { return nil, c.cause }}
		if _, err := d.Claim(); !errors.Is(err, c.want) || err.Error() != c.text {
			t.Errorf("got %v, want %s", err, c.text)
		}
	}
	// It leaves nothing in the TPM, which has room for three keys.
	r := newRig(t)
	for range 4 {
		r.prove(t)
	}
	r.tpm.Do(func(c transport.TPM) error {
		for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
			got, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 8}.Execute(c)
			if err != nil {
				return err
			}
			handles, err := got.CapabilityData.Data.Handles()
			if err != nil {
				return err
			}
			if len(handles.Handle) > 0 {
				t.Errorf("left in the TPM: %x", handles.Handle)
			}
		}
		return nil
	})
}

// tpm2-tools judges: its credential opens here, and our quote satisfies it.
func TestOtherToolsAgree(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if content != nil {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	tool := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v: %s; apt-get install tpm2-tools", name, strings.Join(args, " "), err, out)
		}
	}
	sized := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }

	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](r.claim.AK)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("what only this TPM can read")
	out := file("credential", nil)
	tool("tpm2_makecredential", "-T", "none", "-u", file("ek.pub", sized(r.claim.EK)), "-s", file("secret", secret), "-n", hex.EncodeToString(name.Buffer), "-o", out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	b = b[8:] // magic and version
	n := 2 + int(binary.BigEndian.Uint16(b))
	proof, err := r.device.Prove(tpm.Challenge{Nonce: []byte("n"), Credential: b[2:n], Secret: b[n+2:]}, r.ca.RawSubjectPublicKeyInfo, r.key)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(proof.Activated, secret) {
		t.Errorf("got %q out of its credential", proof.Activated)
	}

	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](proof.Quoted)
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.Pub(*area)
	if err != nil {
		t.Fatal(err)
	}
	ak := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spkiOf(t, key)})
	tool("tpm2_checkquote", "-u", file("ak.pem", ak), "-m", file("quote", proof.Quoted), "-s", file("signature", proof.QuoteSignature), "-q", hex.EncodeToString(attest.ExtraData.Buffer), "-g", "sha256")
}

// Whatever a stranger sends is refused in words, without a crash.
func FuzzVerify(f *testing.F) {
	f.Add([]byte{0, 1, 0, 11}, []byte{0, 0x23, 0, 11}, []byte("nonce"), []byte{0, 0x18, 0, 11}, []byte{0xff, 'T', 'C', 'G', 0x80, 0x18})
	v := newJudge(f, newCA(f))
	f.Fuzz(func(t *testing.T, ek, ak, nonce, signature, statement []byte) {
		claim := tpm.Claim{EK: ek, AK: ak}
		if _, err := v.Challenge(claim, nil, time.Time{}, rand.Reader); err != nil && strings.ContainsAny(err.Error(), "\x1b\n") {
			t.Errorf("says %q", err)
		}
		proof := tpm.Proof{Nonce: nonce, Key: ak, Certified: statement, CertifySignature: signature, Quoted: statement, QuoteSignature: signature}
		if _, err := v.Verify(claim, proof, nil, time.Time{}); err == nil {
			t.Error("it holds")
		}
	})
}
