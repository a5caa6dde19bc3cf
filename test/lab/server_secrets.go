package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/store"
)

// ServerSecrets are the private keys that the server and the operator hold. The
// server must be stopped: its store is open for one process only.
func (l *Lab) ServerSecrets(ctx context.Context) ([]Secret, error) {
	s, err := store.Open(ctx, store.Config{Dir: l.State(), Cluster: "demo", Log: io.Discard})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	missing := func() ([]byte, error) { return nil, errors.New("the server made no such secret") }
	var out []Secret
	for _, name := range []string{"ca/imagectl", "ca/etcd", "ca/kubernetes", "ca/front-proxy", "key/service-accounts"} {
		b, err := s.Secret(ctx, name, missing, nil)
		if err != nil {
			return nil, fmt.Errorf("reading secret %s: %w", name, err)
		}
		text := b
		if strings.HasPrefix(name, "ca/") {
			var sealed struct{ Key string }
			if err := json.Unmarshal(b, &sealed); err != nil {
				return nil, fmt.Errorf("reading secret %s: %w", name, err)
			}
			text = []byte(sealed.Key)
		}
		keys := keysIn(name, text)
		if len(keys) == 0 {
			return nil, fmt.Errorf("secret %s holds no private key", name)
		}
		out = append(out, keys...)
	}
	// Those for Kubernetes' Secrets are no key pairs.
	const encryption = "key/encryption"
	b, err := s.Secret(ctx, encryption, missing, nil)
	if err != nil {
		return nil, fmt.Errorf("reading secret %s: %w", encryption, err)
	}
	var symmetric []struct{ Secret []byte }
	if err := json.Unmarshal(b, &symmetric); err != nil {
		return nil, fmt.Errorf("reading secret %s: %w", encryption, err)
	}
	if len(symmetric) == 0 {
		return nil, fmt.Errorf("secret %s holds no key", encryption)
	}
	for _, k := range symmetric {
		out = append(out, Secret{Name: encryption, Value: k.Secret})
	}
	operator, err := os.ReadFile(filepath.Join(l.Work, "context.json"))
	if err != nil {
		return nil, err
	}
	var context struct{ Key string }
	if err := json.Unmarshal(operator, &context); err != nil {
		return nil, err
	}
	keys := keysIn("operator", []byte(context.Key))
	if len(keys) == 0 {
		return nil, errors.New("the operator's context file holds no private key")
	}
	out = append(out, keys...)
	identity, err := os.ReadFile(filepath.Join(l.State(), "identity.age"))
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(identity), "\n") {
		if strings.HasPrefix(line, "AGE-SECRET-KEY-") {
			return append(out, Secret{Name: "age identity", Value: []byte(line)}), nil
		}
	}
	return nil, errors.New("the state directory holds no age identity")
}
