package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func newNode(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "node",
		Aliases: []string{"nodes"},
		Short:   "Look into a node: health, kernel log, units, processes, disks, network, packets",
		Long: "Look into a node, over mutual TLS, by its agent: nobody logs in to nodes. The calls\n" +
			"go to the node itself, or where it does not answer from here through the server.\n" +
			"Nothing of it changes the node. docs/node-api.md says who may call what.",
		Example: "  imagectl node ps w1\n  imagectl node logs w1 kube-system/coredns-abc --follow\n  imagectl node bundle cp1",
		Args:    needVerb,
		RunE:    func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newNodeHealth(g), newNodeDmesg(g), newNodeUnits(g), newNodePs(g), newNodeDisks(g), newNodeNet(g), newNodeTime(g), newNodeLogs(g), newNodeCat(g), newNodeCapture(g), newNodeBundle(g))
	return cmd
}

// nodeVerb is a verb of a node's: how many arguments follow the node's name, and what it does.
type nodeVerb struct {
	use, short, long, example string
	// least and most arguments come after the node.
	least, most int
	run         func(ctx context.Context, n *node, args []string) error
}

func (v nodeVerb) command(g *globals) *cobra.Command {
	var o reach
	cmd := &cobra.Command{
		Use: v.use, Short: v.short, Long: v.long, Example: v.example,
		Args: func(cmd *cobra.Command, args []string) error {
			if n := len(args) - 1; n < v.least || n > v.most {
				return usageError{fmt.Errorf("it takes %s; see %s --help", v.use, cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			n, err := o.find(cmd.Context(), r, args[0])
			if err != nil {
				return err
			}
			return v.run(cmd.Context(), n, args[1:])
		},
	}
	o.flags(cmd)
	return cmd
}

// printLine writes a message as one line of JSON.
func printLine(w io.Writer, m proto.Message) error {
	b, err := protojson.Marshal(m)
	if err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

// bytesOf words a size as ls -h does, in powers of 1024.
func bytesOf(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d", n)
	}
	f := float64(n)
	for _, unit := range "KMGTPE" {
		if f /= 1024; f < 1000 {
			if f < 10 {
				return fmt.Sprintf("%.1f%c", f, unit)
			}
			return fmt.Sprintf("%.0f%c", f, unit)
		}
	}
	return fmt.Sprintf("%.0fE", f)
}

// span words a duration; nil is nothing.
func span(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	t := d.AsDuration()
	switch {
	case t > -time.Second && t < time.Second:
		return t.Round(time.Microsecond).String()
	case t < time.Minute:
		return t.Round(time.Millisecond * 10).String()
	}
	return t.Round(time.Second).String()
}

// moment words a time as the operator's clock would; nil is nothing.
func moment(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.DateTime)
}
