package cli

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// operatorKeyPath is where a person's own key lies: beside the context file.
func operatorKeyPath() (string, error) {
	path, err := contextPath()
	if err != nil {
		return "", err
	}
	return filepath.Abs(filepath.Join(filepath.Dir(path), "operator.key"))
}

// readOperatorKey returns fs.ErrNotExist's error when there is none.
func readOperatorKey(path string) (crypto.Signer, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the operator's key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("reading the operator's key %s: it is no PEM", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the operator's key %s: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("reading the operator's key %s: a %T signs nothing", path, key)
	}
	return signer, nil
}

// operatorKey reads the key, or makes one where there is none or another is wanted.
func operatorKey(path string, another bool) (crypto.Signer, error) {
	if !another {
		if key, err := readOperatorKey(path); !errors.Is(err, fs.ErrNotExist) {
			return key, err
		}
	}
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	b, err := pki.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePrivate(path, b)
}

// operatorRequest is a certificate request for a key; the server takes nothing else out
// of it.
func operatorRequest(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return der, nil
}

// acceptContext makes what an admin sent the context of whoever has the key.
func acceptContext(file, keyFile string) (serverContext, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return serverContext{}, err
	}
	var c serverContext
	if err := json.Unmarshal(b, &c); err != nil {
		return serverContext{}, fmt.Errorf("reading %s: %w; it is what imagectl operators add wrote", file, err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return serverContext{}, fmt.Errorf("reading the operator's key: %w; make one with imagectl operators request", err)
	}
	if _, err := tls.X509KeyPair([]byte(c.Certificate), key); err != nil {
		return serverContext{}, fmt.Errorf("reading %s: %w: the certificate in it is for another key than %s", file, err, keyFile)
	}
	c.Key, c.KeyFile = "", keyFile
	return c, nil
}

// renewalError says why a person got no other certificate.
type renewalError struct {
	end   time.Time
	cause error
}

func (e *renewalError) Error() string {
	return fmt.Sprintf("the operator certificate in the context file expired at %s, and the server gives no other: %v", e.end.Local().Format(time.DateTime), e.cause)
}

func (e *renewalError) Unwrap() error { return e.cause }

// certificate is what this person shows, renewed when a third of its life is over.
func (r *remote) certificate(ctx context.Context) (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	leaf, now := r.cert.Leaf, time.Now()
	// Its life begins when it is issued, and that is what follows from its end.
	if r.KeyFile == "" || leaf.NotAfter.Sub(now) > personLife-pki.RenewAfter(personLife) {
		return &r.cert, nil
	}
	next, err := r.renew(ctx)
	switch {
	case err == nil:
		r.cert = next
	case now.After(leaf.NotAfter):
		return nil, &renewalError{leaf.NotAfter, err}
	}
	return &r.cert, nil
}

// personLife is how long a person's certificate lives (pki.Lifetimes.Operator).
const personLife = 12 * time.Hour

func (r *remote) renew(ctx context.Context) (tls.Certificate, error) {
	key, ok := r.cert.PrivateKey.(crypto.Signer)
	if !ok {
		return tls.Certificate{}, fmt.Errorf("a %T signs nothing", r.cert.PrivateKey)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	client, on, err := serverapi.OneConnection(ctx, r.Server, r.nobody().Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		return tls.Certificate{}, connect.NewError(connect.CodeUnavailable, err)
	}
	defer client.CloseIdleConnections()
	csr, err := pki.RenewalRequest(key, on, rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	resp, err := apiconnect.NewEnrolServiceClient(client, r.Server).
		RenewOperator(ctx, connect.NewRequest(&api.RenewOperatorRequest{CsrDer: csr}))
	if err != nil {
		return tls.Certificate{}, err
	}
	c := r.serverContext
	c.Certificate = resp.Msg.GetCertificatePem()
	// The server says which CAs to trust from now on; an older one says nothing.
	if ca := resp.Msg.GetCaPem(); ca != "" {
		if _, err := pki.ParseCertificatesPEM([]byte(ca)); err != nil {
			return tls.Certificate{}, fmt.Errorf("the server's word on its CA is of no use: %w", err)
		}
		c.CA, c.Former = ca, resp.Msg.GetFormerPem()
	}
	keyPEM, err := os.ReadFile(c.KeyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	next, err := tls.X509KeyPair([]byte(c.Certificate), keyPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	path, err := contextPath()
	if err == nil {
		err = c.write(path)
	}
	return next, err
}
