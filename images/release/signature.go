package release

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/imagectl/imagectl/images/lock"
)

// ErrSignature is wrapped by every refusal of a signature.
var ErrSignature = errors.New("the signature does not hold")

// maxSignature bounds a detached signature, in bytes; Flatcar's have 566.
const maxSignature = 64 << 10

// clockSkew is how far in the future a signature may lie, because clocks differ.
const clockSkew = 24 * time.Hour

// Key is the one primary key whose signatures count, with its subkeys.
type Key struct{ entity *openpgp.Entity }

// ReadKey reads a keyring file, armoured or not, and returns the key with the
// pinned fingerprint. Other keys in the file count for nothing.
func ReadKey(path, primary string) (Key, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Key{}, fmt.Errorf("reading keyring: %w", err)
	}
	k, err := ParseKey(b, primary)
	if err != nil {
		return Key{}, fmt.Errorf("reading keyring %s: %w", path, err)
	}
	return k, nil
}

// readKey finds the keyring that a want names.
func readKey(dir string, by SignedBy) (Key, error) {
	if by.Keyring == "" {
		return Key{}, fmt.Errorf("no keyring is given for the pinned key %s; put Flatcar's image signing key (https://www.flatcar.org/security/image-signing-key/) next to cluster.yaml and name it there", by.Primary)
	}
	return ReadKey(Locate(dir, by.Keyring), by.Primary)
}

// ParseKey is ReadKey for a keyring in memory.
func ParseKey(keyring []byte, primary string) (Key, error) {
	want := normalise(primary)
	if len(want) != 40 && len(want) != 64 {
		return Key{}, fmt.Errorf("the pinned fingerprint %q has %d hexadecimal digits, want all 40 (or 64): a short key ID can be forged", primary, len(want))
	}
	var list openpgp.EntityList
	var err error
	if bytes.HasPrefix(bytes.TrimSpace(keyring), []byte("-----BEGIN")) {
		list, err = openpgp.ReadArmoredKeyRing(bytes.NewReader(keyring))
	} else {
		list, err = openpgp.ReadKeyRing(bytes.NewReader(keyring))
	}
	if err != nil {
		return Key{}, fmt.Errorf("parsing OpenPGP keys: %w", err)
	}
	var have []string
	for _, e := range list {
		have = append(have, fingerprint(e.PrimaryKey))
		if have[len(have)-1] == want {
			return Key{entity: e}, nil
		}
	}
	return Key{}, fmt.Errorf("it does not hold the pinned primary key %s; it holds %s", want, strings.Join(have, ", "))
}

func normalise(fingerprint string) string {
	return strings.ToUpper(strings.ReplaceAll(fingerprint, " ", ""))
}

func fingerprint(k *packet.PublicKey) string { return fmt.Sprintf("%X", k.Fingerprint) }

// Verify checks a detached signature, armoured or not, over content. The keys'
// validity is judged at the moment the signature was made, as gpg does: a release
// outlives the subkey that signed it. So a thief of an expired subkey could date
// a signature back; the digest in the lock file is what protects from that.
func (k Key) Verify(content io.Reader, signature []byte, now time.Time) (lock.Signer, error) {
	signer, err := k.verify(content, signature, packet.SigTypeBinary, now)
	if err != nil {
		return lock.Signer{}, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return signer, nil
}

func (k Key) verify(content io.Reader, signature []byte, kind packet.SignatureType, now time.Time) (lock.Signer, error) {
	raw, sigs, err := parseSignatures(signature)
	if err != nil {
		return lock.Signer{}, err
	}
	made, err := k.choose(sigs, kind, now)
	if err != nil {
		return lock.Signer{}, err
	}
	config := &packet.Config{Time: func() time.Time { return made.CreationTime }}
	md, err := openpgp.VerifyDetachedSignatureReader(openpgp.EntityList{k.entity}, content, bytes.NewReader(raw), config)
	if err != nil {
		return lock.Signer{}, err
	}
	if _, err := io.Copy(io.Discard, md.UnverifiedBody); err != nil {
		return lock.Signer{}, fmt.Errorf("reading the signed file: %w", err)
	}
	switch {
	case md.SignatureError != nil && errors.As(md.SignatureError, new(pgperrors.SignatureError)):
		return lock.Signer{}, fmt.Errorf("the file is not what key %s signed on %s: it was changed or cut off after that (%w); nothing of it is used: try another mirror", k.issuer(made), when(made.CreationTime), md.SignatureError)
	case md.SignatureError != nil:
		return lock.Signer{}, md.SignatureError
	case md.SignedBy == nil || md.Signature == nil:
		return lock.Signer{}, errors.New("no signature in the file could be checked")
	}
	return lock.Signer{
		Primary:  fingerprint(k.entity.PrimaryKey),
		Subkey:   fingerprint(md.SignedBy.PublicKey),
		SignedAt: md.Signature.CreationTime.UTC().Format(time.RFC3339),
	}, nil
}

// parseSignatures returns the signature packets and their binary form.
func parseSignatures(b []byte) (raw []byte, sigs []*packet.Signature, err error) {
	if len(b) > maxSignature {
		return nil, nil, fmt.Errorf("the signature file has %d bytes, more than %d", len(b), maxSignature)
	}
	raw = b
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		block, err := armor.Decode(bytes.NewReader(b))
		if err != nil {
			return nil, nil, fmt.Errorf("reading the armoured signature: %w", err)
		}
		if raw, err = io.ReadAll(block.Body); err != nil {
			return nil, nil, fmt.Errorf("reading the armoured signature: %w", err)
		}
	}
	packets := packet.NewReader(bytes.NewReader(raw))
	for {
		p, err := packets.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading the signature: %w", err)
		}
		if s, ok := p.(*packet.Signature); ok {
			sigs = append(sigs, s)
		}
	}
	if len(sigs) == 0 {
		return nil, nil, errors.New("the signature file holds no OpenPGP signature")
	}
	return raw, sigs, nil
}

// choose finds a signature by a key that was good when it signed, and says why
// there is none.
func (k Key) choose(sigs []*packet.Signature, kind packet.SignatureType, now time.Time) (*packet.Signature, error) {
	var problems []error
	for _, s := range sigs {
		err := k.judge(s, kind, now)
		if err == nil {
			return s, nil
		}
		problems = append(problems, err)
	}
	return nil, errors.Join(problems...)
}

// judge says in a sentence why a signature cannot count, before a byte of
// content is read.
func (k Key) judge(s *packet.Signature, kind packet.SignatureType, now time.Time) error {
	if s.IssuerKeyId == nil {
		return errors.New("it does not say which key made it")
	}
	if s.SigType != kind {
		return fmt.Errorf("it is of type %d, want %d (0 is over a file's bytes, 1 over its text)", s.SigType, kind)
	}
	if s.CreationTime.After(now.Add(clockSkew)) {
		return fmt.Errorf("it was made on %s, which is in the future (now is %s); check this machine's clock", when(s.CreationTime), when(now))
	}
	primary := fingerprint(k.entity.PrimaryKey)
	if *s.IssuerKeyId == k.entity.PrimaryKey.KeyId {
		if _, err := k.entity.VerifyPrimaryKey(s.CreationTime, nil); err != nil {
			return fmt.Errorf("primary key %s was not valid on %s, when it signed: %w", primary, when(s.CreationTime), err)
		}
		return nil
	}
	i := slices.IndexFunc(k.entity.Subkeys, func(sub openpgp.Subkey) bool { return sub.PublicKey.KeyId == *s.IssuerKeyId })
	if i < 0 {
		return fmt.Errorf("it was made by key %s, which is neither the pinned primary key %s nor one of its subkeys; pin another key only after its publisher has confirmed the fingerprint", k.issuer(s), primary)
	}
	sub := &k.entity.Subkeys[i]
	name := fingerprint(sub.PublicKey)
	binding, err := sub.Verify(s.CreationTime, nil)
	switch {
	case errors.Is(err, pgperrors.ErrKeyRevoked):
		return fmt.Errorf("it was made by subkey %s of %s, which has been revoked%s", name, primary, revocation(sub))
	case errors.Is(err, pgperrors.ErrKeyExpired):
		until := "an unknown time"
		if b, err := sub.LatestValidBindingSignature(s.CreationTime, nil); err == nil && b.KeyLifetimeSecs != nil {
			until = when(sub.PublicKey.CreationTime.Add(time.Duration(*b.KeyLifetimeSecs) * time.Second))
		}
		return fmt.Errorf("it was made on %s by subkey %s of %s, which had expired on %s; try another mirror or release: nobody should sign with that key any more", when(s.CreationTime), name, primary, until)
	case s.CreationTime.Before(sub.PublicKey.CreationTime):
		return fmt.Errorf("it says it was made on %s, but subkey %s of %s exists since %s only", when(s.CreationTime), name, primary, when(sub.PublicKey.CreationTime))
	case err != nil:
		return fmt.Errorf("subkey %s was not bound to %s on %s, when it signed: %w", name, primary, when(s.CreationTime), err)
	case binding.FlagsValid && !binding.FlagSign:
		return fmt.Errorf("subkey %s of %s may not sign", name, primary)
	}
	return nil
}

func revocation(sub *openpgp.Subkey) string {
	for _, r := range sub.Revocations {
		if r.Valid != nil && *r.Valid {
			return " on " + when(r.Packet.CreationTime)
		}
	}
	return ""
}

func (k Key) issuer(s *packet.Signature) string {
	if len(s.IssuerFingerprint) > 0 {
		return fmt.Sprintf("%X", s.IssuerFingerprint)
	}
	return fmt.Sprintf("%016X", *s.IssuerKeyId)
}

func when(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
