package cli

import (
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newEtcd(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "etcd",
		Short:   "Look at the cluster's etcd, tend it, and save it",
		Example: "  imagectl etcd members\n  imagectl etcd snapshot etcd.db",
		Args:    needVerb,
		RunE:    func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newEtcdMembers(g), newEtcdStatus(g), newEtcdAlarms(g), newEtcdDefrag(g), newEtcdSnapshot(g), newEtcdSnapshots(g), newEtcdCheck(g), newEtcdRestore(g))
	return cmd
}

func newEtcdMembers(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "members",
		Short: "List etcd's members, and say how many may fail",
		Long: "List etcd's members as one of them last reported them to the server, and say how\n" +
			"many of those with a vote are needed, are well and may fail.",
		Example: "  imagectl etcd members\n  imagectl etcd members -o json",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().Status(cmd.Context(), connect.NewRequest(&api.StatusRequest{}))
			if err != nil {
				return r.explain(err)
			}
			if f == formatJSON {
				return printMessage(g.stdio.Out, resp.Msg.GetEtcd())
			}
			return printMembers(g.stdio.Out, resp.Msg.GetEtcd())
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

func printMembers(w io.Writer, v *api.EtcdView) error {
	var rows [][]string
	for _, m := range v.GetMembers() {
		name, kind, health := m.GetName(), "voter", "not healthy"
		if name == "" {
			name = "(not started)"
		}
		if m.GetLearner() {
			kind = "learner"
		}
		if m.GetHealthy() {
			health = "healthy"
		}
		rows = append(rows, []string{name, kind, health, m.GetId(), m.GetPeerUrl()})
	}
	if len(rows) > 0 {
		if err := table(w, []string{"MEMBER", "KIND", "HEALTH", "ID", "PEER URL"}, rows); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w, text(v.GetSummary()))
	return err
}
