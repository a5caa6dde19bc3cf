package serverapi

import (
	"context"
	"crypto"
	"encoding/json"
	"fmt"

	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// authority is every private key of a cluster. They are made once, at the first
// start, and live encrypted in the store.
type authority struct {
	// The CAs imagectl and etcd are replaced while the server runs: they are in Server.trust and
	// Server.etcd.
	kubernetes, frontProxy *pki.CA
	// serviceAccounts signs Kubernetes' service account tokens.
	serviceAccounts crypto.Signer
}

// sealedCA is the plain text of a CA secret.
type sealedCA struct {
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
}

// Names of secrets.
const (
	secretCA     = "ca/imagectl"
	secretNextCA = "ca/imagectl-next"
)

func (s *Server) loadAuthority(ctx context.Context) error {
	a := &s.authority
	var first, etcd *pki.CA // loadTrust and loadEtcdCA read them again
	for _, c := range []struct {
		secret, name string
		to           **pki.CA
	}{
		{secretCA, "imagectl " + s.cfg.Cluster, &first},
		{secretEtcdCA, "etcd " + s.cfg.Cluster, &etcd},
		{"ca/kubernetes", "kubernetes", &a.kubernetes},
		{"ca/front-proxy", "front-proxy-ca", &a.frontProxy},
	} {
		b, err := s.cfg.Store.Secret(ctx, c.secret, func() ([]byte, error) {
			ca, err := pki.NewCA(c.name, s.lifetimes.CA, s.lifetimes.Backdate, s.cfg.Now(), s.cfg.Rand)
			if err != nil {
				return nil, err
			}
			return sealCA(ca)
		}, s.recordSecret(c.secret))
		if err != nil {
			return err
		}
		if *c.to, err = openCA(c.secret, b); err != nil {
			return err
		}
	}
	const sa = "key/service-accounts"
	b, err := s.cfg.Store.Secret(ctx, sa, func() ([]byte, error) {
		key, err := pki.NewKey(s.cfg.Rand)
		if err != nil {
			return nil, err
		}
		return pki.EncodeKey(key)
	}, s.recordSecret(sa))
	if err != nil {
		return err
	}
	if a.serviceAccounts, err = pki.ParseKeyPEM(b); err != nil {
		return fmt.Errorf("reading secret %s: %w", sa, err)
	}
	if err := s.loadEncryption(ctx); err != nil {
		return err
	}
	if err := s.loadEtcdCA(ctx); err != nil {
		return err
	}
	return s.loadTrust(ctx)
}

func sealCA(ca *pki.CA) ([]byte, error) {
	key, err := ca.KeyPEM()
	if err != nil {
		return nil, err
	}
	return json.Marshal(sealedCA{string(ca.CertificatePEM()), string(key)})
}

func openCA(secret string, b []byte) (*pki.CA, error) {
	var sealed sealedCA
	if err := json.Unmarshal(b, &sealed); err != nil {
		return nil, fmt.Errorf("reading secret %s: %w", secret, err)
	}
	ca, err := pki.LoadCA([]byte(sealed.Certificate), []byte(sealed.Key))
	if err != nil {
		return nil, fmt.Errorf("reading secret %s: %w", secret, err)
	}
	return ca, nil
}

func (s *Server) recordSecret(name string) func(*store.Tx) error {
	return func(tx *store.Tx) error {
		c := change{tx: tx, actor: s.self(), now: s.cfg.Now()}
		c.log(audit.Entry{Action: "secret-created", Detail: name})
		return c.seal()
	}
}
