package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newNodeHealth(g *globals) *cobra.Command {
	var f format
	cmd := nodeVerb{
		use: "health NODE", short: "Whether every step is done, and what should be looked at",
		long: "Whether every step of the agent is done, and what stops nothing and should be looked at: a\n" +
			"disk that is slow for etcd, certificates that nobody has renewed in time. The node says it\n" +
			"itself, so with --address no server is needed. The exit code is 1 when a step is not done.",
		example: "  imagectl node health cp1\n  imagectl node health cp1 --address 10.0.0.11",
		run: func(ctx context.Context, n *node, _ []string) error {
			resp, err := n.Health(ctx, connect.NewRequest(&api.HealthRequest{}))
			if err != nil {
				return n.explain("asking for the health", err)
			}
			if f == formatJSON {
				err = printMessage(g.stdio.Out, resp.Msg)
			} else {
				err = printHealth(g.stdio.Out, n.name, resp.Msg)
			}
			if err == nil && !resp.Msg.GetHealthy() {
				err = errors.New("not every step is done on " + n.name)
			}
			return err
		},
	}.command(g)
	formatFlag(cmd, &f)
	return cmd
}

func printHealth(w io.Writer, name string, m *api.HealthResponse) error {
	rows := [][]string{}
	for _, s := range m.GetSteps() {
		rows = append(rows, []string{text(s.GetName()), strings.ToLower(strings.TrimPrefix(s.GetState().String(), "STATE_")), text(s.GetDetail())})
	}
	if err := table(w, []string{"STEP", "STATE", "DETAIL"}, rows); err != nil {
		return err
	}
	for _, s := range m.GetWarnings() {
		fmt.Fprintf(w, "warning: %s\n", text(s))
	}
	if m.GetHealthy() && len(m.GetWarnings()) == 0 {
		fmt.Fprintf(w, "%s is healthy\n", name)
	}
	return nil
}
