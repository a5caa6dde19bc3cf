package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newMachinesReplace(g *globals) *cobra.Command {
	var f format
	var req api.ReplaceMachineRequest
	var noWait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "replace NAME",
		Short: "Give a machine's name to other hardware",
		Long: "Give a machine's name to other hardware: the old key and its certificates are\n" +
			"refused from now on, and the machine is as one that was never installed. With --arm\n" +
			"the new hardware is armed in the same step; with --provision its BMC starts it from\n" +
			"the network too, and the command waits until its disk is written, as \"machines\n" +
			"provision\" does. What cannot be done leaves everything as it was. That this is the\n" +
			"hardware is still a person's word: its code is compared as ever. With the code that it\n" +
			"shows already, its key is approved in the same step.\n\n" +
			"Where cluster.yaml names the machine by its MAC address, UUID or serial number, those\n" +
			"of the new hardware are put there first, and imagectl serve is restarted. Where a\n" +
			"selector names it (a switch port, a pattern), or only the mainboard was changed and\n" +
			"the network card stays, this command is all. A retired machine's name can be given\n" +
			"away too.",
		Example: `  imagectl machines replace w3 --provision --reason "mainboard died"
  imagectl machines replace w3 --arm
  imagectl machines replace w3 --code 7K3M-0QZD-9X2V`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("say which machine; see %s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if noWait && !req.Netboot {
				return usageError{errors.New("--no-wait goes with --provision; nothing else waits")}
			}
			r, err := g.dial()
			if err != nil {
				return err
			}
			req.Machine = args[0]
			// As approve takes it.
			req.Code = strings.TrimPrefix(req.GetCode(), args[0]+"=")
			resp, err := r.operator().ReplaceMachine(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return r.explain(err)
			}
			o := resp.Msg.GetOutcome()
			if err := g.outcomes(f, []*api.Outcome{o}); err != nil || !req.GetNetboot() || noWait {
				return err
			}
			return g.waitProvisioned(cmd.Context(), r, map[string]bool{o.GetMachine(): true}, timeout, "imagectl machines provision "+o.GetMachine()+" waits on")
		},
	}
	formatFlag(cmd, &f)
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, for the audit log and for whoever is refused")
	cmd.Flags().StringVar(&req.Code, "code", "", "the code that the new hardware's console shows, if it waits already")
	cmd.Flags().BoolVar(&req.Arm, "arm", false, "arm the new hardware too: its next netboot may write its disk, once")
	cmd.Flags().BoolVar(&req.Netboot, "provision", false, "arm it, have its BMC start it from the network, and wait")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "with --provision: return when it is armed")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Hour, "with --provision: how long to wait")
	return cmd
}
