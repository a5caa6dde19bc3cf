package cli

import (
	"errors"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newEtcdRestore(g *globals) *cobra.Command {
	var f format
	var lost []string
	var reason string
	cmd := &cobra.Command{
		Use:   "restore NAME --lost NAME,...",
		Short: "Have etcd go on with one voter, when too many others are lost with their disks",
		Long: "Have etcd go on with one voter, when so many others are lost with their disks that it has\n" +
			"no quorum any more. What that voter had not heard of is lost. All other voters are named\n" +
			"with --lost: make sure that none of them starts again with its old disk. They come back as\n" +
			"empty machines, one after the other.",
		Example: `  imagectl etcd restore cp1 --lost cp2,cp3 --reason "fire in rack 7"
  imagectl machines arm cp2 cp3 --reinstall`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := needNames(cmd, args); err != nil {
				return err
			}
			if len(args) != 1 || len(lost) == 0 {
				return usageError{errors.New("say which one voter is left, and with --lost which are not")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().RestoreEtcd(cmd.Context(), connect.NewRequest(&api.RestoreEtcdRequest{Machine: args[0], Lost: lost, Reason: reason}))
			if err != nil {
				return r.explain(err)
			}
			return g.outcomes(f, []*api.Outcome{resp.Msg.GetOutcome()})
		},
	}
	formatFlag(cmd, &f)
	cmd.Flags().StringSliceVar(&lost, "lost", nil, "all other voters")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	return cmd
}
