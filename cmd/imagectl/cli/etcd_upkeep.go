package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/backup/etcdsnap"
)

// atNode is where a node's API is at an address.
func atNode(address string) string { return net.JoinHostPort(address, nodePort) }

// etcdView asks the server.
func (g *globals) etcdView(ctx context.Context) (*api.EtcdView, *remote, error) {
	r, err := g.dial()
	if err != nil {
		return nil, nil, err
	}
	resp, err := r.operator().Status(ctx, connect.NewRequest(&api.StatusRequest{}))
	if err != nil {
		return nil, nil, r.explain(err)
	}
	return resp.Msg.GetEtcd(), r, nil
}

func newEtcdStatus(g *globals) *cobra.Command {
	var f format
	var node string
	var o reach
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how large etcd's databases are, who leads, and what is done about them",
		Long: "Say how large etcd's databases are, who leads, and what is done about them: as the members\n" +
			"last told the server, or with --node as one node finds them now. With --address the\n" +
			"server need not run; with --via server there need not be a way to the node.",
		Example: "  imagectl etcd status\n  imagectl etcd status --node cp1 --address 10.0.0.11",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			if node != "" || o.address != "" || cmd.Flags().Changed("via") {
				return g.etcdStatusOf(cmd.Context(), f, node, o)
			}
			v, _, err := g.etcdView(cmd.Context())
			if err != nil {
				return err
			}
			if f == formatJSON {
				return printMessage(g.stdio.Out, v)
			}
			var rows [][]string
			for _, m := range v.GetMembers() {
				rows = append(rows, []string{m.GetName(), kindOf(m.GetLearner(), m.GetLeader()), mebibytes(m.GetUsed()), mebibytes(m.GetSize()), mebibytes(m.GetQuota()), m.GetUpkeep()})
			}
			if err := table(g.stdio.Out, []string{"MEMBER", "KIND", "IN USE", "SIZE", "QUOTA", "LAST UPKEEP"}, rows); err != nil {
				return err
			}
			fmt.Fprintln(g.stdio.Out, text(v.GetSummary()))
			return printSentences(g.stdio.Out, v)
		},
	}
	formatFlag(cmd, &f)
	cmd.Flags().StringVar(&node, "node", "", "ask this node")
	o.flags(cmd)
	return cmd
}

func kindOf(learner, leader bool) string {
	switch {
	case learner:
		return "learner"
	case leader:
		return "leader"
	}
	return "voter"
}

func mebibytes(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d MiB", (n+1<<19)>>20)
}

func printSentences(w io.Writer, v *api.EtcdView) error {
	for _, s := range v.GetAlarms() {
		fmt.Fprintln(w, "alarm: "+text(s))
	}
	for _, s := range v.GetWarnings() {
		fmt.Fprintln(w, "warning: "+text(s))
	}
	return nil
}

func (g *globals) etcdStatusOf(ctx context.Context, f format, name string, o reach) error {
	if name == "" {
		return usageError{errors.New("--address and --via are about a node; say which with --node")}
	}
	r, err := g.dial()
	if err != nil {
		return err
	}
	n, err := o.find(ctx, r, name)
	if err != nil {
		return err
	}
	resp, err := n.EtcdStatus(ctx, connect.NewRequest(&api.EtcdStatusRequest{}))
	if err != nil {
		return n.explain("asking the etcd", err)
	}
	if f == formatJSON {
		return printMessages(g.stdio.Out, resp.Msg.GetMembers())
	}
	var rows [][]string
	for _, m := range resp.Msg.GetMembers() {
		health := "well"
		switch {
		case !m.GetAnswers():
			health = "does not answer"
		case !m.GetFollows():
			health = "has no leader, or is busy"
		}
		rows = append(rows, []string{m.GetName(), kindOf(m.GetLearner(), m.GetLeader()), health, mebibytes(m.GetUsed()), mebibytes(m.GetSize()), mebibytes(m.GetQuota()), strings.Join(m.GetAlarms(), " ")})
	}
	return table(g.stdio.Out, []string{"MEMBER", "KIND", "HEALTH", "IN USE", "SIZE", "QUOTA", "ALARMS"}, rows)
}

func newEtcdAlarms(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "alarms",
		Short: "Say what etcd has raised, and what to do; exit code 1 if there is anything",
		Long: "Say what etcd has raised, and what to do. NOSPACE is taken back by itself when\n" +
			"compacting and defragmenting have made room, and only then.",
		Example: "  imagectl etcd alarms",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			v, _, err := g.etcdView(cmd.Context())
			if err != nil {
				return err
			}
			if f == formatJSON {
				err = printMessage(g.stdio.Out, &api.EtcdView{Alarms: v.GetAlarms(), Warnings: v.GetWarnings()})
			} else {
				err = printSentences(g.stdio.Out, v)
				if len(v.GetAlarms())+len(v.GetWarnings()) == 0 {
					fmt.Fprintln(g.stdio.Out, "none")
				}
			}
			if err == nil && len(v.GetAlarms()) > 0 {
				err = reportedError{fmt.Errorf("etcd has raised %d alarms", len(v.GetAlarms()))}
			}
			return err
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

func newEtcdDefrag(g *globals) *cobra.Command {
	var f format
	var s selection
	cmd := &cobra.Command{
		Use:   "defrag NAME... | --all",
		Short: "Have etcd's databases defragmented, one member at a time, the leader last",
		Long: "Have etcd's databases defragmented, whether or not that is worth it: one member at a time,\n" +
			"the leader last, and none while another is not well. A member answers nobody\n" +
			"meanwhile. What is mostly empty is defragmented without this.",
		Example: "  imagectl etcd defrag --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.change(f, s, args, func(r *remote, sel *api.Selection) ([]*api.Outcome, error) {
				resp, err := r.operator().DefragmentEtcd(cmd.Context(), connect.NewRequest(&api.DefragmentEtcdRequest{Selection: sel}))
				if err != nil {
					return nil, err
				}
				return resp.Msg.GetOutcomes(), nil
			})
		},
	}
	formatFlag(cmd, &f)
	s.flag(cmd)
	return cmd
}

func newEtcdSnapshot(g *globals) *cobra.Command {
	var node string
	var o reach
	cmd := &cobra.Command{
		Use:   "snapshot FILE",
		Short: "Save etcd's database to a file, and check it",
		Long: "Save the database of one of etcd's members to a file that does not exist yet, as\n" +
			"\"etcdctl snapshot save\" does, and check it by the digest at its end. It has every\n" +
			"Secret of the cluster, as readable as in etcd. It takes the role admin, and the node's own\n" +
			"audit log has who took it. It comes from the node itself, or where that does not answer from\n" +
			"here through the server. With --node and --address the server need not run.",
		Example: "  imagectl etcd snapshot etcd.db\n  imagectl etcd snapshot etcd.db --node cp1 --address 10.0.0.11",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("say which file to write; see %s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if node == "" && o.address != "" {
				return usageError{errors.New("--address is a node's; say which with --node")}
			}
			r, err := g.dial()
			if err != nil {
				return err
			}
			if node == "" {
				if node, err = r.snapshotNode(ctx); err != nil {
					return err
				}
			}
			n, err := o.find(ctx, r, node)
			if err != nil {
				return err
			}
			stream, err := n.EtcdSnapshot(ctx, connect.NewRequest(&api.EtcdSnapshotRequest{}))
			if err != nil {
				return n.explain("taking a snapshot", err)
			}
			defer stream.Close()
			size, err := saveSnapshot(args[0], func() ([]byte, error) {
				if stream.Receive() {
					return stream.Msg().GetChunk(), nil
				}
				if err := stream.Err(); err != nil {
					return nil, err
				}
				return nil, io.EOF
			})
			if err != nil {
				return n.explain("taking a snapshot", err)
			}
			fmt.Fprintf(g.stdio.Out, "%s: %d MiB of etcd from %s, and its digest fits\n", args[0], (size+1<<19)>>20, node)
			return nil
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "whose member (default: one that is well and does not lead)")
	o.flags(cmd)
	return cmd
}

// snapshotNode is a member that is well, and best none that leads.
func (r *remote) snapshotNode(ctx context.Context) (string, error) {
	resp, err := r.operator().Status(ctx, connect.NewRequest(&api.StatusRequest{}))
	if err != nil {
		return "", r.explain(err)
	}
	best := ""
	for _, m := range resp.Msg.GetEtcd().GetMembers() {
		if m.GetHealthy() && !m.GetLearner() && (best == "" || !m.GetLeader()) {
			best = m.GetName()
		}
	}
	if best == "" {
		return "", errors.New("no member of etcd has lately said that it is well; say whose to take: --node")
	}
	return best, nil
}

// saveSnapshot writes what next returns, until io.EOF, to a new file, and checks it. A file of that
// name is there only if it is whole.
func saveSnapshot(path string, next func() ([]byte, error)) (size int64, err error) {
	if _, err := os.Lstat(path); err == nil {
		return 0, fmt.Errorf("%s is there already", path)
	}
	part, err := os.OpenFile(path+".part", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(part.Name())
		}
	}()
	defer part.Close()
	check := etcdsnap.NewTrailer()
	for {
		chunk, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
		if _, err := part.Write(chunk); err != nil {
			return 0, err
		}
		_, _ = check.Write(chunk)
	}
	size = check.Size()
	if !check.Whole() {
		return 0, fmt.Errorf("the %d bytes that came are not whole: the digest at their end does not fit", size)
	}
	if err := errors.Join(part.Sync(), part.Close()); err != nil {
		return 0, err
	}
	if err := os.Link(part.Name(), path); err != nil { // never over a file that came meanwhile
		return 0, err
	}
	if err := os.Remove(part.Name()); err != nil {
		return 0, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	return size, dir.Sync()
}
