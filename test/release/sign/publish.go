package main

import (
	"bytes"
	"crypto"
	"crypto/md5"  // #nosec G501: Flatcar's DIGESTS lists it
	"crypto/sha1" // #nosec G505: Flatcar's DIGESTS lists it
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// signNow configures signatures made now; the newest valid subkey is taken.
func signNow() *packet.Config { return &packet.Config{DefaultHash: crypto.SHA512} }

// signAt configures a signature made at another moment.
func signAt(t time.Time) *packet.Config {
	return &packet.Config{DefaultHash: crypto.SHA512, Time: func() time.Time { return t }}
}

// publish writes what Flatcar puts beside every release file.
func publish(path string, key *openpgp.Entity) error {
	if err := detach(path, path+".sig", key, signNow()); err != nil {
		return err
	}
	digests, err := digests(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".DIGESTS", digests, readableMode); err != nil {
		return err
	}
	if err := detach(path+".DIGESTS", path+".DIGESTS.sig", key, signNow()); err != nil {
		return err
	}
	signing, ok := key.SigningKey(time.Now())
	if !ok {
		return errors.New("the key has no valid signing subkey")
	}
	var clear bytes.Buffer
	text, err := clearsign.Encode(&clear, signing.PrivateKey, signNow())
	if err != nil {
		return err
	}
	if _, err := text.Write(digests); err != nil {
		return err
	}
	if err := text.Close(); err != nil {
		return err
	}
	return os.WriteFile(path+".DIGESTS.asc", clear.Bytes(), readableMode)
}

// detach writes a binary detached signature of path to sig.
func detach(path, sig string, key *openpgp.Entity, config *packet.Config) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	var out bytes.Buffer
	if err := openpgp.DetachSign(&out, key, in, config); err != nil {
		return err
	}
	return os.WriteFile(sig, out.Bytes(), readableMode)
}

// digests is the text of a DIGESTS file.
func digests(path string) ([]byte, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = in.Close() }()
	m, s1, s512 := md5.New(), sha1.New(), sha512.New() // #nosec G401: see the imports
	if _, err := io.Copy(io.MultiWriter(m, s1, s512), in); err != nil {
		return nil, err
	}
	name := filepath.Base(path)
	return fmt.Appendf(nil, "# MD5 HASH\n%x  %s\n# SHA1 HASH\n%x  %s\n# SHA512 HASH\n%x  %s\n",
		m.Sum(nil), name, s1.Sum(nil), name, s512.Sum(nil), name), nil
}

// writeVariants signs a copy of file in other ways: by the subkey that has
// expired since (to be accepted: it was valid then), by that subkey after it
// had expired, and by a stranger (both to be refused).
func writeVariants(keys, file, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	path := filepath.Join(out, filepath.Base(file))
	if err := os.WriteFile(path, data, readableMode); err != nil {
		return err
	}
	release, err := readKey(releaseKey(keys))
	if err != nil {
		return err
	}
	stranger, err := readKey(strangerKey(keys))
	if err != nil {
		return err
	}
	if err := detach(path, path+".expired-subkey.sig", release, signAt(insideExpired())); err != nil {
		return fmt.Errorf("signing with the expired subkey: %w", err)
	}
	if err := lateSignature(path, path+".after-expiry.sig", release); err != nil {
		return fmt.Errorf("signing after expiry: %w", err)
	}
	if err := detach(path, path+".stranger.sig", stranger, signNow()); err != nil {
		return fmt.Errorf("signing as a stranger: %w", err)
	}
	public, err := os.ReadFile(filepath.Join(keys, "stranger.asc"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "stranger.asc"), public, readableMode)
}

// lateSignature signs with the expired subkey at a time after its end, as a
// thief of an old key would.
func lateSignature(path, sig string, key *openpgp.Entity) error {
	old, ok := key.SigningKey(insideExpired())
	if !ok {
		return errors.New("no subkey was valid in 2024")
	}
	alone := *key
	alone.Subkeys = nil
	for _, sub := range key.Subkeys {
		if sub.PublicKey.KeyId != old.PublicKey.KeyId {
			continue
		}
		// Only the signer believes in the longer life; it is not published.
		binding := *sub.Sig
		binding.KeyLifetimeSecs = nil
		sub.Sig = &binding
		alone.Subkeys = append(alone.Subkeys, sub)
	}
	return detach(path, sig, &alone, signNow())
}
