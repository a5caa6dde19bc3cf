package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Config says where the store is. All fields but Volatile are needed.
type Config struct {
	// Dir is the state directory; it is made (0700) when it is missing.
	Dir string
	// Cluster is the cluster whose records these are.
	Cluster string
	// Log takes etcd's own error messages, as lines of JSON.
	Log io.Writer
	// Volatile does not wait for the disk, so that a power cut loses changes. It is
	// for tests: etcd gives a request little more than five seconds, which a disk that
	// others keep busy can exceed.
	Volatile bool
	// Name is what other servers call this one, where they share an etcd cluster: the
	// https URL of its services.
	Name string
	// Session is how long after its last sign of life such a server is taken for dead;
	// 0 means 10 s.
	Session time.Duration

	// after is called after each step of a move, which ends with its error; nil but in
	// tests.
	after func(step string) error
}

// Store is an open state directory, or what it points to. It is safe for concurrent use.
type Store struct {
	prefix   string
	dir      string
	lock     *os.File
	etcd     *embed.Etcd
	client   *clientv3.Client
	identity *age.X25519Identity
	// session is nil for the embedded etcd, as etcd is for a cluster of its own.
	session *session

	stop    context.CancelFunc
	done    chan struct{} // closed when the watch has ended
	running sync.WaitGroup

	changes queue

	mu       sync.RWMutex
	machines map[string]Machine
	revision int64         // of the newest change in machines
	loaded   int64         // as of which all of them were read
	changed  chan struct{} // closed at the next change
	failed   error         // why the watch ended
}

// Open starts the store and reads all machine records. The caller closes it.
func Open(ctx context.Context, c Config) (*Store, error) {
	s, err := open(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("opening state directory %s: %w", c.Dir, err)
	}
	return s, nil
}

func open(ctx context.Context, c Config) (_ *Store, err error) {
	if err := checkCluster(c.Cluster); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &Store{
		prefix:  prefixOf(c.Cluster),
		dir:     dir,
		done:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	if s.lock, err = lockDir(ctx, dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	at, err := ReadLocation(dir)
	if err != nil {
		return nil, err
	}
	if at != nil {
		err = s.openExternal(ctx, *at, c)
	} else {
		err = s.openEmbedded(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	if err = s.load(ctx); err != nil {
		return nil, err
	}
	// What follows belongs to the store and ends with Close, not with ctx.
	running, stop := context.WithCancel(context.Background())
	s.stop = stop
	go s.watch(running)
	if s.session != nil {
		s.running.Go(func() { s.session.run(running) })
	}
	return s, nil
}

func (s *Store) openEmbedded(ctx context.Context, c Config) (err error) {
	if s.identity, err = openIdentity(filepath.Join(s.dir, identityFile), filepath.Join(s.dir, dataDir)); err != nil {
		return err
	}
	if s.etcd, err = startEtcd(ctx, s.dir, c); err != nil {
		return err
	}
	s.client = v3client.New(s.etcd.Server)
	s.client.KV = newPatientKV(s.client.KV, s.marks())
	// Marks of a process that is gone; nobody asks for them.
	if _, err := s.client.Delete(ctx, s.marks(), clientv3.WithPrefix()); err != nil && !unfinished(err) {
		return fmt.Errorf("removing marks of earlier changes: %w", err)
	}
	return nil
}

func checkCluster(name string) error {
	if name == "" || strings.ContainsRune(name, '/') {
		return fmt.Errorf("%q is no cluster name", name)
	}
	return nil
}

func prefixOf(cluster string) string { return "/imagectl/" + cluster + "/" }

// Close stops the store. No other call may be under way.
func (s *Store) Close() {
	s.changes.work.Wait()
	s.stop()
	<-s.done
	s.running.Wait()
	s.release()
}

func (s *Store) release() {
	if s.client != nil {
		s.client.Close()
	}
	if s.etcd != nil {
		s.etcd.Close()
	}
	_ = unlock(s.lock) // there is nothing more to lose
}

// Done is closed when the store can no longer be trusted to follow changes; Err
// says why.
func (s *Store) Done() <-chan struct{} { return s.done }

// Err is why Done was closed; nil after Close.
func (s *Store) Err() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.failed
}

// marks is the prefix of the keys by which changes are recognised (patientKV). They are
// no part of the state, so they are outside of its prefix.
func (s *Store) marks() string { return "/marks" + s.prefix }

func (s *Store) machineKey(name string) string { return s.prefix + "machines/" + name }

func (s *Store) load(ctx context.Context) error {
	resp, err := s.client.Get(ctx, s.machineKey(""), clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("reading machine records: %w", err)
	}
	machines := make(map[string]Machine, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		var m Machine
		if err := json.Unmarshal(kv.Value, &m); err != nil {
			return fmt.Errorf("reading machine record %s: %w", kv.Key, err)
		}
		machines[m.Name] = m
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if resp.Header.Revision < s.revision {
		return nil // the watch has told of more
	}
	s.machines = machines
	s.revision, s.loaded = resp.Header.Revision, resp.Header.Revision
	s.wake()
	return nil
}

// Refresh reads all machine records anew, so that memory has all that other servers had
// committed before the call.
func (s *Store) Refresh(ctx context.Context) error {
	if s.session == nil {
		return nil // nobody else commits
	}
	return s.load(ctx)
}

// wake tells everybody who waits; mu is held.
func (s *Store) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Store) watch(ctx context.Context) {
	defer close(s.done)
	err := s.follow(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() == nil {
		s.failed = fmt.Errorf("watching machine records: %w", err)
	}
	s.wake()
}

// followPause is waited before a watch that ended is begun again.
const followPause = 500 * time.Millisecond

// follow keeps the snapshot current. A watch of the embedded etcd ends only with it; one
// over a network begins again where it was.
func (s *Store) follow(ctx context.Context) error {
	for {
		err := s.followOnce(ctx)
		if s.session == nil || ctx.Err() != nil {
			return err
		}
		if errors.Is(err, rpctypes.ErrCompacted) {
			err = s.load(ctx) // what was missed is gone; what is there now counts
		}
		if err != nil {
			select {
			case <-time.After(followPause):
			case <-ctx.Done():
			}
		}
	}
}

func (s *Store) followOnce(ctx context.Context) error {
	s.mu.RLock()
	from := s.revision + 1
	s.mu.RUnlock()
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for resp := range s.client.Watch(ctx, s.machineKey(""), clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if err := resp.Err(); err != nil {
			return err
		}
		if err := s.apply(resp); err != nil {
			return err
		}
	}
	return errors.New("the watch ended")
}

func (s *Store) apply(resp clientv3.WatchResponse) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ev := range resp.Events {
		if ev.Kv.ModRevision <= s.loaded {
			continue // read already, perhaps in a newer form
		}
		name := strings.TrimPrefix(string(ev.Kv.Key), s.machineKey(""))
		if ev.Type == clientv3.EventTypeDelete {
			delete(s.machines, name)
		} else {
			var m Machine
			if err := json.Unmarshal(ev.Kv.Value, &m); err != nil {
				return fmt.Errorf("reading machine record %s: %w", ev.Kv.Key, err)
			}
			s.machines[name] = m
		}
		s.revision = ev.Kv.ModRevision
	}
	s.wake()
	return nil
}

// Changed returns a channel that is closed at the next change of any machine
// record. Get it before reading, then nothing is missed.
func (s *Store) Changed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}

// Machine returns one record from memory.
func (s *Store) Machine(name string) (Machine, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m, ok := s.machines[name]
	return m, ok
}

// State returns the state of one machine from memory; the zero State when there
// is no record of it.
func (s *Store) State(name string) machine.State {
	m, _ := s.Machine(name)
	return m.State
}

// Machines returns all records from memory, sorted by name.
func (s *Store) Machines() []Machine {
	s.mu.RLock()
	out := make([]Machine, 0, len(s.machines))
	for _, m := range s.machines {
		out = append(out, m)
	}
	s.mu.RUnlock()
	slices.SortFunc(out, func(a, b Machine) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// await returns when the snapshot has caught up with a revision that changed a
// machine record.
func (s *Store) await(ctx context.Context, revision int64) error {
	for {
		s.mu.RLock()
		reached, changed, failed := s.revision >= revision, s.changed, s.failed
		s.mu.RUnlock()
		if reached {
			return nil
		}
		if failed != nil {
			return failed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Size is how many bytes the database has on the disk, how many of them hold data,
// and at how many it refuses to grow. All are 0 where it is an etcd cluster's: that has
// metrics of its own.
func (s *Store) Size() (disk, used, limit int64) {
	if s.etcd == nil {
		return 0, 0, 0
	}
	b := s.etcd.Server.Backend()
	return b.Size(), b.SizeInUse(), quotaBytes
}

// Values reads all named values whose name begins with prefix, by the rest of
// their names.
func (s *Store) Values(ctx context.Context, prefix string) (map[string]json.RawMessage, error) {
	key := s.prefix + "values/" + prefix
	resp, err := s.client.Get(ctx, key, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("reading values %s: %w", prefix, err)
	}
	out := make(map[string]json.RawMessage, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		out[strings.TrimPrefix(string(kv.Key), key)] = kv.Value
	}
	return out, nil
}

// AuditLines reads the audit log from its first entry, in pages.
func (s *Store) AuditLines(ctx context.Context) iter.Seq2[[]byte, error] {
	return s.AuditLinesAfter(ctx, 0)
}

// AuditLinesAfter yields those behind an entry.
func (s *Store) AuditLinesAfter(ctx context.Context, seq uint64) iter.Seq2[[]byte, error] {
	const page = 500
	return func(yield func([]byte, error) bool) {
		from, end := s.auditKey(seq+1), clientv3.GetPrefixRangeEnd(s.prefix+"audit/entries/")
		for {
			resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page))
			if err != nil {
				yield(nil, fmt.Errorf("reading audit log: %w", err))
				return
			}
			for _, kv := range resp.Kvs {
				if !yield(kv.Value, nil) {
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

func (s *Store) auditKey(seq uint64) string {
	return fmt.Sprintf("%saudit/entries/%016x", s.prefix, seq)
}
