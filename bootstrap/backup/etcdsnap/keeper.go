package etcdsnap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
)

const (
	// stall is how long a member may send nothing, takeTime how long a snapshot may take at all: at
	// 10 MB/s 8 GiB take a quarter of an hour.
	stall, takeTime = time.Minute, time.Hour
	// checkTime and copyTime bound these two.
	checkTime, copyTime = time.Hour, time.Hour
	// again is how soon somebody looks whether what was in the way of a snapshot is over.
	again = 10 * time.Second
	// idle is the longest time without a look.
	idle = time.Hour
)

// ErrNotNow says that no snapshot may be taken this moment, for instance since a member joins. It is
// no failure.
var ErrNotNow = errors.New("no snapshot of etcd is taken now")

// Source is the cluster. Its methods may be called by one goroutine at a time but for Leads and
// Changed.
type Source interface {
	// Leads says whether this server takes the snapshots; Changed is closed when that may be
	// another one.
	Leads() bool
	Changed() <-chan struct{}
	// Forget ends the turn that was given by a server that is gone, if there is one.
	Forget(ctx context.Context) error
	// Begin gives one machine the turn, and best another one than avoid. It fails with ErrNotNow,
	// and its reason, where nobody may have it.
	Begin(ctx context.Context, avoid string) (machine string, err error)
	// Open reads the snapshot of a machine's member, after a quorum confirmed up to where that
	// member has everything. The caller closes it.
	Open(ctx context.Context, machine string) (Stream, error)
	// End ends the turn, with what was saved or why nothing was.
	End(ctx context.Context, machine string, saved Manifest, failed error) error
	// Checked puts on record that a snapshot was read page by page; broken is nil when it is whole.
	Checked(ctx context.Context, m Manifest, broken error) error
	// Sign signs a statement with the key of the CA.
	Sign(statement []byte) ([]byte, error)
}

// Stream is a snapshot that comes.
type Stream interface {
	io.ReadCloser
	// Revision is what it has at least, Member the ID of the member that sends it.
	Revision() int64
	Member() string
}

// Place is somewhere else that keeps copies. What has a name there is whole.
type Place interface {
	fmt.Stringer
	// List returns the snapshots there, of any cluster, newest first.
	List(ctx context.Context) ([]files.File, error)
	Put(ctx context.Context, f files.File, r io.Reader) error
	Open(ctx context.Context, f files.File) (io.ReadCloser, error)
	Remove(ctx context.Context, f files.File) error
}

// Config says what a Keeper saves and where. All fields but Copies and Stall are needed.
type Config struct {
	Cluster string
	// Program is the version of imagectl.
	Program string
	Plan
	// Dir is where they go. It is there already.
	Dir string
	// Scratch is a directory for what is read page by page: a file without a name that holds a
	// snapshot which is not encrypted.
	Scratch string
	// Recipients can open the snapshots. So can Own, which reads them back.
	Recipients []age.Recipient
	Own        *age.X25519Identity
	// Max is how large a snapshot may be, in bytes.
	Max int64
	Now func() time.Time
	Log *slog.Logger
	// Copies is where copies go; nil for nowhere.
	Copies Place
	// Inspect has the function of that name done in a process of its own: a damaged database ends
	// whoever reads it.
	Inspect func(ctx context.Context, path string) (Contents, error)
	// Stall is how long a member may send nothing; 0 for a minute.
	Stall time.Duration
}

// Keeper takes snapshots of a running cluster. State, Plan, Dir and List are safe for concurrent use;
// one goroutine calls Run.
type Keeper struct {
	cfg    Config
	source Source
	// led: this server was the one at the last look. tried is whose member was asked in vain last.
	led   bool
	tried string

	mu   sync.Mutex
	last State
}

// New makes a Keeper; nothing is looked at yet.
func New(cfg Config, source Source) (*Keeper, error) {
	switch {
	case len(cfg.Recipients) == 0:
		return nil, errors.New("preparing snapshots of etcd: nobody could open them; backup.recipients in cluster.yaml names no key")
	case cfg.Inspect == nil:
		return nil, errors.New("preparing snapshots of etcd: nobody reads them page by page")
	case cfg.Dir == "" || cfg.Every <= 0 || cfg.Keep < 1 || cfg.Max <= 0:
		return nil, fmt.Errorf("preparing snapshots of etcd: directory %q, every %s, keep %d and at most %d bytes are not all set", cfg.Dir, cfg.Every, cfg.Keep, cfg.Max)
	}
	if cfg.Stall == 0 {
		cfg.Stall = stall
	}
	k := &Keeper{cfg: cfg, source: source, last: State{Started: cfg.Now()}}
	if cfg.Copies != nil {
		k.last.Place = cfg.Copies.String()
	}
	return k, nil
}

// State returns how it stands.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

// Plan is as configured, and so is Dir.
func (k *Keeper) Plan() Plan { return k.cfg.Plan }

// Dir is where the snapshots go.
func (k *Keeper) Dir() string { return k.cfg.Dir }

func (k *Keeper) note(f func(*State)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(&k.last)
}

// Run does whatever is due, until ctx ends. State and the log say what failed.
func (k *Keeper) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		changed := k.source.Changed()
		timer := time.NewTimer(k.step(ctx))
		select {
		case <-timer.C:
		case <-changed:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

// step does one thing, and says how long nothing is to do after that.
func (k *Keeper) step(ctx context.Context) time.Duration {
	if !k.source.Leads() {
		k.led = false
		return idle
	}
	if !k.led {
		if err := k.begin(ctx); err != nil {
			k.cfg.Log.Error("looking for snapshots of etcd", "error", err.Error())
			k.note(func(s *State) { s.Failed, s.FailedAt = err, k.cfg.Now() })
			return firstRetry
		}
		k.led = true
	}
	// What another server does from now on is none of this one's.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go k.untilAnotherLeads(cancel, done)
	do, wait := Next(k.cfg.Plan, k.State(), k.cfg.Now())
	switch do {
	case DoTake:
		return k.take(ctx)
	case DoCheck:
		k.check(ctx)
	case DoCopy:
		k.copy(ctx)
	case DoWait:
		return min(wait, idle)
	}
	return 0
}

func (k *Keeper) untilAnotherLeads(cancel context.CancelFunc, done <-chan struct{}) {
	for {
		changed := k.source.Changed()
		if !k.source.Leads() {
			cancel()
			return
		}
		select {
		case <-changed:
		case <-done:
			return
		}
	}
}

// begin looks at what is there, when this server has become the one that takes snapshots.
func (k *Keeper) begin(ctx context.Context) error {
	if err := k.source.Forget(ctx); err != nil {
		return err
	}
	all, err := files.Etcd.List(k.cfg.Dir)
	if err != nil {
		return err
	}
	for _, f := range files.Of(k.cfg.Cluster, all) {
		m, err := k.verify(f)
		if err != nil {
			k.cfg.Log.Warn("a snapshot of etcd that is there is not good", "file", f.Name, "error", err.Error())
			continue
		}
		k.note(func(s *State) {
			if m.At.After(s.Good.At) {
				s.Good = m
			}
		})
		break
	}
	return nil
}

// verify reads a file in the directory to its end, and compares it with its manifest.
func (k *Keeper) verify(f files.File) (Manifest, error) {
	m, err := k.manifest(f.Name)
	if err != nil {
		return Manifest{}, err
	}
	in, err := os.Open(filepath.Join(k.cfg.Dir, f.Name))
	if err != nil {
		return Manifest{}, err
	}
	defer in.Close()
	plain, sum, size, err := checkFile(in, k.cfg.Own)
	switch {
	case err != nil:
		return Manifest{}, err
	case m.Cluster != k.cfg.Cluster || m.Name != f.Name || m.FileSHA256 != sum || m.FileSize != size || m.SHA256 != plain.SHA256():
		return Manifest{}, errors.New("it is not what its manifest says")
	}
	return m, nil
}

func (k *Keeper) manifest(name string) (Manifest, error) {
	in, err := os.Open(filepath.Join(k.cfg.Dir, name+ManifestEnd))
	if err != nil {
		return Manifest{}, err
	}
	defer in.Close()
	return ReadManifest(in)
}
