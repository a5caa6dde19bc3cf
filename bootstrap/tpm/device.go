package tpm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"syscall"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Why a TPM is of no use. A caller may test for them.
var (
	// ErrAbsent: the machine shows no TPM 2.0.
	ErrAbsent = errors.New("this machine shows no TPM 2.0; switch it on in the firmware (TPM, fTPM or PTT)")
	// ErrBusy: somebody else holds it; trying again may help.
	ErrBusy = errors.New("another program holds the TPM")
	// ErrForeignKey: the key was made by another TPM.
	ErrForeignKey = errors.New("the key belongs to another TPM: this disk comes from another machine, or the mainboard or its TPM was replaced or reset; install the machine again")
)

// persistentEK is where the EK lies when somebody has made it persistent (TCG
// Provisioning Guidance, section 7.8). Making an RSA key takes a slow TPM seconds.
const persistentEK tpm2.TPMHandle = 0x81010001

// Device is a machine's TPM. It is opened for every use, and everything that was
// loaded is unloaded, so that other programs find it as it was. It is safe for
// concurrent use.
type Device struct {
	// Open connects to the TPM, such as host.Host.TPM; whoever uses it closes it.
	Open func() (io.ReadWriteCloser, error)

	mu sync.Mutex
}

// use runs f with the TPM; what names it in errors.
func (d *Device) use(what string, f func(t transport.TPM) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	rw, err := d.Open()
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return fmt.Errorf("%s: %w (%w)", what, ErrAbsent, err)
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%s: %w (%w)", what, ErrBusy, err)
	case err != nil:
		return fmt.Errorf("%s: opening the TPM: %w", what, err)
	}
	defer rw.Close()
	if err := f(transport.FromReadWriter(rw)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// loaded is a key that the TPM holds for now.
type loaded struct {
	tpm2.NamedHandle
	public tpm2.TPM2BPublic
	kept   bool // persistent: not ours to unload
}

func (l loaded) auth(s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: l.Handle, Name: l.Name, Auth: s}
}

// drop unloads a key. An error is of no use to anybody: the resource manager unloads
// it when the TPM is closed.
func (l loaded) drop(t transport.TPM) {
	if !l.kept {
		_, _ = tpm2.FlushContext{FlushHandle: l.Handle}.Execute(t)
	}
}

func primary(t transport.TPM, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (loaded, error) {
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(template)}.Execute(t)
	if err != nil {
		return loaded{}, err
	}
	return loaded{NamedHandle: tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, public: made.OutPublic}, nil
}

func loadEK(t transport.TPM) (loaded, error) {
	if there, err := (tpm2.ReadPublic{ObjectHandle: persistentEK}).Execute(t); err == nil {
		if _, refusal := parseEK(there.OutPublic.Bytes()); refusal == nil {
			return loaded{NamedHandle: tpm2.NamedHandle{Handle: persistentEK, Name: there.Name}, public: there.OutPublic, kept: true}, nil
		}
	}
	ek, err := primary(t, tpm2.TPMRHEndorsement, tpm2.RSAEKTemplate)
	if err != nil {
		return loaded{}, fmt.Errorf("loading the endorsement key: %w", err)
	}
	return ek, nil
}

// loadAK makes the AK. It is a primary key: the same TPM makes the same one every
// time, so there is nothing to keep. In the endorsement hierarchy its statements say
// the true count of resets.
func loadAK(t transport.TPM) (loaded, error) {
	ak, err := primary(t, tpm2.TPMRHEndorsement, signingKey(true, tpm2.TPMSECCPoint{}))
	if err != nil {
		return loaded{}, fmt.Errorf("loading the attestation key: %w", err)
	}
	return ak, nil
}

// Claim says which TPM this is. An error may be ErrAbsent or ErrBusy.
func (d *Device) Claim() (Claim, error) {
	var c Claim
	err := d.use("asking the TPM who it is", func(t transport.TPM) error {
		ek, err := loadEK(t)
		if err != nil {
			return err
		}
		defer ek.drop(t)
		ak, err := loadAK(t)
		if err != nil {
			return err
		}
		defer ak.drop(t)
		c = Claim{EK: ek.public.Bytes(), AK: ak.public.Bytes()}
		return nil
	})
	return c, err
}

// Prove answers a challenge of the server whose CA has this SubjectPublicKeyInfo, for
// a key of this device.
func (d *Device) Prove(ch Challenge, ca []byte, key *Key) (Proof, error) {
	spki, err := key.spki()
	if err != nil {
		return Proof{}, err
	}
	p := Proof{Nonce: ch.Nonce, Key: key.public.Bytes()}
	err = d.use("proving by the TPM who we are", func(t transport.TPM) error {
		ak, err := loadAK(t)
		if err != nil {
			return err
		}
		defer ak.drop(t)
		if p.Activated, err = activate(t, ak, ch); err != nil {
			return err
		}
		qualifying := tpm2.TPM2BData{Buffer: bind(ch.Nonce, ca, spki)}
		held, err := key.load(t)
		if err != nil {
			return err
		}
		defer held.drop(t)
		certified, err := tpm2.Certify{
			ObjectHandle: held.auth(tpm2.PasswordAuth(nil)), SignHandle: ak.auth(tpm2.PasswordAuth(nil)),
			QualifyingData: qualifying, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("certifying our key: %w", err)
		}
		p.Certified, p.CertifySignature = certified.CertifyInfo.Bytes(), tpm2.Marshal(certified.Signature)
		quoted, err := tpm2.Quote{
			SignHandle: ak.auth(tpm2.PasswordAuth(nil)), QualifyingData: qualifying,
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selection(PCRIndexes()),
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("quoting the registers: %w", err)
		}
		p.Quoted, p.QuoteSignature = quoted.Quoted.Bytes(), tpm2.Marshal(quoted.Signature)
		// Whoever changes a register between the quote and this makes the server refuse;
		// then we are asked again.
		p.PCRs, err = readPCRs(t, PCRIndexes())
		return err
	})
	return p, err
}

// activate opens a challenge's credential.
func activate(t transport.TPM, ak loaded, ch Challenge) ([]byte, error) {
	ek, err := loadEK(t)
	if err != nil {
		return nil, err
	}
	defer ek.drop(t)
	// The default EK obeys whoever may use the endorsement hierarchy.
	policy := func(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{
			AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			PolicySession: session, NonceTPM: nonce,
		}.Execute(t)
		return err
	}
	opened, err := tpm2.ActivateCredential{
		ActivateHandle: ak.auth(tpm2.PasswordAuth(nil)), KeyHandle: ek.auth(tpm2.Policy(tpm2.TPMAlgSHA256, 16, policy)),
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: ch.Credential}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: ch.Secret},
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("opening the server's credential: %w", err)
	}
	return opened.CertInfo.Buffer, nil
}

// readPCRs reads registers; a TPM returns eight at a time.
func readPCRs(t transport.TPM, indexes []uint) ([][]byte, error) {
	var out [][]byte
	for len(indexes) > 0 {
		n := min(len(indexes), 8)
		got, err := tpm2.PCRRead{PCRSelectionIn: selection(indexes[:n])}.Execute(t)
		if err != nil {
			return nil, fmt.Errorf("reading the registers %d: %w", indexes[:n], err)
		}
		if len(got.PCRValues.Digests) != n {
			return nil, fmt.Errorf("reading the registers %d: the TPM has %d of them in its SHA-256 bank; switch that bank on in the firmware", indexes[:n], len(got.PCRValues.Digests))
		}
		for _, d := range got.PCRValues.Digests {
			out = append(out, d.Buffer)
		}
		indexes = indexes[n:]
	}
	return out, nil
}
