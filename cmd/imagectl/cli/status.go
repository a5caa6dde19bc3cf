package cli

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newStatus(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Say how far the cluster is and what it waits for",
		Example: "  imagectl status\n  imagectl status -o json",
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
			s := resp.Msg
			if f == formatJSON {
				return printMessage(g.stdio.Out, s)
			}
			w := g.stdio.Out
			fmt.Fprintf(w, "cluster %s: %s\n\n", s.GetCluster(), text(s.GetSummary()))
			if err := printMachines(w, time.Now(), s.GetMachines()); err != nil {
				return err
			}
			fmt.Fprintf(w, "\netcd: %s", s.GetEtcd().GetSummary())
			for _, n := range s.GetNotes() {
				fmt.Fprintf(w, "\nnote: %s", text(n))
			}
			fmt.Fprintf(w, "\nserver %s at %s, up since %s\n", s.GetServerVersion(), r.Server, s.GetSince().AsTime().Local().Format(time.DateTime))
			return nil
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

// indent moves a text two columns to the right.
func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + line)
	}
	return b.String()
}
