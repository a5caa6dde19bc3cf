package kubeadm

import (
	"encoding/base64"
	"errors"
	"fmt"

	"sigs.k8s.io/yaml"
)

const (
	// EncryptionPath is kube-apiserver's --encryption-provider-config, in the directory that
	// kubeadm lets its pod read. It is read again within a minute of a change.
	EncryptionPath = PKIDir + "/encryption.yaml"
	// PlainKey is the name that stands for no encryption among those of keys: the provider
	// "identity" of Kubernetes.
	PlainKey = "identity"
	// keySize is secretbox's, in bytes.
	keySize = 32
)

// EncryptionKey is a key that Secrets are encrypted with in etcd. That with the name PlainKey
// has no Secret.
type EncryptionKey struct {
	Name   string
	Secret []byte
}

type encryptionConfiguration struct {
	APIVersion string              `json:"apiVersion"`
	Kind       string              `json:"kind"`
	Resources  []encryptedResource `json:"resources"`
}

type encryptedResource struct {
	Resources []string             `json:"resources"`
	Providers []encryptionProvider `json:"providers"`
}

// encryptionProvider has one of both. secretbox is XSalsa20 with Poly1305 and random nonces of
// 24 bytes: of those that keep the key in a file, it alone is neither weak (aescbc) nor wants
// another key after 200,000 writes (aesgcm); see "Encrypting Confidential Data at Rest" in
// Kubernetes' documentation.
type encryptionProvider struct {
	Secretbox *secretbox `json:"secretbox,omitempty"`
	Identity  *struct{}  `json:"identity,omitempty"`
}

type secretbox struct {
	Keys []secretboxKey `json:"keys"`
}

type secretboxKey struct {
	Name   string `json:"name"`
	Secret string `json:"secret"`
}

// Encryption returns the content of EncryptionPath: Secrets are written with the first key,
// and read with all.
func Encryption(keys []EncryptionKey) ([]byte, error) {
	if len(keys) == 0 {
		return nil, errors.New("configuring encryption at rest: there is no key")
	}
	var providers []encryptionProvider
	for i, k := range keys {
		if k.Name == PlainKey {
			providers = append(providers, encryptionProvider{Identity: &struct{}{}})
			continue
		}
		if len(k.Secret) != keySize {
			return nil, fmt.Errorf("configuring encryption at rest: key %q has %d bytes, want %d", k.Name, len(k.Secret), keySize)
		}
		if i == 0 || keys[i-1].Name == PlainKey {
			providers = append(providers, encryptionProvider{Secretbox: &secretbox{}})
		}
		box := providers[len(providers)-1].Secretbox
		box.Keys = append(box.Keys, secretboxKey{k.Name, base64.StdEncoding.EncodeToString(k.Secret)})
	}
	b, err := yaml.Marshal(encryptionConfiguration{
		APIVersion: "apiserver.config.k8s.io/v1", Kind: "EncryptionConfiguration",
		Resources: []encryptedResource{{Resources: []string{"secrets"}, Providers: providers}},
	})
	if err != nil {
		return nil, fmt.Errorf("configuring encryption at rest: %w", err)
	}
	return b, nil
}

// EncryptionKeyNames returns the names of the keys in a file of Encryption, in their order.
func EncryptionKeyNames(file []byte) ([]string, error) {
	var c encryptionConfiguration
	if err := yaml.UnmarshalStrict(file, &c); err != nil {
		return nil, fmt.Errorf("reading the configuration of encryption at rest: %w", err)
	}
	if len(c.Resources) != 1 {
		return nil, fmt.Errorf("reading the configuration of encryption at rest: it is for %d lists of resources, want 1", len(c.Resources))
	}
	var out []string
	for _, p := range c.Resources[0].Providers {
		switch {
		case p.Secretbox != nil && p.Identity == nil:
			for _, k := range p.Secretbox.Keys {
				out = append(out, k.Name)
			}
		case p.Identity != nil && p.Secretbox == nil:
			out = append(out, PlainKey)
		default:
			return nil, errors.New("reading the configuration of encryption at rest: there is a provider that is neither secretbox nor identity")
		}
	}
	return out, nil
}
