package cli

import (
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// nodePort is bootstrapd's.
const nodePort = "50500"

func newLogs(g *globals) *cobra.Command {
	var f format
	var unit string
	var o reach
	var follow bool
	var since time.Duration
	var lines uint32
	cmd := &cobra.Command{
		Use:   "logs NODE",
		Short: "Read a node's journal",
		Long: "Read a node's journal from the node itself, over mutual TLS, or where it does not\n" +
			"answer from here through the server. With --address the server need not run.",
		Example: "  imagectl logs w1 --unit kubelet.service --follow",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("give one machine's name; see %s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			n, err := o.find(ctx, r, args[0])
			if err != nil {
				return err
			}
			req := &api.LogsRequest{Unit: unit, Follow: follow, Lines: lines}
			if since > 0 {
				req.Since = timestamppb.New(time.Now().Add(-since))
			}
			lines, err := n.Logs(ctx, connect.NewRequest(req))
			return stream(ctx, n, "reading the journal", lines, err, func(l *api.LogsResponse) error {
				if f == formatJSON {
					return printLine(g.stdio.Out, l)
				}
				_, err := fmt.Fprintf(g.stdio.Out, "%s %s: %s\n", l.GetAt().AsTime().Local().Format(time.DateTime), text(l.GetUnit()), text(l.GetLine()))
				return err
			})
		},
	}
	formatFlag(cmd, &f)
	cmd.Flags().StringVar(&unit, "unit", "", "systemd unit (default the whole journal)")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on as lines come")
	cmd.Flags().DurationVar(&since, "since", 0, "how far back, such as 10m")
	cmd.Flags().Uint32Var(&lines, "lines", 0, "last N lines (default 100)")
	o.flags(cmd)
	return cmd
}
