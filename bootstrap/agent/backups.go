package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"google.golang.org/protobuf/proto"
)

// backupsPath holds copies of the server's backups, backupsIndex what the server signed of
// each, newest first: what is not in the index is not there.
const (
	backupsPath  = StateDir + "/backups"
	backupsIndex = backupsPath + "/index.json"
)

// backupRetry is how long after a failure the next attempt is.
const backupRetry = time.Minute

// copies are the backups that this node keeps; node.mu guards them.
type copies struct {
	have []files.Copy
	// want is the newest that the server has told of; nil for none.
	want *api.BackupCopy
	// problem is why it is not here; empty when it is.
	problem string
}

func (c copies) names() []string {
	var out []string
	for _, each := range c.have {
		out = append(out, each.Name)
	}
	return out
}

// loadBackups reads which copies are there.
func (n *node) loadBackups() error {
	b, err := n.Host.ReadFile(backupsIndex)
	if notExist(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading which backups are kept: %w", err)
	}
	var have []files.Copy
	if err := json.Unmarshal(b, &have); err != nil {
		n.Log.Error("the copies of the server's backups are forgotten: their index cannot be read", "file", backupsIndex, "err", err)
		return nil
	}
	n.copies.have = slices.DeleteFunc(have, func(c files.Copy) bool {
		_, ok := files.Named(c.Name, c.Size)
		found, err := n.Host.Exists(backupsPath + "/" + c.Name)
		return !ok || !found || err != nil
	})
	return nil
}

// wantBackup notes which backup the server has told of. To be told of the same again, with
// each answer, is no reason to fetch it again at once.
func (n *node) wantBackup(c *api.BackupCopy) {
	if c == nil {
		return
	}
	n.mu.Lock()
	news := !proto.Equal(n.copies.want, c)
	n.copies.want = c
	n.mu.Unlock()
	if news {
		poke(n.backup)
	}
}

// keepBackups fetches each backup that the server tells of, until ctx ends.
func (n *node) keepBackups(ctx context.Context) {
	for ctx.Err() == nil {
		err := n.takeBackup(ctx)
		if ctx.Err() != nil {
			return
		}
		problem, again := "", (<-chan time.Time)(nil)
		var timer *time.Timer
		if err != nil {
			n.Log.Warn("no copy of the newest backup", "err", err)
			problem, timer = err.Error(), time.NewTimer(backupRetry)
			again = timer.C
		}
		n.mu.Lock()
		changed := n.copies.problem != problem
		n.copies.problem = problem
		n.mu.Unlock()
		if changed {
			poke(n.changed)
		}
		select {
		case <-ctx.Done():
		case <-n.backup:
		case <-again:
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// takeBackup brings what is kept in line with what the server has told.
func (n *node) takeBackup(ctx context.Context) error {
	n.mu.Lock()
	want, have := n.copies.want, n.copies.have
	n.mu.Unlock()
	if want == nil {
		return nil
	}
	c := files.Copy{Name: want.GetName(), Size: int64(want.GetSize()), SHA256: want.GetSha256(), Signature: want.GetSignature()}
	if slices.ContainsFunc(have, func(h files.Copy) bool { return h.Name == c.Name && h.SHA256 == c.SHA256 }) {
		return nil
	}
	f, err := c.Check(n.authority.roots(), n.Config.Cluster)
	if err != nil {
		return err
	}
	if err := n.Host.MkdirAll(backupsPath, 0o700); err != nil {
		return fmt.Errorf("keeping a backup: %w", err)
	}
	dir := n.Host.Path(backupsPath)
	keep := min(max(int(want.GetKeep()), 1), files.MaxCopies)
	if _, err := files.Save(dir, c.Name, func(w io.Writer) error { return n.fetchBackup(ctx, c, w) }, c.CheckContent); err != nil {
		return err
	}
	next := append([]files.Copy{c}, slices.DeleteFunc(slices.Clone(have), func(h files.Copy) bool { return h.Name == c.Name })...)
	// What came last is the newest: a server that was restored may be behind.
	next = next[:min(keep, len(next))]
	b, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return err
	}
	if err := n.Host.WriteFile(backupsIndex, b, 0o600); err != nil {
		return err
	}
	n.mu.Lock()
	n.copies.have = next
	n.mu.Unlock()
	poke(n.changed)
	n.Log.Info("keeping a copy of the server's backup", "file", f.Name, "bytes", c.Size)
	return n.dropBackups(next)
}

// dropBackups removes the files that are not among those that are kept.
func (n *node) dropBackups(keep []files.Copy) error {
	all, err := files.List(n.Host.Path(backupsPath))
	if err != nil {
		return err
	}
	for _, f := range all {
		if slices.ContainsFunc(keep, func(c files.Copy) bool { return c.Name == f.Name }) {
			continue
		}
		if err := n.Host.Remove(backupsPath + "/" + f.Name); err != nil {
			return fmt.Errorf("removing an old backup: %w", err)
		}
	}
	return nil
}

func (n *node) fetchBackup(ctx context.Context, c files.Copy, w io.Writer) error {
	stream, err := n.servers.current().agent.FetchBackup(ctx, connect.NewRequest(&api.FetchBackupRequest{Name: c.Name}))
	if err != nil {
		return fmt.Errorf("fetching %s: %w", c.Name, err)
	}
	defer stream.Close()
	for left := c.Size; stream.Receive(); {
		b := stream.Msg().GetChunk()
		if left -= int64(len(b)); left < 0 {
			return fmt.Errorf("fetching %s: more comes than its %d bytes", c.Name, c.Size)
		}
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("keeping %s: %w", c.Name, err)
		}
	}
	if err := stream.Err(); err != nil {
		return fmt.Errorf("fetching %s: %w", c.Name, err)
	}
	return nil
}

// Backup implements nodeapi.Node.
func (n *node) Backup(name string) (files.Copy, io.ReadCloser, error) {
	n.mu.Lock()
	have := n.copies.have
	n.mu.Unlock()
	i := slices.IndexFunc(have, func(c files.Copy) bool { return name == "" || c.Name == name })
	switch {
	case len(have) == 0:
		return files.Copy{}, nil, errors.New("this node keeps no backup; control planes do, where backup.nodes in cluster.yaml says so")
	case i < 0:
		return files.Copy{}, nil, fmt.Errorf("this node does not keep %q", name)
	}
	in, err := n.Host.Open(backupsPath + "/" + have[i].Name)
	if errors.Is(err, os.ErrNotExist) {
		return files.Copy{}, nil, fmt.Errorf("%s was removed this moment; ask again", have[i].Name)
	}
	return have[i], in, err
}
