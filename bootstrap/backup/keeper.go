package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// Config says what a Keeper saves and where. All fields but Leases, Copies, Dir and what
// is for Dir are needed.
type Config struct {
	Header
	Store *store.Store
	// Leases and Leases6 are the paths of the DHCP leases, where there are some.
	Leases, Leases6 string
	// Recipients can open the backups.
	Recipients []age.Recipient
	// Dir is where they go; empty for nowhere, then they are only streamed.
	Dir string
	// Copies is where copies of what is in Dir go; nil for nowhere.
	Copies Place
	// Every is how often, Keep how many of the newest stay.
	Every time.Duration
	Keep  int
	// Nodes is how many of the newest each control plane keeps; 0 for none.
	Nodes int
	Now   func() time.Time
	Log   *slog.Logger
}

// Keeper makes backups of a running server. It is safe for concurrent use.
type Keeper struct {
	cfg Config

	saving, copying sync.Mutex // one at a time each
	// saved wakes Run, which copies.
	saved chan struct{}

	mu   sync.Mutex
	last State
}

// State is how it stands with the backups in the directory.
type State struct {
	// Dir and Every are as configured.
	Dir   string
	Every time.Duration
	// Good is the newest backup that was read back to its end; the zero value for none.
	Good files.File
	// SHA256 is of Good, lower-case hexadecimal; empty for none.
	SHA256 string
	// Nodes is how many of the newest each control plane keeps; 0 for none.
	Nodes int
	// Failed is why the newest attempt failed, At when; nil when it did not.
	Failed error
	At     time.Time
	Copy   CopyState
}

// retry is how long after a failed attempt the next one is.
const retry = time.Minute

// Late says whether the newest good backup is older than it should ever be.
func (s State) Late(now time.Time) bool {
	return s.Dir != "" && now.Sub(s.Good.At) > 2*s.Every
}

// NewKeeper looks for the newest good backup that is there already. That the
// directory cannot be read is no error yet: State and the log say so.
func NewKeeper(cfg Config) (*Keeper, error) {
	if len(cfg.Recipients) == 0 {
		return nil, errors.New("preparing backups: nobody could open them; backup.recipients in cluster.yaml names no key")
	}
	k := &Keeper{cfg: cfg, saved: make(chan struct{}, 1), last: State{Dir: cfg.Dir, Every: cfg.Every, Nodes: cfg.Nodes}}
	if cfg.Dir == "" {
		return k, nil
	}
	if cfg.Copies != nil {
		k.last.Copy.Place = cfg.Copies.String()
	}
	all, err := files.List(cfg.Dir)
	if err != nil {
		k.note(files.File{}, "", err)
		return k, nil
	}
	for _, f := range files.Of(cfg.Cluster, all) {
		sum, err := k.verify(f)
		if err != nil {
			cfg.Log.Warn("a backup that is there is not good", "file", f.Name, "error", err.Error())
			continue
		}
		k.last.Good, k.last.SHA256 = f, sum
		break
	}
	return k, nil
}

// verify reads a file in the directory to its end.
func (k *Keeper) verify(f files.File) (sum string, err error) {
	in, err := os.Open(filepath.Join(k.cfg.Dir, f.Name))
	if err != nil {
		return "", err
	}
	defer in.Close()
	return k.check(in)
}

// check reads a backup to its end and returns its SHA-256.
func (k *Keeper) check(r io.Reader) (sum string, err error) {
	h := sha256.New()
	r = io.TeeReader(r, h)
	c, n, err := Verify(r, k.cfg.Store.Identity())
	switch {
	case err != nil:
		return "", err
	case c.Cluster != k.cfg.Cluster:
		return "", fmt.Errorf("it is of cluster %s", c.Cluster)
	case n == 0:
		return "", errors.New("there is no record in it")
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// State returns how it stands.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

func (k *Keeper) note(good files.File, sum string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last.At, k.last.Failed = k.cfg.Now(), err
	if err == nil {
		k.last.Good, k.last.SHA256 = good, sum
	}
}

// Run makes a backup whenever one is due, until ctx ends. The first is due at once
// when there is none that is recent.
func (k *Keeper) Run(ctx context.Context) error {
	if k.cfg.Dir == "" {
		<-ctx.Done()
		return nil
	}
	for {
		s, now := k.State(), k.cfg.Now()
		wait := s.due(now)
		if soon, todo := s.Copy.due(s.Good, now); todo {
			wait = min(wait, soon)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-k.saved:
			timer.Stop()
			continue
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		// State and the log say what failed.
		if s := k.State(); s.due(k.cfg.Now()) <= 0 {
			_, _ = k.Save(ctx)
		} else {
			k.copy(ctx)
		}
	}
}

// due is how long until the next attempt.
func (s State) due(now time.Time) time.Duration {
	wait := s.Good.At.Add(s.Every).Sub(now)
	if s.Failed != nil {
		wait = max(wait, s.At.Add(retry).Sub(now))
	}
	// A clock that was set back must not stop backups for long.
	return min(max(wait, 0), s.Every)
}

// Save makes a backup in the directory now; Run copies it after that.
func (k *Keeper) Save(ctx context.Context) (files.File, error) {
	if k.cfg.Dir == "" {
		return files.File{}, errors.New("saving a backup: backup.target in cluster.yaml names no directory; imagectl server backup --to DIR brings one here")
	}
	f, err := k.save(ctx)
	if err == nil {
		select {
		case k.saved <- struct{}{}:
		default: // it is awake
		}
	}
	return f, err
}

func (k *Keeper) save(ctx context.Context) (files.File, error) {
	k.saving.Lock()
	defer k.saving.Unlock()
	f := files.File{Cluster: k.cfg.Cluster, At: k.cfg.Now().UTC().Truncate(time.Millisecond)}
	f.Name = files.Name(f.Cluster, f.At)
	var sum string
	var err error
	f.Size, err = files.Save(k.cfg.Dir, f.Name, func(w io.Writer) error { return k.write(ctx, w, f.At) }, func(r io.Reader) (err error) {
		sum, err = k.check(r)
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			k.note(files.File{}, "", err)
			k.cfg.Log.Error("the backup failed", "error", err.Error())
		}
		return files.File{}, err
	}
	k.note(f, sum, nil)
	gone, err := files.Prune(k.cfg.Dir, f, k.cfg.Keep)
	if err != nil {
		k.cfg.Log.Error("old backups stay", "error", err.Error())
	}
	k.cfg.Log.Info("backup saved and read back", "file", f.Name, "bytes", f.Size, "removed", len(gone))
	return f, nil
}

// Open opens the newest good backup, for a node to keep; the caller closes it. It is an error
// when name is another one.
func (k *Keeper) Open(name string) (io.ReadCloser, error) {
	if good := k.State().Good.Name; name != good || good == "" {
		return nil, fmt.Errorf("the newest backup is %q, not %q; ask again", good, name)
	}
	return os.Open(filepath.Join(k.cfg.Dir, name))
}

// Stream writes a backup to somebody else and returns its name.
func (k *Keeper) Stream(ctx context.Context, w io.Writer) (string, error) {
	at := k.cfg.Now().UTC().Truncate(time.Millisecond)
	return files.Name(k.cfg.Cluster, at), k.write(ctx, w, at)
}

func (k *Keeper) write(ctx context.Context, w io.Writer, at time.Time) error {
	c := Content{Header: k.cfg.Header}
	c.At = at
	var err error
	if c.Identity, err = k.cfg.Store.IdentityFile(); err != nil {
		return err
	}
	for path, into := range map[string]*[]byte{k.cfg.Leases: &c.Leases, k.cfg.Leases6: &c.Leases6} {
		if path == "" {
			continue
		}
		if *into, err = os.ReadFile(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("reading leases: %w", err)
		}
	}
	// Our own key is among them so that what was written can be read back. It opens
	// nothing that does not lie beside it.
	to := append([]age.Recipient{k.cfg.Store.Recipient()}, k.cfg.Recipients...)
	return Write(w, to, c, k.cfg.Store.Records(ctx))
}
