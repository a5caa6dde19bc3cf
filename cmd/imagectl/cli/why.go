package cli

import (
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newWhy(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:     "why MAC|NAME",
		Short:   "Explain what a machine gets when it netboots, and why",
		Example: "  imagectl why 52:54:00:12:34:56\n  imagectl why cp1 -o json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("give one MAC address or machine name; see %s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().Why(cmd.Context(), connect.NewRequest(&api.WhyRequest{Machine: args[0]}))
			if err != nil {
				return r.explain(err)
			}
			if f == formatJSON {
				return printMessage(g.stdio.Out, resp.Msg)
			}
			return printWhy(g.stdio.Out, args[0], resp.Msg)
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

func printWhy(w io.Writer, asked string, a *api.WhyResponse) error {
	name := a.GetMachine()
	if name == "" {
		name = asked
	}
	state := a.GetState()
	if state == "" {
		state = "unknown"
	}
	fmt.Fprintf(w, "%s (%s): %s (%s)\n  %s\n", name, state, a.GetAnswer(), a.GetReasonCode(), text(a.GetReason()))
	if len(a.GetEvents()) > 0 {
		fmt.Fprintln(w, "\nseen on the boot path:")
		for _, e := range a.GetEvents() {
			fmt.Fprintf(w, "  %s  %-8s  %s\n", e.GetAt().AsTime().Local().Format(time.DateTime), text(e.GetStage()), text(e.GetDetail()))
		}
	}
	if a.GetScript() != "" {
		fmt.Fprintf(w, "\niPXE script:\n%s", indent(text(a.GetScript())))
	}
	return nil
}
