package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
)

// snapshotsPath has the snapshot of etcd that a person has sent, named by its SHA-256; no more
// than one. It holds every Secret, and goes when etcd has begun with it.
const snapshotsPath = StateDir + "/etcd-snapshot"

func snapshotPath(sum string) string { return snapshotsPath + "/" + sum + ".db" }

// snapshotHeld is the SHA-256 of the snapshot that is wanted, if it is here.
func (n *node) snapshotHeld(run *api.Run) string {
	sum := run.GetEtcd().GetSnapshot().GetSha256()
	if ok, err := n.Host.Exists(snapshotPath(sum)); sum == "" || err != nil || !ok {
		return ""
	}
	return sum
}

// TakeEtcdSnapshot implements nodeapi.Acting.
func (n *node) TakeEtcdSnapshot(sum string) (nodeapi.Incoming, error) {
	run := n.directive()
	want := run.GetEtcd().GetSnapshot()
	if want.GetSha256() != sum || run.GetEtcd().GetAction() != api.EtcdWanted_ACTION_ALONE {
		return nil, nodeapi.ErrNotArmed
	}
	if want.GetSize() > nodeapi.SnapshotMax {
		return nil, fmt.Errorf("the server has told of %d bytes, more than %d", want.GetSize(), uint64(nodeapi.SnapshotMax))
	}
	if n.snapshotHeld(run) != "" || n.lastAlone() == run.GetEtcd().GetAlone() {
		return nil, nil
	}
	// What an attempt left that broke off, or another file before.
	if err := n.Host.Remove(snapshotsPath); err != nil {
		return nil, err
	}
	if err := n.Host.MkdirAll(snapshotsPath, 0o700); err != nil {
		return nil, err
	}
	part := snapshotPath(sum) + ".part"
	f, err := os.OpenFile(n.Host.Path(part), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &incoming{n: n, file: f, part: part, want: want, sum: sha256.New()}, nil
}

// snapshotForgotten removes a snapshot that was sent for a restore which was called off.
func (n *node) snapshotForgotten() Step {
	return Step{
		Name: "etcd-snapshot-forgotten",
		Observe: func(context.Context) (bool, string, error) {
			has, err := n.Host.Exists(snapshotsPath)
			return !has, "there is a snapshot of etcd that nobody wants any more", err
		},
		Act: func(context.Context) error { return n.Host.Remove(snapshotsPath) },
	}
}

// incoming is a snapshot that comes.
type incoming struct {
	n    *node
	file *os.File
	part string
	want *api.EtcdSnapshot
	size uint64
	sum  hash.Hash
	kept bool
}

// Write implements nodeapi.Incoming.
func (i *incoming) Write(b []byte) (int, error) {
	if i.size+uint64(len(b)) > i.want.GetSize() {
		return 0, fmt.Errorf("it has more than the %d bytes that were announced", i.want.GetSize())
	}
	m, err := i.file.Write(b)
	i.sum.Write(b[:m])
	i.size += uint64(m)
	return m, err
}

// Keep implements nodeapi.Incoming.
func (i *incoming) Keep() error {
	if i.size != i.want.GetSize() {
		return fmt.Errorf("it has %d bytes, %d were announced", i.size, i.want.GetSize())
	}
	if got := hex.EncodeToString(i.sum.Sum(nil)); got != i.want.GetSha256() {
		return fmt.Errorf("its SHA-256 is %s, %s was announced", got, i.want.GetSha256())
	}
	if err := errors.Join(i.file.Sync(), i.file.Close()); err != nil {
		return err
	}
	if err := i.n.Host.Rename(i.part, snapshotPath(i.want.GetSha256())); err != nil {
		return err
	}
	i.kept = true
	i.n.Log.Info("a snapshot of etcd is here", "sha256", i.want.GetSha256(), "bytes", i.size)
	poke(i.n.wake)
	return nil
}

// Close implements nodeapi.Incoming.
func (i *incoming) Close() error {
	if i.kept {
		return nil
	}
	_ = i.file.Close() // it goes
	return i.n.Host.Remove(i.part)
}
