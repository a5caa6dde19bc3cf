package agent

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/tpm"
)

// Where the agent keeps what makes it this machine; the directory is 0700.
const (
	StateDir = "/var/lib/imagectl"
	KeyPath  = StateDir + "/agent.key"
	CertPath = StateDir + "/agent.crt"
)

// backdate is how long before its issue a certificate is valid already
// (bootstrap/pki), for machines whose clock is dead.
const backdate = 48 * time.Hour

// identity is the agent's key, made on this node, and its current certificate.
// It is safe for concurrent use, but for its key while the machine is not enrolled.
type identity struct {
	host   *host.Host
	device *tpm.Device
	// key is a *tpm.Key or an *ecdsa.PrivateKey, file what is on disk of it.
	key  crypto.Signer
	file []byte
	// trouble is why the TPM gave no key. Then key is one for this run, which no server
	// takes that wants the TPM's; file is empty.
	trouble error
	// claim is which TPM this is; nil until it was asked. said is the last trouble that
	// the console has shown. Only ask uses them.
	claim *api.TpmClaim
	said  string
	// revoked is what the CA that signs us and the server has revoked; nil for not
	// known.
	revoked atomic.Pointer[pki.RevocationList]

	mu   sync.Mutex
	pem  []byte
	leaf *x509.Certificate
	tls  *tls.Certificate
}

// loadIdentity reads the key and the certificate, and makes the key if there is
// none, in the TPM if byTPM. A certificate that does not belong to the key is as good
// as none.
func loadIdentity(h *host.Host, rand io.Reader, byTPM bool) (*identity, error) {
	if err := h.MkdirAll(StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the agent's directory: %w", err)
	}
	id := &identity{host: h, device: &tpm.Device{Open: h.TPM}}
	b, err := h.ReadFile(KeyPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if byTPM {
			return id, id.makeInTPM(rand)
		}
		if id.key, id.file, err = newKey(rand); err != nil {
			return nil, err
		}
		return id, h.WriteFile(KeyPath, id.file, 0o600)
	case err != nil:
		return nil, fmt.Errorf("reading the agent's key: %w", err)
	}
	id.file = b
	if isTPMKey(b) {
		if id.key, err = id.device.OpenKey(b); err != nil {
			return nil, fmt.Errorf("reading the agent's key %s: %w", KeyPath, err)
		}
	} else if id.key, err = parseKey(b); err != nil {
		return nil, fmt.Errorf("reading the agent's key %s: %w; without it the machine has to be enrolled again: remove the file and approve the new code", KeyPath, err)
	}
	b, err = h.ReadFile(CertPath)
	if errors.Is(err, fs.ErrNotExist) {
		return id, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading the agent's certificate: %w", err)
	}
	if err := id.use(b); err != nil {
		return id, nil
	}
	return id, nil
}

func newKey(rand io.Reader) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(b []byte) (*ecdsa.PrivateKey, error) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return nil, errors.New("there is no PEM private key in it")
		}
		if block.Type != "PRIVATE KEY" {
			continue
		}
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		key, ok := k.(*ecdsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("it is a %T, want ECDSA", k)
		}
		return key, nil
	}
}

// request is a PKCS#10 request. The server takes only its public key and the
// proof that we hold the private one.
func request(rand io.Reader, key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return der, nil
}

// parseChain reads PEM certificates, leaf first.
func parseChain(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no PEM certificate in it")
	}
	return out, nil
}

// use makes a certificate the current one, in memory.
func (i *identity) use(chain []byte) error {
	certs, err := parseChain(chain)
	if err != nil {
		return fmt.Errorf("reading the agent's certificate: %w", err)
	}
	pub, ok := certs[0].PublicKey.(*ecdsa.PublicKey)
	if !ok || !pub.Equal(i.key.Public()) {
		return errors.New("reading the agent's certificate: it belongs to another key")
	}
	t := &tls.Certificate{PrivateKey: i.key, Leaf: certs[0]}
	for _, c := range certs {
		t.Certificate = append(t.Certificate, c.Raw)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pem, i.leaf, i.tls = bytes.Clone(chain), certs[0], t
	return nil
}

// store keeps a new certificate on disk and uses it.
func (i *identity) store(chain []byte) error {
	if err := i.use(chain); err != nil {
		return err
	}
	return i.host.WriteFile(CertPath, chain, 0o644)
}

// drop forgets the certificate, so that the machine enrols again.
func (i *identity) drop() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pem, i.leaf, i.tls = nil, nil, nil
	return i.host.Remove(CertPath)
}

// current returns the certificate for a handshake, or nil.
func (i *identity) current() (*tls.Certificate, *x509.Certificate) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.tls, i.leaf
}

// files are the identity as it is left in an installed system.
func (i *identity) files() (key, cert []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return bytes.Clone(i.file), bytes.Clone(i.pem)
}

// renewAt is when a certificate is due: a third of its life after its issue.
func renewAt(c *x509.Certificate) time.Time {
	issued := c.NotBefore.Add(backdate)
	if !issued.Before(c.NotAfter) {
		issued = c.NotBefore
	}
	return issued.Add(c.NotAfter.Sub(issued) / 3)
}
