package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/host"
)

const (
	// restoredPath names the last restore whose data is in etcd's directory.
	restoredPath = StateDir + "/etcd.restored"
	// restoreDir is where etcdutl makes new data, and beforeDir has the old until the new answers:
	// in etcd's own directory, so that they are in its file system.
	restoreDir, beforeDir = etcd.DataDir + "/restore", etcd.DataDir + "/before"
	memberDir             = etcd.DataDir + "/member"
	// revisionsEach is how far apart the revisions begin of an etcd and the one that takes its place:
	// more than anybody writes (1,000 a second for 31 years), and a hundredth of what JavaScript
	// counts to after 90 restores. etcd's documentation advises to add 1,000,000,000 to the
	// snapshot's (etcd.io/docs/v3.6/op-guide/recovery); the second restore of one snapshot would
	// then count what the first did.
	revisionsEach = 1_000_000_000_000
)

// bump is by how much a snapshot's revisions go up in the restores'th restore: to where its own
// begin, or above where the server has forgotten restores before.
func bump(restores, revision uint64) uint64 {
	if begin := restores * revisionsEach; revision < begin {
		return begin - revision
	}
	return revisionsEach
}

func (n *node) lastRestored() string {
	b, err := n.Host.ReadFile(restoredPath)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// etcdRestored has etcd begin anew as the only member, out of the snapshot that a person sent.
// Revisions go on far above what anybody has seen, and all below counts as compacted: so who
// watches is told so and lists again, instead of believing what was never written.
//
// etcd's file is gone while its data is changed, and with it what its unit needs to start; and that
// the data is in its place is on the disk before it is there again. So a node killed anywhere never
// restores over what the new etcd has acknowledged. The old data goes when the new answers.
func (n *node) etcdRestored(run *api.Run) Step {
	wanted := run.GetEtcd().GetAlone()
	return Step{
		Name: "etcd-restored",
		Observe: func(context.Context) (bool, string, error) {
			switch {
			case n.lastAlone() == wanted:
				return true, "", nil
			case n.lastRestored() != wanted && n.snapshotHeld(run) == "":
				return false, "", waiting("it waits for the snapshot, which imagectl etcd restore sends")
			case n.lastRestored() != wanted && !run.GetEtcd().GetBegin():
				return false, "", waiting("the snapshot is here; the other members stop first")
			}
			return false, "its etcd has not begun anew", nil
		},
		Act: func(ctx context.Context) error {
			m, err := n.restoredMember(run)
			if err != nil {
				return err
			}
			if n.lastRestored() != wanted {
				if err := n.restoreData(ctx, m, run.GetEtcd()); err != nil {
					return err
				}
			}
			conf, err := m.Config()
			if err != nil {
				return err
			}
			if err := n.write(file{etcd.ConfigPath, conf, 0o600}); err != nil {
				return err
			}
			if err := n.Host.StartUnit(ctx, etcd.Unit); err != nil {
				return err
			}
			if err := n.untilAlone(ctx); err != nil {
				return err
			}
			n.Log.Warn("etcd has begun anew out of a snapshot", "id", wanted, "sha256", run.GetEtcd().GetSnapshot().GetSha256())
			for _, p := range []string{beforeDir, restoreDir, snapshotsPath} {
				if err := n.Host.Remove(p); err != nil {
					return err
				}
			}
			return n.write(file{alonePath, []byte(wanted + "\n"), 0o600})
		},
	}
}

func (n *node) restoredMember(run *api.Run) (etcd.Member, error) {
	address, err := netip.ParseAddr(run.GetAddress())
	if err != nil {
		return etcd.Member{}, fmt.Errorf("reading this node's address: %w", err)
	}
	m := etcd.Member{Name: run.GetMachine(), Address: address, Token: run.GetEtcd().GetClusterToken(), Timing: timingOf(run)}
	m.InitialCluster = m.Alone()
	return m, nil
}

// restoreData puts the snapshot's data in the place of etcd's.
func (n *node) restoreData(ctx context.Context, m etcd.Member, want *api.EtcdWanted) error {
	path, id := snapshotPath(want.GetSnapshot().GetSha256()), want.GetAlone()
	revision, err := n.snapshotRevision(ctx, path)
	if err != nil {
		return err
	}
	if err := n.Host.StopUnit(ctx, etcd.Unit); err != nil {
		return err
	}
	// Who this member was counts no more.
	for _, p := range []string{etcd.ConfigPath, restoreDir, memberPath} {
		if err := n.Host.Remove(p); err != nil {
			return err
		}
	}
	if err := n.Host.MkdirAll(etcd.DataDir, 0o700); err != nil {
		return err
	}
	// The token makes another cluster of it: members of the old one that start after all are
	// strangers to it.
	if _, err := n.Host.Run(ctx, host.Command{Argv: []string{
		"etcdutl", "snapshot", "restore", path, "--data-dir", restoreDir,
		"--name", m.Name, "--initial-cluster", m.InitialCluster, "--initial-advertise-peer-urls", m.PeerURL(), "--initial-cluster-token", m.Token + "-" + id,
		"--bump-revision", strconv.FormatUint(bump(want.GetRestores(), revision), 10), "--mark-compacted",
	}}); err != nil {
		return err
	}
	if err := n.putAside(); err != nil {
		return err
	}
	if err := n.Host.Rename(restoreDir+"/member", memberDir); err != nil {
		return err
	}
	return n.write(file{restoredPath, []byte(id + "\n"), 0o600})
}

// putAside takes away what is in the place of etcd's data: the old is kept. When that is aside
// already, this was killed since, and what has its place is only what a snapshot gave.
func (n *node) putAside() error {
	aside, err := n.Host.Exists(beforeDir)
	if err != nil {
		return err
	}
	if aside {
		return n.Host.Remove(memberDir)
	}
	if has, err := n.Host.Exists(memberDir); err != nil || !has {
		return err
	}
	return n.Host.Rename(memberDir, beforeDir)
}

// snapshotRevision is the last revision that a snapshot has.
func (n *node) snapshotRevision(ctx context.Context, path string) (uint64, error) {
	b, err := n.Host.Run(ctx, host.Command{Argv: []string{"etcdutl", "snapshot", "status", path, "--write-out", "json"}})
	if err != nil {
		return 0, err
	}
	var s struct {
		Revision uint64 `json:"revision"`
	}
	if err := json.Unmarshal(b, &s); err != nil || s.Revision == 0 || s.Revision > math.MaxInt64-2*revisionsEach {
		return 0, fmt.Errorf("etcdutl says %.200q of the snapshot, which has no revision that could be", b)
	}
	return s.Revision, nil
}

// etcdStopped keeps etcd down on a node whose data another one's snapshot takes the place of. The
// unit does not start without its file; the data goes when the node joins.
func (n *node) etcdStopped() Step {
	return Step{
		Name: "etcd-stopped",
		Observe: func(ctx context.Context) (bool, string, error) {
			down, err := n.etcdDown(ctx)
			return down, "etcd begins anew elsewhere, and runs here", err
		},
		Act: func(ctx context.Context) error {
			if err := n.Host.Remove(etcd.ConfigPath); err != nil {
				return err
			}
			return n.Host.StopUnit(ctx, etcd.Unit)
		},
	}
}

func (n *node) etcdDown(ctx context.Context) (bool, error) {
	if there, err := n.Host.Exists(etcd.ConfigPath); err != nil || there {
		return false, err
	}
	state, err := n.Host.UnitState(ctx, etcd.Unit)
	return err == nil && (state == "inactive" || state == "failed"), err
}

// stoppedFor is EtcdWanted.stop, when it is done.
func (n *node) stoppedFor(ctx context.Context, run *api.Run) string {
	if run.GetEtcd().GetStop() == "" {
		return ""
	}
	if down, err := n.etcdDown(ctx); err != nil || !down {
		return ""
	}
	return run.GetEtcd().GetStop()
}
