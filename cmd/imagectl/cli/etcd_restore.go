package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/backup/etcdsnap"
)

func newEtcdRestore(g *globals) *cobra.Command {
	var f format
	var o restoring
	cmd := &cobra.Command{
		Use:   "restore NAME [--lost NAME,...] [--from FILE] | NAME --cancel",
		Short: "Have etcd go on with one voter, or begin anew out of a snapshot",
		Long: "Have etcd go on with one voter, when so many others are lost with their disks that it has\n" +
			"no quorum any more. What that voter had not heard of is lost. All other voters are named\n" +
			"with --lost: make sure that none of them starts again with its old disk. They come back as\n" +
			"empty machines, one after the other.\n\n" +
			"With --from, etcd begins anew on that machine out of a file of \"imagectl etcd snapshot\": when\n" +
			"no voter's data is left, or with --give-up-data when what they have is bad. All that was\n" +
			"written since the snapshot is lost. Whoever watches Kubernetes' objects is told to list them\n" +
			"again. A machine without its disk is armed after this (imagectl machines arm NAME\n" +
			"--reinstall); when it runs, the same command again sends the file.\n\n" +
			"A file that the server has saved by schedule is encrypted: --identity names the recovery\n" +
			"key, which opens it here, and its manifest (FILE.json) has to lie beside it. With --bucket\n" +
			"both come out of the bucket of that entry of upload in cluster.yaml.\n\n" +
			"With --cancel what was asked for is called off, as long as no member was told to stop.",
		Example: `  imagectl etcd restore cp1 --lost cp2,cp3 --reason "fire in rack 7"
  imagectl machines arm cp2 cp3 --reinstall
  imagectl etcd restore cp1 --lost cp2,cp3 --from etcd.db --give-up-data --reason "namespace shop deleted"
  imagectl etcd restore cp1 --lost cp2,cp3 --from /mnt/backups/imagectl-prod-20260501T120000.000Z.etcd.age --identity recovery.key
  imagectl etcd restore cp1 --cancel --reason "power is back"`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := needNames(cmd, args); err != nil {
				return err
			}
			switch {
			case o.cancel && (len(args) != 1 || len(o.lost) > 0 || o.from != "" || o.giveUp):
				return usageError{errors.New("--cancel takes the machine and --reason, and nothing else")}
			case o.cancel:
				return nil
			case o.from == "" && (o.identity != "" || o.bucket != "" || o.unsigned):
				return usageError{errors.New("--identity, --bucket and --unsigned are about a snapshot; say which with --from")}
			case len(args) != 1 || len(o.lost) == 0 && o.from == "":
				return usageError{errors.New("say which one voter is left, and with --lost which are not")}
			case o.giveUp && o.from == "":
				return usageError{errors.New("--give-up-data gives up what etcd has for a snapshot; say which with --from")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			if o.from != "" {
				return g.restoreSnapshot(cmd.Context(), f, r, args[0], o)
			}
			resp, err := r.operator().RestoreEtcd(cmd.Context(), connect.NewRequest(&api.RestoreEtcdRequest{Machine: args[0], Lost: o.lost, Reason: o.reason, Cancel: o.cancel}))
			if err != nil {
				return r.explain(err)
			}
			return g.outcomes(f, []*api.Outcome{resp.Msg.GetOutcome()})
		},
	}
	formatFlag(cmd, &f)
	cmd.Flags().StringSliceVar(&o.lost, "lost", nil, "all other voters")
	cmd.Flags().StringVar(&o.from, "from", "", "a file of imagectl etcd snapshot")
	cmd.Flags().StringVar(&o.identity, "identity", "", "`file` with the recovery key, for a snapshot that the server has saved")
	cmd.Flags().StringVar(&o.bucket, "bucket", "", "`name` of the entry of upload whose bucket has the file")
	cmd.Flags().BoolVar(&o.unsigned, "unsigned", false, "take it without a manifest that the server has signed")
	cmd.Flags().BoolVar(&o.cancel, "cancel", false, "call off what was asked for")
	cmd.Flags().BoolVar(&o.giveUp, "give-up-data", false, "although etcd has data, which is given up for the snapshot's")
	cmd.Flags().StringVar(&o.reason, "reason", "", "why, for the audit log")
	cmd.Flags().DurationVar(&o.wait, "wait", 2*time.Minute, "how long the node may take to be ready for the file")
	o.flags(cmd)
	return cmd
}

// restoring is what a person says about a restore.
type restoring struct {
	reach
	lost         []string
	from, reason string
	giveUp       bool
	wait         time.Duration
	cancel       bool
	savedSnapshot
}

// snapshotPart is how much of a snapshot a message has, in bytes: nodes take 64 KiB.
const snapshotPart = 48 << 10

// restoreSnapshot has the server choose, and hands the file over. It may be said again at any time,
// and goes on where it is.
func (g *globals) restoreSnapshot(ctx context.Context, f format, r *remote, name string, o restoring) error {
	file, from, err := g.openSnapshot(ctx, r, o.from, o.savedSnapshot)
	if err != nil {
		return err
	}
	defer file.close()
	view, _, err := g.etcdView(ctx)
	if err != nil {
		return err
	}
	// What was chosen before takes no second person again.
	if was := view.GetRestoring(); was.GetMachine() != name || was.GetSnapshot().GetSha256() != from.GetSha256() {
		resp, err := r.operator().RestoreEtcd(ctx, connect.NewRequest(&api.RestoreEtcdRequest{Machine: name, Lost: o.lost, Reason: o.reason, Snapshot: from, GiveUpData: o.giveUp}))
		if err != nil {
			return r.explain(err)
		}
		if err := g.outcomes(f, []*api.Outcome{resp.Msg.GetOutcome()}); err != nil || !resp.Msg.GetOutcome().GetOk() {
			return err
		}
	}
	n, err := o.find(ctx, r, name)
	if err != nil {
		return err
	}
	end := time.Now().Add(o.wait)
	for {
		_, err := n.put(ctx, file, from)
		if err == nil {
			fmt.Fprintf(g.stdio.Err, "%s has the snapshot; imagectl etcd status says how far it is\n", name)
			return nil
		}
		// It has not heard of it yet, or does not run yet.
		code := connect.CodeOf(err)
		if code != connect.CodeFailedPrecondition && code != connect.CodeUnavailable || time.Now().After(end) {
			return fmt.Errorf("%w; the same command again goes on from here", n.explain("sending the snapshot", err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
}

// put sends a file to a node, unless that has it.
func (n *node) put(ctx context.Context, file *snapshotFile, from *api.EtcdSnapshot) (there bool, err error) {
	in, err := file.read()
	if err != nil {
		return false, err
	}
	s := n.PutEtcdSnapshot(ctx)
	err = s.Send(&api.PutEtcdSnapshotRequest{Sha256: from.GetSha256()})
	for b := make([]byte, snapshotPart); err == nil; {
		var k int
		if k, err = in.Read(b); k > 0 {
			err = s.Send(&api.PutEtcdSnapshotRequest{Chunk: b[:k]})
		}
	}
	// Whoever stops listening says why in the answer.
	resp, cerr := s.CloseAndReceive()
	if cerr != nil {
		return false, cerr
	}
	if !errors.Is(err, io.EOF) {
		return false, err
	}
	return resp.Msg.GetThere(), nil
}

// checkSnapshot says what a file is, and refuses one that is not whole.
func checkSnapshot(file io.Reader) (*api.EtcdSnapshot, error) {
	t, err := etcdsnap.ReadWhole(file)
	if err != nil {
		return nil, err
	}
	return &api.EtcdSnapshot{Sha256: t.SHA256(), Size: uint64(t.Size())}, nil
}
