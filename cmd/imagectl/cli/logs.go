package cli

import (
	"errors"
	"fmt"
	"net"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// nodePort is bootstrapd's.
const nodePort = "50500"

func newLogs(g *globals) *cobra.Command {
	var f format
	var unit, address string
	var follow bool
	var since time.Duration
	var lines uint32
	cmd := &cobra.Command{
		Use:   "logs NODE",
		Short: "Read a node's journal",
		Long: "Read a node's journal from the node itself, over mutual TLS. The server only tells\n" +
			"the node's address; with --address it need not run.",
		Example: "  imagectl logs w1 --unit kubelet.service --follow",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("give one machine's name; see %s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := dial()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if address == "" {
				resp, err := r.operator().ListMachines(ctx, connect.NewRequest(&api.ListMachinesRequest{}))
				if err != nil {
					return r.explain(err)
				}
				for _, m := range resp.Msg.GetMachines() {
					if m.GetName() == args[0] {
						address = m.GetAddress()
					}
				}
				if address == "" {
					return fmt.Errorf("no address of %s is known; imagectl machines ls shows the machines, --address says where one is", args[0])
				}
			}
			req := &api.LogsRequest{Unit: unit, Follow: follow, Lines: lines}
			if since > 0 {
				req.Since = timestamppb.New(time.Now().Add(-since))
			}
			at := net.JoinHostPort(address, nodePort)
			stream, err := r.node(args[0], at).Logs(ctx, connect.NewRequest(req))
			if err != nil {
				return fmt.Errorf("asking %s at %s: %w", args[0], at, err)
			}
			defer stream.Close()
			for stream.Receive() {
				l := stream.Msg()
				if f == formatJSON {
					b, err := protojson.Marshal(l)
					if err != nil {
						return fmt.Errorf("writing JSON: %w", err)
					}
					fmt.Fprintf(g.stdio.Out, "%s\n", b)
					continue
				}
				fmt.Fprintf(g.stdio.Out, "%s %s: %s\n", l.GetAt().AsTime().Local().Format(time.DateTime), text(l.GetUnit()), text(l.GetLine()))
			}
			if err := stream.Err(); err != nil && ctx.Err() == nil {
				var ce *connect.Error
				if errors.As(err, &ce) && ce.Code() == connect.CodeUnavailable {
					return fmt.Errorf("%s does not answer at %s (%s); it answers once it runs from its own disk", args[0], at, ce.Message())
				}
				return fmt.Errorf("reading the journal of %s: %w", args[0], err)
			}
			return nil
		},
	}
	formatFlag(cmd, &f)
	cmd.Flags().StringVar(&unit, "unit", "", "systemd unit (default the whole journal)")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on as lines come")
	cmd.Flags().DurationVar(&since, "since", 0, "how far back, such as 10m")
	cmd.Flags().Uint32Var(&lines, "lines", 0, "last N lines (default 100)")
	cmd.Flags().StringVar(&address, "address", "", "the node's address (default: ask the server)")
	return cmd
}
