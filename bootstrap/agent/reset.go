package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// resetPath marks that this machine is to forget etcd and Kubernetes, and holds the boot in which it
// was told.
const resetPath = StateDir + "/reset"

// starters are the files without which etcd's and kubelet's units do not start.
func starters() []string { return []string{etcd.ConfigPath, "/var/lib/kubelet/config.yaml"} }

// forgotten is all that etcd and Kubernetes have on a node, and what the agent knows of it. What
// stays: who the machine is, its logs and what it has signed, the copies of backups, the images, and
// what pods have written elsewhere.
func forgotten() []string {
	return []string{
		"/etc/etcd", etcd.DataDir, memberPath, alonePath, restoredPath, snapshotsPath, etcdTurnPath,
		"/etc/kubernetes", "/var/lib/kubelet", "/etc/cni/net.d", "/var/lib/cni",
		kubeletCA, signedDir, namedDir, startedPath, kubeadmConf, applied, encryptionLoadedPath, encryptionRewrittenPath, renewingPath,
		// A directive of before would have a server that is away start what is not there.
		RunPath,
		// Last: as long as it is there, this node has joined.
		joinedPath,
	}
}

// beginReset has this system end, so that nothing runs that holds what is to be forgotten: pods'
// mounts, containers, addresses. The next one forgets it before anything else (finishReset), and
// then joins as an empty machine does: its former member and Node object are removed by the others.
func (n *node) beginReset(ctx context.Context) error {
	n.resetting.Store(true)
	if err := n.Host.WriteFile(resetPath, []byte(n.Host.Facts().BootID+"\n"), 0o600); err != nil {
		return err
	}
	return n.endSystem(ctx)
}

// endSystem reboots, and neither etcd nor kubelet starts again.
func (n *node) endSystem(ctx context.Context) error {
	for _, f := range starters() {
		if err := n.Host.Remove(f); err != nil {
			return err
		}
	}
	return n.Host.Reboot(ctx)
}

// finishReset forgets what beginReset was to have forgotten. Killed anywhere it does it again. While
// it is rebooting there is nothing else to do.
func (n *node) finishReset(ctx context.Context) (rebooting bool, err error) {
	b, err := n.Host.ReadFile(resetPath)
	if notExist(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("reading whether this machine is to be reset: %w", err)
	}
	again := strings.TrimSpace(string(b)) == n.Host.Facts().BootID
	for _, unit := range []string{etcd.Unit, kubeadm.Unit} {
		state, err := n.Host.UnitState(ctx, unit)
		if err != nil {
			return false, err
		}
		// A step that was under way may have written its file after all.
		again = again || !slices.Contains([]string{"inactive", "failed", "unknown"}, state)
	}
	if again {
		n.resetting.Store(true)
		return true, n.endSystem(ctx)
	}
	for _, p := range append(forgotten(), resetPath) {
		if err := n.Host.Remove(p); err != nil {
			return false, fmt.Errorf("resetting this machine: %w", err)
		}
	}
	n.Log.Warn("this machine has forgotten etcd and Kubernetes, and joins as an empty one")
	return false, nil
}
