package etcdsnap

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
)

// take saves a snapshot, unless none may be taken now, and says when to look again.
func (k *Keeper) take(ctx context.Context) time.Duration {
	machine, err := k.source.Begin(ctx, k.tried)
	if errors.Is(err, ErrNotNow) {
		k.note(func(s *State) { s.Waiting = err.Error() })
		return again
	}
	var m Manifest
	if err == nil {
		m, err = k.save(ctx, machine)
		// That the turn is over is on record even when this server stops.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), again)
		if endErr := k.source.End(end, machine, m, err); endErr != nil {
			k.cfg.Log.Error("putting a snapshot of etcd on record", "error", endErr.Error())
		}
		cancel()
	}
	if err != nil {
		k.tried = machine
		k.cfg.Log.Error("the snapshot of etcd failed", "machine", machine, "error", err.Error())
		k.note(func(s *State) {
			s.Failed, s.FailedAt, s.Waiting = err, k.cfg.Now(), ""
			s.Failures++
			s.Total++
		})
		return 0
	}
	k.tried = ""
	k.note(func(s *State) {
		s.Good, s.Waiting = m, ""
		// The last was whole too, and broken: this one counts when it was read page by page.
		if s.Broken == "" {
			s.Failed, s.Failures = nil, 0
		}
	})
	k.cfg.Log.Info("snapshot of etcd saved and read back", "file", m.Name, "machine", machine, "revision", m.Revision, "bytes", m.Size)
	if _, todo := k.State().untilCheck(k.cfg.Now()); !todo || m.Size > checkSmall {
		k.prune(ctx)
	}
	return 0
}

// save brings a snapshot into the directory. It is there with its manifest, or not at all.
func (k *Keeper) save(ctx context.Context, machine string) (Manifest, error) {
	ctx, cancel := context.WithTimeout(ctx, takeTime)
	defer cancel()
	m := Manifest{Format: format, Cluster: k.cfg.Cluster, At: k.cfg.Now().UTC().Truncate(time.Millisecond), Machine: machine, Program: k.cfg.Program}
	m.Name = files.Etcd.Name(m.Cluster, m.At)
	manifest := filepath.Join(k.cfg.Dir, m.Name+ManifestEnd)
	_, err := files.Save(k.cfg.Dir, m.Name, func(w io.Writer) error { return k.receive(ctx, w, &m) }, func(r io.Reader) error {
		plain, sum, size, err := checkFile(r, k.cfg.Own)
		if err != nil {
			return err
		}
		if plain.SHA256() != m.SHA256 {
			return fmt.Errorf("its SHA-256 is %s, what came had %s", plain.SHA256(), m.SHA256)
		}
		m.FileSHA256, m.FileSize = sum, size
		if m.Signature, err = k.source.Sign(m.Statement()); err != nil {
			return err
		}
		return writeManifest(manifest, m)
	})
	if err != nil {
		return Manifest{}, errors.Join(err, drop(manifest))
	}
	return m, nil
}

// receive encrypts what a member sends, and notes what it is.
func (k *Keeper) receive(ctx context.Context, w io.Writer, m *Manifest) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := fmt.Errorf("%s has sent nothing for %s", m.Machine, k.cfg.Stall)
	timer := time.AfterFunc(k.cfg.Stall, func() { cancel(stalled) })
	defer timer.Stop()
	in, err := k.source.Open(ctx, m.Machine)
	if err != nil {
		return causeOf(ctx, err)
	}
	defer in.Close()
	if m.Revision, m.Member = in.Revision(), in.Member(); m.Revision <= 0 {
		return fmt.Errorf("%s does not say which revision its snapshot has; its agent is older than this server", m.Machine)
	}
	sealed, err := age.Encrypt(w, append([]age.Recipient{k.cfg.Own.Recipient()}, k.cfg.Recipients...)...)
	if err != nil {
		return err
	}
	t := NewTrailer()
	for b := make([]byte, 256<<10); ; {
		n, err := in.Read(b)
		if n > 0 {
			timer.Reset(k.cfg.Stall)
		}
		if t.Size()+int64(n) > k.cfg.Max {
			return fmt.Errorf("the snapshot of %s has more than %d bytes, the most that a restore takes", m.Machine, k.cfg.Max)
		}
		_, _ = t.Write(b[:n])
		if _, err := sealed.Write(b[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return causeOf(ctx, err)
		}
	}
	if !t.Whole() {
		return fmt.Errorf("%w (%d bytes of %s)", ErrNotWhole, t.Size(), m.Machine)
	}
	m.Size, m.SHA256 = t.Size(), t.SHA256()
	return sealed.Close()
}

// causeOf is why a call broke off.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func writeManifest(path string, m Manifest) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".manifest-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(b, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return files.Sync(dir)
}

// drop removes a file that may be there.
func drop(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// prune removes what does not stay. The newest good one stays, and the last that was read page by
// page.
func (k *Keeper) prune(ctx context.Context) {
	s := k.State()
	stay := []string{s.Good.Name, s.Checked}
	all, err := files.Etcd.List(k.cfg.Dir)
	if err == nil {
		for _, f := range Surplus(all, k.cfg.Cluster, stay, k.cfg.Plan, k.cfg.Now()) {
			path := filepath.Join(k.cfg.Dir, f.Name)
			err = errors.Join(err, drop(path), drop(path+ManifestEnd))
		}
		err = errors.Join(err, k.sweep())
	}
	if err != nil && ctx.Err() == nil {
		k.cfg.Log.Error("old snapshots of etcd stay", "error", err.Error())
	}
}

// sweep removes manifests of this cluster whose files are not there, and what a killed attempt to
// write one left.
func (k *Keeper) sweep() error {
	entries, err := os.ReadDir(k.cfg.Dir)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
	}
	for _, e := range entries {
		name, found := strings.CutSuffix(e.Name(), ManifestEnd)
		f, ok := files.Etcd.Named(name, 0)
		if found && ok && f.Cluster == k.cfg.Cluster && !there[name] && !there[name+brokenEnd] {
			err = errors.Join(err, drop(filepath.Join(k.cfg.Dir, e.Name())))
		}
	}
	return err
}

// brokenEnd is at the end of the name of a snapshot that was found broken: it counts no more, and
// is there for whoever wants to know why.
const brokenEnd = ".broken"

// check reads the newest snapshot page by page.
func (k *Keeper) check(ctx context.Context) {
	m := k.State().Good
	bounded, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	err := k.inspect(bounded, m)
	var broken *BrokenError
	if err != nil && !errors.As(err, &broken) {
		if ctx.Err() == nil {
			k.cfg.Log.Error("a snapshot of etcd could not be checked", "file", m.Name, "error", err.Error())
		}
		k.note(func(s *State) { s.CheckFailed, s.CheckFailedAt = err, k.cfg.Now() })
		return
	}
	if err := k.source.Checked(ctx, m, err); err != nil {
		k.cfg.Log.Error("putting a check on record", "error", err.Error())
	}
	if broken == nil {
		k.note(func(s *State) {
			if s.Broken != "" {
				s.Failed, s.Failures = nil, 0
			}
			s.Checked, s.CheckedAt, s.Broken, s.CheckFailed = m.Name, k.cfg.Now(), "", nil
		})
		k.prune(ctx)
		return
	}
	k.cfg.Log.Error("a snapshot of etcd is broken", "file", m.Name, "machine", m.Machine, "error", broken.Error())
	if err := k.setAside(m.Name); err != nil {
		k.cfg.Log.Error("setting a broken snapshot aside", "error", err.Error())
	}
	// Another member's may be sound.
	k.tried = m.Machine
	before := k.before(m)
	k.note(func(s *State) {
		s.Good, s.Broken, s.CheckFailed = before, fmt.Sprintf("%s, of %s: %s", m.Name, m.Machine, broken.Error()), nil
		s.Failed, s.FailedAt = broken, k.cfg.Now()
		s.Failures++
		s.Total++
	})
}

// setAside takes the name of a broken snapshot away. The one before that goes: they are large.
func (k *Keeper) setAside(name string) error {
	entries, err := os.ReadDir(k.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		old, found := strings.CutSuffix(e.Name(), brokenEnd)
		if f, ok := files.Etcd.Named(old, 0); found && ok && f.Cluster == k.cfg.Cluster {
			err = errors.Join(err, drop(filepath.Join(k.cfg.Dir, e.Name())), drop(filepath.Join(k.cfg.Dir, old+ManifestEnd)))
		}
	}
	path := filepath.Join(k.cfg.Dir, name)
	return errors.Join(err, os.Rename(path, path+brokenEnd), files.Sync(k.cfg.Dir))
}

// before is the newest good one that is older.
func (k *Keeper) before(m Manifest) Manifest {
	all, err := files.Etcd.List(k.cfg.Dir)
	if err != nil {
		return Manifest{}
	}
	for _, f := range files.Of(k.cfg.Cluster, all) {
		if o, err := k.verify(f); err == nil && o.At.Before(m.At) {
			return o
		}
	}
	return Manifest{}
}

func (k *Keeper) inspect(ctx context.Context, m Manifest) error {
	in, err := os.Open(filepath.Join(k.cfg.Dir, m.Name))
	if err != nil {
		return err
	}
	defer in.Close()
	plain, err := Decrypt(in, k.cfg.Own)
	if err != nil {
		return err
	}
	return InScratch(k.cfg.Scratch, plain, func(path string) error {
		c, err := k.cfg.Inspect(ctx, path)
		if err != nil {
			return err
		}
		if c.Revision < m.Revision {
			return &BrokenError{fmt.Sprintf("it ends at revision %d, and the member had %d", c.Revision, m.Revision)}
		}
		return nil
	})
}

// copy brings the newest good snapshot to the other place, its manifest first.
func (k *Keeper) copy(ctx context.Context) {
	m := k.State().Good
	bounded, cancel := context.WithTimeout(ctx, copyTime)
	defer cancel()
	err := k.copyOne(bounded, m)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		k.cfg.Log.Error("copying the snapshot of etcd failed", "to", k.cfg.Copies.String(), "error", err.Error())
		k.note(func(s *State) { s.CopyFailed, s.CopyFailedAt = err, k.cfg.Now() })
		return
	}
	k.note(func(s *State) { s.Copied, s.CopiedAt, s.CopyFailed = m.Name, m.At, nil })
	k.cfg.Log.Info("snapshot of etcd copied and read back", "file", m.Name, "to", k.cfg.Copies.String())
	if err := k.pruneCopies(bounded, m); err != nil {
		k.cfg.Log.Error("old copies of snapshots stay", "in", k.cfg.Copies.String(), "error", err.Error())
	}
}

func (k *Keeper) copyOne(ctx context.Context, m Manifest) error {
	for _, name := range []string{m.Name + ManifestEnd, m.Name} {
		in, err := os.Open(filepath.Join(k.cfg.Dir, name))
		if err != nil {
			return err
		}
		info, err := in.Stat()
		if err == nil {
			err = k.cfg.Copies.Put(ctx, files.File{Name: name, Cluster: m.Cluster, At: m.At, Size: info.Size()}, in)
		}
		if err := errors.Join(err, in.Close()); err != nil {
			return err
		}
	}
	out, err := k.cfg.Copies.Open(ctx, files.File{Name: m.Name, Cluster: m.Cluster, At: m.At, Size: m.FileSize})
	if err != nil {
		return err
	}
	defer out.Close()
	h := sha256.New()
	if _, err := io.Copy(h, out); err != nil {
		return fmt.Errorf("reading the copy of %s: %w", m.Name, err)
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != m.FileSHA256 {
		return fmt.Errorf("reading the copy of %s: its SHA-256 is %s, not %s", m.Name, sum, m.FileSHA256)
	}
	return nil
}

func (k *Keeper) pruneCopies(ctx context.Context, m Manifest) error {
	all, err := k.cfg.Copies.List(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, f := range Surplus(all, k.cfg.Cluster, []string{m.Name, k.State().Checked}, k.cfg.Plan, k.cfg.Now()) {
		failed = append(failed, k.cfg.Copies.Remove(ctx, f))
		f.Name += ManifestEnd
		failed = append(failed, k.cfg.Copies.Remove(ctx, f))
	}
	return errors.Join(failed...)
}

// counted counts what is hashed.
type counted struct {
	hash.Hash
	n int64
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Hash.Write(b)
	c.n += int64(n)
	return n, err
}
