package cli

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newMachinesRetire(g *globals) *cobra.Command {
	var f format
	var reason string
	var d drainFlags
	cmd := &cobra.Command{
		Use:   "retire NAME...",
		Short: "Remove a machine for good: its certificates are refused everywhere",
		Long: "Remove a machine for good. Its key is never accepted again; its certificates are\n" +
			"refused by the server at once, by nodes and etcd with their next call to the\n" +
			"server. A machine that works is drained first: its pods leave by the eviction\n" +
			"API, which keeps to PodDisruptionBudgets, for as long as --drain-timeout. When that is not\n" +
			"enough nothing is retired; one that is dead already takes --no-drain. Then a\n" +
			"control plane removes its node from Kubernetes. The command says what is left to\n" +
			"do. The control plane that holds the only copy of etcd's data is not retired.",
		Example: `  imagectl machines retire w3 --reason "mainboard died"`,
		Args:    needNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.change(f, selection{}, args, func(r *remote, sel *api.Selection) ([]*api.Outcome, error) {
				if err := d.drain(cmd.Context(), g, r, args); err != nil {
					return nil, err
				}
				resp, err := r.operator().RetireMachine(cmd.Context(), connect.NewRequest(&api.RetireMachineRequest{Selection: sel, Reason: reason}))
				if err != nil {
					return nil, err
				}
				return resp.Msg.GetOutcomes(), nil
			})
		},
	}
	formatFlag(cmd, &f)
	d.flags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log and for whoever is refused")
	return cmd
}

// needNames refuses an empty list.
func needNames(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{fmt.Errorf("say which; see %s --help", cmd.CommandPath())}
	}
	return nil
}
