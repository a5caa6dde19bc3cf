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
	imagectl, etcd, kubernetes, frontProxy *pki.CA
	// serviceAccounts signs Kubernetes' service account tokens.
	serviceAccounts crypto.Signer
}

// sealedCA is the plain text of a CA secret.
type sealedCA struct {
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
}

func (s *Server) loadAuthority(ctx context.Context) error {
	a := &s.authority
	for _, c := range []struct {
		secret, name string
		to           **pki.CA
	}{
		{"ca/imagectl", "imagectl " + s.cfg.Cluster, &a.imagectl},
		{"ca/etcd", "etcd " + s.cfg.Cluster, &a.etcd},
		{"ca/kubernetes", "kubernetes", &a.kubernetes},
		{"ca/front-proxy", "front-proxy-ca", &a.frontProxy},
	} {
		b, err := s.cfg.Store.Secret(ctx, c.secret, func() ([]byte, error) {
			ca, err := pki.NewCA(c.name, s.lifetimes.CA, s.lifetimes.Backdate, s.cfg.Now(), s.cfg.Rand)
			if err != nil {
				return nil, err
			}
			key, err := ca.KeyPEM()
			if err != nil {
				return nil, err
			}
			return json.Marshal(sealedCA{string(ca.CertificatePEM()), string(key)})
		}, s.recordSecret(c.secret))
		if err != nil {
			return err
		}
		var sealed sealedCA
		if err := json.Unmarshal(b, &sealed); err != nil {
			return fmt.Errorf("reading secret %s: %w", c.secret, err)
		}
		if *c.to, err = pki.LoadCA([]byte(sealed.Certificate), []byte(sealed.Key)); err != nil {
			return fmt.Errorf("reading secret %s: %w", c.secret, err)
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
	return nil
}

func (s *Server) recordSecret(name string) func(*store.Tx) error {
	return func(tx *store.Tx) error {
		c := change{tx: tx, actor: s.self(), now: s.cfg.Now()}
		c.log(audit.Entry{Action: "secret-created", Detail: name})
		return c.seal()
	}
}
