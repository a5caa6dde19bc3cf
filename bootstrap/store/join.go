package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Join makes a state directory whose state is on an etcd cluster. identity is the content
// of another server's identity file. A directory with a state in it is refused; a Join
// that was killed can be done again.
func Join(ctx context.Context, dir string, at Location, identity []byte) error {
	if err := join(ctx, dir, at, identity); err != nil {
		return fmt.Errorf("making state directory %s: %w", dir, err)
	}
	return nil
}

func join(ctx context.Context, dir string, at Location, identity []byte) error {
	if err := at.check(); err != nil {
		return err
	}
	if _, err := parseIdentity(identity); err != nil {
		return fmt.Errorf("reading the identity: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	lock, err := lockDir(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock(lock)
	for _, name := range []string{dataDir, identityFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			return errors.Join(fmt.Errorf("%s is there already: this directory has a state", name), err)
		}
	}
	// In this order: with the location alone a server refuses to start, with the identity
	// alone it would begin a state of its own.
	if err := at.write(dir); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, identityFile), identity)
}

// Examine says how many records of a cluster are on an etcd cluster, and fails when there
// is no state of it, or the identity does not open the secrets in it.
func Examine(ctx context.Context, at Location, c Config, identity []byte) (records int, err error) {
	id, err := parseIdentity(identity)
	if err != nil {
		return 0, fmt.Errorf("reading the identity: %w", err)
	}
	if err := checkCluster(c.Cluster); err != nil {
		return 0, err
	}
	client, err := at.dial(c)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, externalPatience)
	defer cancel()
	prefix := prefixOf(c.Cluster)
	all, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("asking etcd: %s: %w", Diagnose(context.WithoutCancel(ctx), client), err)
	}
	h, _, err := readHome(ctx, client, c.Cluster)
	if err != nil {
		return 0, err
	}
	if h == nil || h.Phase != live {
		return 0, fmt.Errorf("there is no state of cluster %s on this etcd: imagectl server move --to-etcd, on the machine of the first server, brings it there", c.Cluster)
	}
	secrets, err := client.Get(ctx, prefix+"values/"+secretsPrefix, clientv3.WithPrefix())
	if err != nil {
		return 0, fmt.Errorf("asking etcd: %w", err)
	}
	for _, kv := range secrets.Kvs {
		var sealed []byte
		if err := json.Unmarshal(kv.Value, &sealed); err != nil {
			return 0, fmt.Errorf("reading %s: %w", kv.Key, err)
		}
		r, err := age.Decrypt(bytes.NewReader(sealed), id)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if err != nil {
			return 0, fmt.Errorf("this identity does not open %s: %w; take the identity.age of a server that uses this state", strings.TrimPrefix(string(kv.Key), prefix), err)
		}
	}
	return int(all.Count), nil
}
