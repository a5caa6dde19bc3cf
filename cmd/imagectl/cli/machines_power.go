package cli

import (
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// powerVerbs are what a BMC can be asked for, in the order of the help.
func powerVerbs() []string { return []string{"status", "on", "off", "shutdown", "cycle", "reset"} }

func newMachinesPower(g *globals) *cobra.Command {
	var f format
	var s selection
	var force bool
	cmd := &cobra.Command{
		Use:   "power " + strings.Join(powerVerbs(), "|") + " NAME... | --all",
		Short: "Ask machines' BMCs about their power, or switch it",
		Long: "Ask machines' BMCs about their power, or switch it. The server does it: BMCs need\n" +
			"not be reachable from here.\n\n" +
			"  status    on or off\n" +
			"  on        switch it on, and wait until it is\n" +
			"  off       take the power away, and wait until it is off\n" +
			"  shutdown  ask the operating system to switch off; does not wait\n" +
			"  cycle     off, then on\n" +
			"  reset     restart a machine that is on without taking its power away",
		Example:   "  imagectl machines power status --all\n  imagectl machines power cycle w1",
		ValidArgs: powerVerbs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || !slices.Contains(powerVerbs(), args[0]) {
				return usageError{fmt.Errorf("say what to do: %s", strings.Join(powerVerbs(), ", "))}
			}
			action := api.PowerMachineRequest_Action(api.PowerMachineRequest_Action_value["ACTION_"+strings.ToUpper(args[0])])
			return g.change(f, s, args[1:], func(r *remote, sel *api.Selection) ([]*api.Outcome, error) {
				resp, err := r.operator().PowerMachine(cmd.Context(), connect.NewRequest(&api.PowerMachineRequest{Selection: sel, Action: action, Force: force}))
				if err != nil {
					return nil, err
				}
				return resp.Msg.GetOutcomes(), nil
			})
		},
	}
	formatFlag(cmd, &f)
	s.flag(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "also a machine that is writing its disk")
	return cmd
}
