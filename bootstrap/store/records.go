package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

// Record is one stored key without the cluster's prefix, with its value as it lies in
// the database: secrets are encrypted.
type Record struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// Records reads everything of the cluster as it is at one moment, in the order of the
// keys, while changes go on.
func (s *Store) Records(ctx context.Context) iter.Seq2[Record, error] {
	return recordsOf(ctx, s.client, s.prefix)
}

func recordsOf(ctx context.Context, kv clientv3.KV, prefix string) iter.Seq2[Record, error] {
	const page = 500
	return func(yield func(Record, error) bool) {
		from, end, revision := prefix, clientv3.GetPrefixRangeEnd(prefix), int64(0)
		for {
			resp, err := kv.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(revision))
			if err != nil {
				yield(Record{}, fmt.Errorf("reading the state: %w", err))
				return
			}
			if revision == 0 {
				revision = resp.Header.Revision
			}
			for _, kv := range resp.Kvs {
				if !yield(Record{Key: strings.TrimPrefix(string(kv.Key), prefix), Value: kv.Value}, nil) {
					return
				}
			}
			if !resp.More {
				return
			}
			from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		}
	}
}

// IdentityFile is the content of the file with the identity that encrypts the secrets
// among the records. It is the most secret thing that there is.
func (s *Store) IdentityFile() ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, identityFile))
	if err != nil {
		return nil, fmt.Errorf("reading the encryption identity: %w", err)
	}
	return b, nil
}

// Recipient is whom secrets are encrypted to.
func (s *Store) Recipient() *age.X25519Recipient { return s.identity.Recipient() }

// Identity decrypts what is encrypted to Recipient.
func (s *Store) Identity() age.Identity { return s.identity }

// OwnIdentity is Identity with its public half.
func (s *Store) OwnIdentity() *age.X25519Identity { return s.identity }

// Create makes a state directory out of records. c.Dir must be empty but for what
// lies there under other names than the store's. When it returns nil, everything is
// durable; after an error the directory is of no use.
func Create(ctx context.Context, c Config, identity []byte, records iter.Seq2[Record, error]) error {
	if err := create(ctx, c, identity, records); err != nil {
		return fmt.Errorf("making state directory %s: %w", c.Dir, err)
	}
	return nil
}

func create(ctx context.Context, c Config, identity []byte, records iter.Seq2[Record, error]) (err error) {
	if err := checkCluster(c.Cluster); err != nil {
		return err
	}
	lock, err := lockDir(ctx, c.Dir)
	if err != nil {
		return err
	}
	defer unlock(lock)
	for _, name := range []string{identityFile, dataDir} {
		if _, err := os.Lstat(filepath.Join(c.Dir, name)); !errors.Is(err, os.ErrNotExist) {
			return errors.Join(fmt.Errorf("%s is there already", name), err)
		}
	}
	if err := writeFile(filepath.Join(c.Dir, identityFile), identity); err != nil {
		return err
	}
	// What was written must be readable, or it is no state to start from.
	if _, err := openIdentity(filepath.Join(c.Dir, identityFile), filepath.Join(c.Dir, dataDir)); err != nil {
		return err
	}
	server, err := startEtcd(ctx, c.Dir, c)
	if err != nil {
		return err
	}
	defer server.Close()
	client := v3client.New(server.Server)
	defer client.Close()
	return fill(ctx, client, prefixOf(c.Cluster), mostEmbedded, records)
}

// fill writes records in transactions that etcd takes: at most 1.5 MiB each by
// default, and most changes.
func fill(ctx context.Context, kv clientv3.KV, prefix string, most int, records iter.Seq2[Record, error]) error {
	const bytes = 1 << 20
	var ops []clientv3.Op
	size := 0
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		_, err := kv.Txn(ctx).Then(ops...).Commit()
		ops, size = ops[:0], 0
		return err
	}
	for r, err := range records {
		if err != nil {
			return err
		}
		if len(ops) == most || size+len(r.Value) > bytes {
			if err := flush(); err != nil {
				return err
			}
		}
		ops = append(ops, clientv3.OpPut(prefix+r.Key, string(r.Value)))
		size += len(r.Value)
	}
	return flush()
}

// ValueRecord is the record of a named value; key begins with values/.
func ValueRecord(key string, v any) (Record, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return Record{}, fmt.Errorf("writing %s: %w", key, err)
	}
	return Record{Key: key, Value: b}, nil
}

// Opens checks that a secret among the records can be decrypted here; other records
// are not looked at.
func (s *Store) Opens(r Record) error {
	name, ok := strings.CutPrefix(r.Key, "values/"+secretsPrefix)
	if !ok {
		return nil
	}
	var sealed []byte
	if err := json.Unmarshal(r.Value, &sealed); err != nil {
		return fmt.Errorf("reading secret %s: %w", name, err)
	}
	if _, err := s.unseal(sealed); err != nil {
		return fmt.Errorf("reading secret %s: %w", name, err)
	}
	return nil
}

// Unused says whether no process has dir open as a state directory.
func Unused(dir string) bool {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	free, _ := tryFlock(f)
	_ = unlock(f)
	return free
}
