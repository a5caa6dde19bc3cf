package lab

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// maxKeyFile is larger than any file that holds keys on a node.
const maxKeyFile = 1 << 20

// embeddedKey is a private key inside a kubeconfig.
var embeddedKey = regexp.MustCompile(`client-key-data: *([A-Za-z0-9+/=]+)`)

// KeysBelow collects every private key in the small files below a directory.
func KeysBelow(dir string) ([]Secret, error) {
	var out []Secret
	err := walkFiles(dir, func(path string, size int64) error {
		if size > maxKeyFile {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		out = append(out, keysIn(rel, b)...)
		return nil
	})
	return out, err
}

func keysIn(name string, text []byte) []Secret {
	var out []Secret
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if !bytes.HasSuffix([]byte(block.Type), []byte("PRIVATE KEY")) {
			continue
		}
		if n := secretNumber(block.Bytes); n != nil {
			out = append(out, Secret{Name: name, Value: n})
		}
	}
	for _, m := range embeddedKey.FindAllSubmatch(text, -1) {
		if b, err := base64.StdEncoding.DecodeString(string(m[1])); err == nil {
			out = append(out, keysIn(name, b)...)
		}
	}
	return out
}

// secretNumber is the part of a key that everything else follows from: it is in
// every encoding of the key, and in nothing that is public. The rest of an
// encoded key is not secret: object identifiers and the public key stand in
// every certificate.
func secretNumber(der []byte) []byte {
	var key any
	for _, parse := range []func([]byte) (any, error){
		x509.ParsePKCS8PrivateKey,
		func(b []byte) (any, error) { return x509.ParseECPrivateKey(b) },
		func(b []byte) (any, error) { return x509.ParsePKCS1PrivateKey(b) },
	} {
		if k, err := parse(der); err == nil {
			key = k
			break
		}
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		b, err := k.Bytes()
		if err != nil {
			return nil
		}
		return b
	case ed25519.PrivateKey:
		return k.Seed()
	case *rsa.PrivateKey:
		return k.Primes[0].Bytes()
	}
	return nil
}

// ScanDir scans every regular file below a directory.
func ScanDir(dir string, secrets []Secret) ([]string, error) {
	var finds []string
	err := walkFiles(dir, func(path string, _ int64) error {
		more, err := ScanFile(path, secrets)
		finds = append(finds, more...)
		return err
	})
	return finds, err
}

// ScanFile scans one file.
func ScanFile(path string, secrets []Secret) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Scan(path, f, secrets)
}

func walkFiles(dir string, f func(path string, size int64) error) error {
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		seen++
		return f(path, st.Size())
	})
	if err == nil && seen == 0 {
		return fmt.Errorf("%s holds no files; the search would prove nothing", dir)
	}
	return err
}
