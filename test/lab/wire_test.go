package lab

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
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
