package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
)

// identityFile holds the age identity that encrypts private keys at rest, in the
// form that the age tool reads.
const identityFile = "identity.age"

// secretsPrefix begins the names of values that are encrypted.
const secretsPrefix = "secrets/"

// openIdentity reads the identity. At the first start, when there is no data yet
// for which it would be the wrong one, it makes it.
func openIdentity(path, data string) (*age.X25519Identity, error) {
	id, err := readIdentity(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(data); err == nil {
			return nil, fmt.Errorf("%s is missing; restore the file from a backup, the private keys in %s cannot be read without it", path, data)
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		return createIdentity(path)
	}
	return id, err
}

func readIdentity(path string) (*age.X25519Identity, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	id, err := parseIdentity(b)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return id, nil
}

func parseIdentity(b []byte) (*age.X25519Identity, error) {
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return age.ParseX25519Identity(line)
		}
	}
	return nil, errors.New("there is no identity in it; restore the file from a backup, the private keys cannot be read without it")
}

func createIdentity(path string) (*age.X25519Identity, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("making the encryption identity: %w", err)
	}
	text := fmt.Sprintf("# imagectl serve: encrypts the private keys in this directory. Keep a copy elsewhere.\n# public key: %s\n%s\n", id.Recipient(), id)
	if err := writeFile(path, []byte(text)); err != nil {
		return nil, err
	}
	return id, nil
}

// writeFile writes a secret file so that it is there completely or not at all,
// also after a power cut.
func writeFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes durable what files a directory has.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Secret returns the named secret. When there is none yet, it stores what create
// makes, encrypted, and calls created in the same transaction, so that the
// caller can record it; created may be nil.
func (s *Store) Secret(ctx context.Context, name string, create func() ([]byte, error), created func(*Tx) error) ([]byte, error) {
	var plain []byte
	var fresh []byte // made once, though the transaction may run again
	err := s.Change(ctx, func(tx *Tx) error {
		key := secretsPrefix + name
		var sealed []byte
		ok, err := tx.Value(key, &sealed)
		if err != nil {
			return err
		}
		if ok {
			plain, err = s.unseal(sealed)
			return err
		}
		if fresh == nil {
			if fresh, err = create(); err != nil {
				return err
			}
		}
		plain = fresh
		if sealed, err = s.seal(fresh); err != nil {
			return err
		}
		if err := tx.PutValue(key, sealed); err != nil {
			return err
		}
		if created == nil {
			return nil
		}
		return created(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("reading secret %s: %w", name, err)
	}
	return plain, nil
}

// Secret reads what Store.Secret or PutSecret has stored; false when there is none.
func (t *Tx) Secret(name string) ([]byte, bool, error) {
	var sealed []byte
	ok, err := t.Value(secretsPrefix+name, &sealed)
	if err != nil || !ok || sealed == nil {
		return nil, false, err
	}
	plain, err := t.store.unseal(sealed)
	if err != nil {
		return nil, false, fmt.Errorf("reading secret %s: %w", name, err)
	}
	return plain, true, nil
}

// PutSecret encrypts a secret and stores it in the place of the one that has its name.
func (t *Tx) PutSecret(name string, plain []byte) error {
	sealed, err := t.store.seal(plain)
	if err != nil {
		return fmt.Errorf("writing secret %s: %w", name, err)
	}
	return t.PutValue(secretsPrefix+name, sealed)
}

// DeleteSecret removes a secret. What was encrypted stays in etcd's history until that is
// compacted, and in the backups that were made before.
func (t *Tx) DeleteSecret(name string) { t.writes[t.store.prefix+"values/"+secretsPrefix+name] = nil }

func (s *Store) seal(plain []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := age.Encrypt(&b, s.identity.Recipient())
	if err != nil {
		return nil, err
	}
	_, err = w.Write(plain)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Unseal decrypts what somebody encrypted, with the age tool, to the public key in
// the state directory's identity.
func (s *Store) Unseal(sealed []byte) ([]byte, error) { return s.unseal(sealed) }

func (s *Store) unseal(sealed []byte) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), s.identity)
	if err != nil {
		return nil, fmt.Errorf("decrypting with %s: %w", identityFile, err)
	}
	return io.ReadAll(r)
}
