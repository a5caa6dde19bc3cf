package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
)

// Place is somewhere else that keeps copies of the backups in the directory. What has a
// name there is whole.
type Place interface {
	fmt.Stringer
	// List returns the backups there, of any cluster, newest first.
	List(ctx context.Context) ([]files.File, error)
	Put(ctx context.Context, f files.File, r io.Reader) error
	Open(ctx context.Context, f files.File) (io.ReadCloser, error)
	Remove(ctx context.Context, f files.File) error
}

const (
	// copyRetry is how long after a failed copy the next attempt is.
	copyRetry = 5 * time.Minute
	// copyTime bounds one copy, with what is read back.
	copyTime = 30 * time.Minute
)

// copy brings the newest good backup to the other place, unless it is there.
func (k *Keeper) copy(ctx context.Context) {
	if k.cfg.Copies == nil {
		return
	}
	k.copying.Lock()
	defer k.copying.Unlock()
	s := k.State()
	if s.Good.Name == "" || s.Good.Name == s.Copy.Good.Name {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, copyTime)
	defer cancel()
	err := k.copyOne(bounded, s.Good)
	if ctx.Err() != nil {
		return
	}
	k.noteCopy(s.Good, err)
	if err != nil {
		k.cfg.Log.Error("copying the backup failed", "to", k.cfg.Copies.String(), "error", err.Error())
		return
	}
	k.cfg.Log.Info("backup copied and read back", "file", s.Good.Name, "to", k.cfg.Copies.String())
	if err := k.pruneCopies(bounded, s.Good); err != nil {
		k.cfg.Log.Error("old copies of backups stay", "in", k.cfg.Copies.String(), "error", err.Error())
	}
}

func (k *Keeper) copyOne(ctx context.Context, f files.File) error {
	all, err := k.cfg.Copies.List(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(o files.File) bool { return o.Name == f.Name && o.Size == f.Size }) {
		in, err := os.Open(filepath.Join(k.cfg.Dir, f.Name))
		if err != nil {
			return err
		}
		defer in.Close()
		if err := k.cfg.Copies.Put(ctx, f, in); err != nil {
			return err
		}
	}
	out, err := k.cfg.Copies.Open(ctx, f)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := k.check(out); err != nil {
		return fmt.Errorf("reading the copy of %s: %w", f.Name, err)
	}
	return nil
}

// pruneCopies keeps as many as the directory has.
func (k *Keeper) pruneCopies(ctx context.Context, saved files.File) error {
	all, err := k.cfg.Copies.List(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, f := range files.Surplus(all, saved, k.cfg.Keep) {
		failed = append(failed, k.cfg.Copies.Remove(ctx, f))
	}
	return errors.Join(failed...)
}

func (k *Keeper) noteCopy(good files.File, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last.Copy.At, k.last.Copy.Failed = k.cfg.Now(), err
	if err == nil {
		k.last.Copy.Good = good
	}
}

// CopyState is how it stands with the copies.
type CopyState struct {
	// Place names where they go; empty for nowhere.
	Place string
	// Good is the newest that was read back to its end since the start; Failed is why the
	// newest attempt failed, At when.
	Good   files.File
	Failed error
	At     time.Time
}

// due is how long until the next attempt; false when there is nothing to copy.
func (s CopyState) due(newest files.File, now time.Time) (time.Duration, bool) {
	if s.Place == "" || newest.Name == "" || newest.Name == s.Good.Name {
		return 0, false
	}
	if s.Failed == nil {
		return 0, true
	}
	return min(max(s.At.Add(copyRetry).Sub(now), 0), copyRetry), true
}

// Fetch brings a backup of a place into a directory of this machine and returns its path:
// the newest, or the one of that name.
func Fetch(ctx context.Context, from Place, name, dir string) (string, error) {
	all, err := from.List(ctx)
	if err != nil {
		return "", err
	}
	f, err := files.Choose(all, name, from.String())
	if err != nil {
		return "", err
	}
	in, err := from.Open(ctx, f)
	if err != nil {
		return "", err
	}
	defer in.Close()
	path := filepath.Join(dir, f.Name)
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", fmt.Errorf("fetching a backup: %w", err)
	}
	n, err := io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return "", fmt.Errorf("fetching %s of %s: %w", f.Name, from, err)
	}
	if n != f.Size {
		return "", fmt.Errorf("fetching %s of %s: got %d bytes of %d", f.Name, from, n, f.Size)
	}
	return path, nil
}
