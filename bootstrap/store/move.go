package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

// Where a state is hangs on two things, and each is changed in one step: on locationFile
// in each state directory, and on a key of the etcd cluster, its home. A copy that is not
// whole yet, or not the true one any more, has a home that no server starts with.
//
//	to etcd:      home incoming, copy, write locationFile (now it counts), home live, remove the copy here
//	to embedded:  home outgoing, copy, remove locationFile (now it counts), remove the copy there, with its home
//
// A move that is killed is done again, or given up by starting a server where the state
// was: what it left behind is not believed.

// phase of a state on an etcd cluster.
type phase string

const (
	// incoming: being copied there.
	incoming phase = "incoming"
	// live: servers use it.
	live phase = "live"
	// outgoing: being copied away.
	outgoing phase = "outgoing"
)

// home is the value of the key of the same name.
type home struct {
	Phase phase `json:"phase"`
	// ID is that of the newest move; By says whose it was, for people.
	ID string `json:"id"`
	By string `json:"by"`
}

func homeKey(cluster string) string { return runtimePrefix(cluster) + "home" }

// readHome returns nil and 0 when there is none.
func readHome(ctx context.Context, kv clientv3.KV, cluster string) (*home, int64, error) {
	r, err := kv.Get(ctx, homeKey(cluster))
	if err != nil {
		return nil, 0, fmt.Errorf("looking for the state on etcd: %w", err)
	}
	if len(r.Kvs) == 0 {
		return nil, 0, nil
	}
	h := &home{}
	if err := json.Unmarshal(r.Kvs[0].Value, h); err != nil {
		return nil, 0, fmt.Errorf("reading %s: %w", homeKey(cluster), err)
	}
	return h, r.Kvs[0].ModRevision, nil
}

// put makes a home what it shall be, on conditions.
func (h home) put(ctx context.Context, kv clientv3.KV, cluster string, conditions ...clientv3.Cmp) (ok bool, revision int64, err error) {
	b, err := json.Marshal(h)
	if err != nil {
		return false, 0, err
	}
	r, err := kv.Txn(ctx).If(conditions...).Then(clientv3.OpPut(homeKey(cluster), string(b))).Commit()
	if err != nil {
		return false, 0, err
	}
	return r.Succeeded, r.Header.Revision, nil
}

// moveFile names the move that a state directory has begun; it stays until that is done
// or given up.
const moveFile = "move.json"

type move struct {
	ID string   `json:"id"`
	At Location `json:"at"`
}

func readMove(dir string) (*move, error) {
	b, err := os.ReadFile(filepath.Join(dir, moveFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	m := &move{}
	if err == nil {
		err = json.Unmarshal(b, m)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", moveFile, err)
	}
	return m, nil
}

// beginMove names a move, or goes on with the one that was begun.
func beginMove(dir string, at Location) (move, error) {
	old, err := readMove(dir)
	if err != nil {
		return move{}, err
	}
	m := move{ID: newID(), At: at}
	if old != nil {
		m.ID = old.ID
	}
	b, err := json.Marshal(m)
	if err != nil {
		return move{}, err
	}
	return m, writeFile(filepath.Join(dir, moveFile), append(b, '\n'))
}

func endMove(dir string) error {
	if err := os.Remove(filepath.Join(dir, moveFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(dir)
}

// whose names this state directory for people on other machines.
func whose(dir string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "?"
	}
	return host + ":" + dir
}

// mover is one end of a move: a locked state directory and a client of the cluster.
type mover struct {
	Config
	client *clientv3.Client
	kv     *patientKV
	lock   *os.File
	move
}

func newMover(ctx context.Context, c Config, at Location) (*mover, error) {
	if err := checkCluster(c.Cluster); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	c.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil { // where there was no server yet
		return nil, err
	}
	m := &mover{Config: c}
	if m.lock, err = lockDir(ctx, dir); err != nil {
		return nil, err
	}
	if m.move, err = beginMove(dir, at); err != nil {
		return nil, errors.Join(err, unlock(m.lock))
	}
	if m.client, err = at.dial(c); err != nil {
		return nil, errors.Join(err, unlock(m.lock))
	}
	m.kv = at.patient(m.client, runtimePrefix(c.Cluster)+"marks/"+m.ID+"/")
	return m, nil
}

// done is called after each step.
func (m *mover) done(step string) error {
	if m.after == nil {
		return nil
	}
	return m.after(step)
}

func (m *mover) close() {
	m.client.Close()
	unlock(m.lock)
}

// ToEtcd moves the state of a directory that no server uses to an etcd cluster, and
// returns how many records it has. It can be killed at any moment and be done again.
func ToEtcd(ctx context.Context, c Config, at Location) (records int, err error) {
	records, err = toEtcd(ctx, c, at)
	if err != nil {
		return 0, fmt.Errorf("moving the state of %s to etcd: %w", c.Dir, err)
	}
	return records, nil
}

func toEtcd(ctx context.Context, c Config, at Location) (int, error) {
	if err := at.check(); err != nil {
		return 0, err
	}
	if there, err := ReadLocation(c.Dir); err != nil {
		return 0, err
	} else if there != nil {
		return 0, fmt.Errorf("it is on etcd already, at %s", strings.Join(there.Endpoints, ", "))
	}
	m, err := newMover(ctx, c, at)
	if err != nil {
		return 0, err
	}
	defer m.close()
	if _, err := openIdentity(filepath.Join(m.Dir, identityFile), filepath.Join(m.Dir, dataDir)); err != nil {
		return 0, err
	}
	if err := m.claim(ctx); err != nil {
		return 0, err
	}
	if err := m.done("claim"); err != nil {
		return 0, err
	}
	server, err := startEtcd(ctx, m.Dir, c)
	if err != nil {
		return 0, err
	}
	client := v3client.New(server.Server)
	prefix := prefixOf(c.Cluster)
	err = fill(ctx, m.kv, prefix, maxOps-1-maxOld, recordsOf(ctx, client, prefix))
	had, countErr := count(ctx, client, prefix)
	client.Close()
	server.Close()
	if err = errors.Join(err, countErr); err != nil {
		return 0, err
	}
	has, err := count(ctx, m.kv, prefix)
	if err != nil {
		return 0, err
	}
	if had != has {
		return 0, fmt.Errorf("%d records are here and %d arrived there; somebody else writes there", had, has)
	}
	if err := m.done("copy"); err != nil {
		return 0, err
	}
	if err := at.write(m.Dir); err != nil {
		return 0, err
	}
	if err := m.done("location"); err != nil {
		return 0, err
	}
	_, err = settle(ctx, m.kv, m.Dir, c.Cluster)
	return had, err
}

func count(ctx context.Context, kv clientv3.KV, prefix string) (int, error) {
	r, err := kv.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return int(r.Count), nil
}

// claim makes a home that only this move uses, with nothing in it.
func (m *mover) claim(ctx context.Context) error {
	prefix := prefixOf(m.Cluster)
	h, revision, err := readHome(ctx, m.kv, m.Cluster)
	if err != nil {
		return err
	}
	mine := home{incoming, m.ID, whose(m.Dir)}
	switch {
	case h == nil:
		// The second condition is true for every key that is not there.
		ok, _, err := mine.put(ctx, m.kv, m.Cluster, clientv3.Compare(clientv3.CreateRevision(homeKey(m.Cluster)), "=", 0),
			clientv3.Compare(clientv3.CreateRevision(prefix).WithPrefix(), "=", 0))
		if err == nil && !ok {
			err = fmt.Errorf("there is something under %s already; nothing was changed", prefix)
		}
		return err
	case h.ID != m.ID || h.Phase == live:
		return fmt.Errorf("a state of cluster %s is there already (%s, by %s); nothing was changed", m.Cluster, h.Phase, h.By)
	}
	// What an earlier attempt left.
	ok, _, err := mine.put(ctx, m.kv, m.Cluster, clientv3.Compare(clientv3.ModRevision(homeKey(m.Cluster)), "=", revision))
	if err == nil && !ok {
		err = errors.New("the same move goes on elsewhere")
	}
	if err == nil {
		_, err = m.client.Delete(ctx, prefix, clientv3.WithPrefix())
	}
	return err
}

// settle ends a move that this directory had begun, in the way in which it counts, and
// returns the revision of the home.
func settle(ctx context.Context, kv clientv3.KV, dir, cluster string) (int64, error) {
	h, revision, err := readHome(ctx, kv, cluster)
	if err != nil {
		return 0, err
	}
	if h == nil {
		return 0, fmt.Errorf("there is no state of cluster %s on this etcd; it was moved away, or imagectl server move --to-etcd has not brought it yet", cluster)
	}
	begun, err := readMove(dir)
	if err != nil {
		return 0, err
	}
	if h.Phase != live {
		if begun == nil || begun.ID != h.ID {
			return 0, fmt.Errorf("the state is %s: %s moves it and has not ended; do imagectl server move there again, or start imagectl serve there to give the move up", h.Phase, h.By)
		}
		// Begun here, and the location says that the state is on etcd.
		ok, now, err := home{live, h.ID, h.By}.put(ctx, kv, cluster, clientv3.Compare(clientv3.ModRevision(homeKey(cluster)), "=", revision))
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, errors.New("another server of this directory settles the same move")
		}
		revision = now
	}
	// The copy here is not believed any more.
	for _, name := range []string{dataDir, movingDir} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return 0, err
		}
	}
	return revision, endMove(dir)
}

// movingDir is where the embedded etcd is made.
const movingDir = "moving"

// ToEmbedded moves the state of a directory from an etcd cluster, which no server uses,
// into the directory, and returns how many records it has. It can be killed at any
// moment and be done again.
func ToEmbedded(ctx context.Context, c Config) (records int, err error) {
	records, err = toEmbedded(ctx, c)
	if err != nil {
		return 0, fmt.Errorf("moving the state to %s: %w", c.Dir, err)
	}
	return records, nil
}

func toEmbedded(ctx context.Context, c Config) (int, error) {
	at, err := ReadLocation(c.Dir)
	if err != nil {
		return 0, err
	}
	begun, err := readMove(c.Dir)
	if err != nil {
		return 0, err
	}
	switch {
	case at == nil && begun == nil:
		return 0, errors.New("it is in this directory already")
	case at == nil:
		at = &begun.At // the state counts here; what was left there has to go
		m, err := newMover(ctx, c, *at)
		if err != nil {
			return 0, err
		}
		defer m.close()
		return 0, m.leave(ctx)
	}
	m, err := newMover(ctx, c, *at)
	if err != nil {
		return 0, err
	}
	defer m.close()
	if err := m.freeze(ctx); err != nil {
		return 0, err
	}
	if err := m.done("freeze"); err != nil {
		return 0, err
	}
	n, err := m.bring(ctx)
	if err != nil {
		return 0, err
	}
	if err := m.done("copy"); err != nil {
		return 0, err
	}
	if err := os.Remove(filepath.Join(m.Dir, locationFile)); err != nil {
		return 0, err
	}
	if err := syncDir(m.Dir); err != nil {
		return 0, err
	}
	if err := m.done("location"); err != nil {
		return 0, err
	}
	return n, m.leave(ctx)
}

// freeze makes sure that no server changes the state any more.
func (m *mover) freeze(ctx context.Context) error {
	h, revision, err := readHome(ctx, m.kv, m.Cluster)
	switch {
	case err != nil:
		return err
	case h == nil:
		return fmt.Errorf("there is no state of cluster %s on this etcd", m.Cluster)
	case h.Phase != live && h.ID != m.ID:
		return fmt.Errorf("the state is %s: %s moves it", h.Phase, h.By)
	}
	present := runtimePrefix(m.Cluster) + "present/"
	ok, _, err := home{outgoing, m.ID, whose(m.Dir)}.put(ctx, m.kv, m.Cluster,
		clientv3.Compare(clientv3.ModRevision(homeKey(m.Cluster)), "=", revision),
		clientv3.Compare(clientv3.CreateRevision(present).WithPrefix(), "=", 0))
	if err != nil || ok {
		return err
	}
	r, err := m.kv.Get(ctx, present, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	var names []string
	for _, kv := range r.Kvs {
		names = append(names, string(kv.Value))
	}
	return fmt.Errorf("servers use it: %s; stop them first (one that was killed is forgotten after %s)", strings.Join(names, ", "), defaultSession)
}

// bring copies the state into the directory, where it does not count yet.
func (m *mover) bring(ctx context.Context) (int, error) {
	next, data := filepath.Join(m.Dir, movingDir), filepath.Join(m.Dir, dataDir)
	for _, path := range []string{next, data} {
		if err := os.RemoveAll(path); err != nil {
			return 0, err
		}
	}
	if err := os.Mkdir(next, 0o700); err != nil {
		return 0, err
	}
	server, err := startEtcd(ctx, next, m.Config)
	if err != nil {
		return 0, err
	}
	client, prefix := v3client.New(server.Server), prefixOf(m.Cluster)
	err = fill(ctx, client, prefix, mostEmbedded, recordsOf(ctx, m.kv, prefix))
	n, countErr := count(ctx, client, prefix)
	client.Close()
	server.Close()
	if err := errors.Join(err, countErr); err != nil {
		return 0, err
	}
	if err := os.Rename(filepath.Join(next, dataDir), data); err != nil {
		return 0, err
	}
	if err := os.Remove(next); err != nil {
		return 0, err
	}
	return n, syncDir(m.Dir)
}

// leave removes what is on etcd. It does not count any more.
func (m *mover) leave(ctx context.Context) error {
	h, revision, err := readHome(ctx, m.kv, m.Cluster)
	if err != nil {
		return err
	}
	if h != nil && h.ID == m.ID && h.Phase == outgoing {
		_, err := m.kv.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(homeKey(m.Cluster)), "=", revision)).
			Then(clientv3.OpDelete(prefixOf(m.Cluster), clientv3.WithPrefix()), clientv3.OpDelete(homeKey(m.Cluster))).Commit()
		if err == nil {
			_, err = m.client.Delete(ctx, runtimePrefix(m.Cluster)+"marks/", clientv3.WithPrefix())
		}
		if err != nil {
			return fmt.Errorf("the state is here now; removing what is left on etcd: %w; do it again", err)
		}
	}
	return endMove(m.Dir)
}
