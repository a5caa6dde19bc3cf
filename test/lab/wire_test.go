package lab

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"math/rand/v2"
	"strings"
	"testing"
)

// The scan is the judge of a security claim, so it must be able to find.
func TestScanFindsASecretInEveryForm(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	secret := Secret{Name: "the etcd CA's key", Value: make([]byte, 121)}
	random.Read(secret.Value)
	noise := make([]byte, 3<<20)
	random.Read(noise)

	for name, form := range map[string][]byte{
		"raw":                           secret.Value,
		"hexadecimal":                   []byte(hex.EncodeToString(secret.Value)),
		"base64":                        []byte(base64.StdEncoding.EncodeToString(secret.Value)),
		"base64 inside a text":          []byte(base64.StdEncoding.EncodeToString(append([]byte("x"), secret.Value...))),
		"base64 inside a text, shifted": []byte(base64.StdEncoding.EncodeToString(append([]byte("xy"), secret.Value...))),
		"cut by a packet boundary":      append(append(append([]byte{}, secret.Value[:60]...), "HEADER"...), secret.Value[60:]...),
	} {
		for _, at := range []int{0, 1<<20 - 30, 2<<20 + 7, len(noise)} {
			stream := append(append(append([]byte{}, noise[:at]...), form...), noise[at:]...)
			finds, err := Scan("stream", bytes.NewReader(stream), []Secret{secret})
			if err != nil {
				t.Fatal(err)
			}
			if len(finds) != 1 || !strings.Contains(finds[0], secret.Name) {
				t.Errorf("%s at offset %d: found %v", name, at, finds)
			}
		}
	}
	if finds, err := Scan("noise", bytes.NewReader(noise), []Secret{secret}); err != nil || len(finds) != 0 {
		t.Errorf("in noise it found %v (%v)", finds, err)
	}
}

// A key is found in another file's encoding of it, and a certificate or another
// key of the same kind is not taken for it.
func TestKeysAreFoundInFilesAndNotMistaken(t *testing.T) {
	for _, kind := range []string{"PKCS#8", "SEC 1"} {
		key, other := newKey(t), newKey(t)
		secrets := keysIn("agent.key", encodeKey(t, key, kind))
		if len(secrets) != 1 {
			t.Fatalf("%s: found %d secrets in a file with one key", kind, len(secrets))
		}
		kubeconfig := []byte("users:\n- user:\n    client-key-data: " + base64.StdEncoding.EncodeToString(encodeKey(t, key, kind)) + "\n")
		if again := keysIn("kubelet.conf", kubeconfig); len(again) != 1 || !bytes.Equal(again[0].Value, secrets[0].Value) {
			t.Errorf("%s: the key inside a kubeconfig was not found", kind)
		}
		for name, text := range map[string][]byte{"PKCS#8": encodeKey(t, key, "PKCS#8"), "SEC 1": encodeKey(t, key, "SEC 1")} {
			if finds, err := Scan(name, bytes.NewReader(text), secrets); err != nil || len(finds) != 1 {
				t.Errorf("%s key in a %s file: found %v (%v)", kind, name, finds, err)
			}
		}
		if finds, err := Scan("another key", bytes.NewReader(encodeKey(t, other, kind)), secrets); err != nil || len(finds) != 0 {
			t.Errorf("%s: another key was taken for it: %v (%v)", kind, finds, err)
		}
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func encodeKey(t *testing.T, key *ecdsa.PrivateKey, kind string) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	label := "PRIVATE KEY"
	if kind == "SEC 1" {
		der, err = x509.MarshalECPrivateKey(key)
		label = "EC PRIVATE KEY"
	}
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
}
