package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newWhy(g *globals) *cobra.Command {
	var f format
	var at string
	cmd := &cobra.Command{
		Use:   "why MAC|NAME|CAPTURE",
		Short: "Explain what a machine gets when it netboots, and why",
		Long: "Explain what a machine gets when it netboots, and why. The server is asked about a MAC\n" +
			"address or a name of cluster.yaml.\n\n" +
			"A file that ends in .pcap, .pcapng, .cap or .hex is a capture of DHCP and TFTP, such as\n" +
			"tcpdump -w makes, or one DHCP message in hexadecimal on each line. Its packets are\n" +
			"answered again by the cluster.yaml and imagectl.lock that are here, without a server.\n" +
			"A capture that has none of the server's answers is taken for one of the network of\n" +
			"server.address, unless --interface says of which card of the server it is.",
		Example: "  imagectl why 52:54:00:12:34:56\n  imagectl why cp1 -o json\n  imagectl why boot.pcap\n  imagectl why boot.pcap --interface eth0.20=10.1.20.1",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("give one MAC address, machine name or capture; see %s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if isCapture(args[0]) {
				return g.whyCapture(args[0], at, f)
			}
			if at != "" {
				return usageError{fmt.Errorf("--interface %s is for captures", at)}
			}
			r, err := g.dial()
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
	cmd.Flags().StringVar(&at, "interface", "", "the server's interface at which the capture was made, or NAME=ADDRESS with its `NAME` and address there")
	formatFlag(cmd, &f)
	return cmd
}

// printEvents prints a list under an empty line and a title, or nothing.
func printEvents(w io.Writer, title string, events []*api.BootEvent) {
	if len(events) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s\n", title)
	for _, e := range events {
		fmt.Fprintf(w, "  %s  %-8s  %s\n", e.GetAt().AsTime().Local().Format(time.DateTime), text(e.GetStage()), text(e.GetDetail()))
	}
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
	printEvents(w, "seen on the boot path:", a.GetEvents())
	printEvents(w, "said by syslog:", a.GetConsole())
	if a.GetScript() != "" {
		what := "GRUB's configuration"
		if strings.HasPrefix(a.GetScript(), "#!ipxe") {
			what = "iPXE script"
		}
		fmt.Fprintf(w, "\n%s:\n%s", what, indent(text(a.GetScript())))
	}
	return nil
}
