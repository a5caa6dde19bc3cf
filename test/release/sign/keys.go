package main

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// The life of the key, after that of Flatcar's: primary without expiry, two
// years of a subkey that is over, and the one in force.
const (
	year         = 365 * 24 * time.Hour
	expiredLife  = 2 * year
	currentLife  = 20 * year
	keyFileMode  = 0o600
	readableMode = 0o644
)

// primaryBirth, expiredBirth and currentBirth follow Flatcar's image signing
// key; insideExpired is a moment at which only the expired subkey could sign.
func primaryBirth() time.Time  { return time.Date(2018, 2, 6, 12, 0, 0, 0, time.UTC) }
func expiredBirth() time.Time  { return time.Date(2023, 3, 7, 12, 0, 0, 0, time.UTC) }
func insideExpired() time.Time { return time.Date(2024, 6, 1, 12, 0, 0, 0, time.UTC) }
func currentBirth() time.Time  { return time.Date(2025, 3, 7, 12, 0, 0, 0, time.UTC) }

func releaseKey(dir string) string  { return filepath.Join(dir, "private", "release.gpg") }
func strangerKey(dir string) string { return filepath.Join(dir, "private", "stranger.gpg") }

// makeKeys writes DIR/signing-key.asc and DIR/stranger.asc and, under
// DIR/private, their private halves. Keys that exist are kept.
func makeKeys(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "stranger.asc")); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking for keys: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "private"), 0o700); err != nil {
		return fmt.Errorf("making key directory: %w", err)
	}
	release, err := newKey("Flatcar Buildbot", "buildbot@test.invalid", []lifetime{
		{expiredBirth(), expiredLife},
		{currentBirth(), currentLife},
	})
	if err != nil {
		return err
	}
	if err := writeKey(release, releaseKey(dir), filepath.Join(dir, "signing-key.asc")); err != nil {
		return err
	}
	stranger, err := newKey("Stranger", "stranger@test.invalid", []lifetime{{currentBirth(), currentLife}})
	if err != nil {
		return err
	}
	return writeKey(stranger, strangerKey(dir), filepath.Join(dir, "stranger.asc"))
}

// A lifetime is when a subkey was made and for how long it may sign.
type lifetime struct {
	birth time.Time
	life  time.Duration
}

// newKey makes an RSA key whose primary only certifies, with one signing
// subkey for each lifetime and no other.
func newKey(name, email string, subkeys []lifetime) (*openpgp.Entity, error) {
	at := func(t time.Time, life time.Duration) *packet.Config {
		return &packet.Config{
			Algorithm:       packet.PubKeyAlgoRSA,
			RSABits:         2048,
			DefaultHash:     crypto.SHA512,
			Time:            func() time.Time { return t },
			KeyLifetimeSecs: uint32(life / time.Second),
		}
	}
	key, err := openpgp.NewEntity(name, "", email, at(primaryBirth(), 0))
	if err != nil {
		return nil, fmt.Errorf("making key for %s: %w", name, err)
	}
	key.Subkeys = nil // the library's encryption subkey has no use here
	for _, identity := range key.Identities {
		identity.SelfSignature.FlagSign = false
		err := identity.SelfSignature.SignUserId(identity.UserId.Id, key.PrimaryKey, key.PrivateKey, at(primaryBirth(), 0))
		if err != nil {
			return nil, fmt.Errorf("certifying %s: %w", name, err)
		}
	}
	for _, sub := range subkeys {
		if err := key.AddSigningSubkey(at(sub.birth, sub.life)); err != nil {
			return nil, fmt.Errorf("making subkey of %s: %w", name, err)
		}
	}
	return key, nil
}

// writeKey stores the private key at private and the armoured public key at
// public, in this order: a public file means that the key is complete.
func writeKey(key *openpgp.Entity, private, public string) error {
	out, err := os.OpenFile(private, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, keyFileMode)
	if err != nil {
		return fmt.Errorf("writing private key: %w", err)
	}
	if err := errors.Join(key.SerializePrivateWithoutSigning(out, nil), out.Close()); err != nil {
		return fmt.Errorf("writing private key %s: %w", private, err)
	}
	out, err = os.OpenFile(public, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, readableMode)
	if err != nil {
		return fmt.Errorf("writing public key: %w", err)
	}
	armored, err := armor.Encode(out, openpgp.PublicKeyType, nil)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	if err := errors.Join(key.Serialize(armored), armored.Close(), out.Close()); err != nil {
		return fmt.Errorf("writing public key %s: %w", public, err)
	}
	return nil
}

// readKey reads one private key.
func readKey(path string) (*openpgp.Entity, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading key: %w", err)
	}
	defer func() { _ = in.Close() }()
	keys, err := openpgp.ReadKeyRing(in)
	if err != nil {
		return nil, fmt.Errorf("reading key %s: %w", path, err)
	}
	if len(keys) != 1 {
		return nil, fmt.Errorf("reading key %s: %d keys, want 1", path, len(keys))
	}
	return keys[0], nil
}
