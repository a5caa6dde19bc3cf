package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

const (
	// askAgain is how often the server is asked how far something is.
	askAgain = time.Second
	// hearOrder is how long a machine's answer to an order is waited for: it hears one at once
	// while it is in touch with the server.
	hearOrder = 45 * time.Second
)

// drainFlags are about pods that leave a machine before something is done to it.
type drainFlags struct {
	no      bool
	timeout time.Duration
}

func (d *drainFlags) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&d.no, "no-drain", false, "do not have its pods leave first")
	cmd.Flags().DurationVar(&d.timeout, "drain-timeout", 5*time.Minute, "how long its pods may take to leave")
}

// drain has pods leave machines, one after the other.
func (d *drainFlags) drain(ctx context.Context, g *globals, r *remote, names []string) error {
	if d.no {
		return nil
	}
	if d.timeout < time.Second {
		return usageError{fmt.Errorf("--drain-timeout %s is less than a second; --no-drain waits for nobody", d.timeout)}
	}
	for _, name := range names {
		if err := follow(ctx, g, r, &api.DrainMachineRequest{Machine: name, TimeoutSeconds: uint32(d.timeout / time.Second)}); err != nil {
			return err
		}
	}
	return nil
}

// follow begins a drain, or takes one back, and says how far it is until it has ended.
func follow(ctx context.Context, g *globals, r *remote, req *api.DrainMachineRequest) error {
	said := ""
	for {
		resp, err := r.operator().DrainMachine(ctx, connect.NewRequest(req))
		if err != nil {
			return err
		}
		req.Id = resp.Msg.GetId()
		switch m := resp.Msg; {
		case m.GetProblem() != "":
			return fmt.Errorf("%s is not drained: %s; it takes no new pods (imagectl machines drain %s --undo lets it). A longer --drain-timeout waits on, --no-drain goes on without", req.GetMachine(), text(m.GetProblem()), req.GetMachine())
		case m.GetDone() && req.GetUndo():
			fmt.Fprintf(g.stdio.Err, "%s: takes pods again\n", req.GetMachine())
			return nil
		case m.GetDone():
			detail := m.GetDetail()
			if detail == "" {
				detail = "its pods have left"
			}
			fmt.Fprintf(g.stdio.Err, "%s: %s\n", req.GetMachine(), text(detail))
			return nil
		case m.GetDetail() != said:
			said = m.GetDetail()
			fmt.Fprintf(g.stdio.Err, "%s: draining: %s\n", req.GetMachine(), text(said))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(askAgain):
		}
	}
}

func newMachinesDrain(g *globals) *cobra.Command {
	d := drainFlags{}
	var undo bool
	cmd := &cobra.Command{
		Use:   "drain NAME...",
		Short: "Have pods leave a machine, or let it take pods again",
		Long: "Have pods leave a machine. A control plane asks for them to go, by the eviction API,\n" +
			"which keeps to PodDisruptionBudgets. Static pods and those of DaemonSets stay, and\n" +
			"so do pods that nothing would start elsewhere. What is in an emptyDir is lost. The\n" +
			"machine takes no pods until it is told to again: --undo.",
		Example: "  imagectl machines drain w1 --drain-timeout 15m\n  imagectl machines drain w1 --undo",
		Args:    needNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			for _, name := range args {
				req := &api.DrainMachineRequest{Machine: name, Undo: undo, TimeoutSeconds: uint32(max(d.timeout, time.Second) / time.Second)}
				if err := follow(cmd.Context(), g, r, req); err != nil {
					return r.explain(err)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "let it take pods again")
	cmd.Flags().DurationVar(&d.timeout, "drain-timeout", 5*time.Minute, "how long its pods may take to leave")
	return cmd
}

func newMachinesReboot(g *globals) *cobra.Command {
	return newMachinesAct(g, api.ActMachineRequest_ACTION_REBOOT, &cobra.Command{
		Use:   "reboot NAME...",
		Short: "Drain a machine and have its own system reboot",
		Long: "Have a machine's own system reboot. Its pods leave first, and it takes pods again when\n" +
			"it is back. A member of etcd reboots only while the others keep the quorum: the server\n" +
			"does the arithmetic, counting those that it has told to reboot already as away, and\n" +
			"the node asks etcd itself. Both logs have who asked for it. Where the server is gone,\n" +
			"--address asks the node itself; nothing is drained then.",
		Example: "  imagectl machines reboot w1 --reason \"new kernel\"\n  imagectl machines reboot cp1 --address 10.0.0.11",
	})
}

func newMachinesShutdown(g *globals) *cobra.Command {
	return newMachinesAct(g, api.ActMachineRequest_ACTION_SHUTDOWN, &cobra.Command{
		Use:   "shutdown NAME...",
		Short: "Drain a machine and have its own system switch it off",
		Long: "Have a machine's own system switch it off, as \"machines reboot\" does. (\"machines power\n" +
			"shutdown\" asks its BMC for that, and nobody does any arithmetic.)",
		Example: "  imagectl machines shutdown w1",
	})
}

func newMachinesReset(g *globals) *cobra.Command {
	return newMachinesAct(g, api.ActMachineRequest_ACTION_RESET, &cobra.Command{
		Use:   "reset NAME...",
		Short: "Arm a machine and have its own system reboot, so that it is installed anew",
		Long: "Arm a machine, as \"machines arm --reinstall\" does, and have its own system reboot: when it\n" +
			"netboots then, its disk is written anew. It is refused where arming is, and takes a\n" +
			"second person where wiping does. Its key stays the one that is approved only as long\n" +
			"as its TPM or an operator says so: see \"machines approve\".\n\n" +
			"With --keep nothing is installed: its own system forgets etcd and Kubernetes with all that\n" +
			"they have on the disk, reboots, and joins again as an empty machine. The image, containers'\n" +
			"images, the machine's key and what pods wrote to hostPath volumes stay.",
		Example: "  imagectl machines reset w1\n  imagectl machines reset cp2 --keep --reason \"its member is corrupt\"",
	})
}

// newMachinesAct completes a verb that machines' own systems carry out.
func newMachinesAct(g *globals, action api.ActMachineRequest_Action, cmd *cobra.Command) *cobra.Command {
	var f format
	var d drainFlags
	var reason, address string
	var force, noWait, keep bool
	reset := action == api.ActMachineRequest_ACTION_RESET
	cmd.Args = needNames
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if address != "" {
			return g.actAt(ctx, action, args, address, reason, force)
		}
		action := action
		if keep {
			action = api.ActMachineRequest_ACTION_RESET_KEEP
		}
		return g.change(f, selection{}, args, func(r *remote, sel *api.Selection) ([]*api.Outcome, error) {
			if err := d.drain(ctx, g, r, args); err != nil {
				return nil, err
			}
			resp, err := r.operator().ActMachine(ctx, connect.NewRequest(&api.ActMachineRequest{Selection: sel, Action: action, Reason: reason, Force: force, Uncordon: !d.no}))
			if err != nil {
				return nil, err
			}
			if !noWait {
				err = r.answers(ctx, resp.Msg.GetOutcomes())
			}
			return resp.Msg.GetOutcomes(), err
		})
	}
	formatFlag(cmd, &f)
	d.flags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit logs")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait for the machine's word")
	if reset {
		cmd.Flags().BoolVar(&keep, "keep", false, "keep the installed system and the machine's identity")
	}
	if !reset {
		cmd.Flags().BoolVar(&force, "force", false, "although etcd loses its quorum while it is away")
		cmd.Flags().StringVar(&address, "address", "", "ask the node at this address itself, without the server")
	}
	return cmd
}

// actAt asks a node itself.
func (g *globals) actAt(ctx context.Context, action api.ActMachineRequest_Action, names []string, address, reason string, force bool) error {
	if len(names) != 1 {
		return usageError{errors.New("--address is one machine's; name that")}
	}
	r, err := g.dial()
	if err != nil {
		return err
	}
	kind := api.Order_KIND_REBOOT
	if action == api.ActMachineRequest_ACTION_SHUTDOWN {
		kind = api.Order_KIND_SHUTDOWN
	}
	at := atNode(address)
	if _, err := r.node(names[0], at).Act(ctx, connect.NewRequest(&api.ActRequest{Kind: kind, Reason: reason, Force: force})); err != nil {
		return fmt.Errorf("asking %s at %s: %w", names[0], at, err)
	}
	fmt.Fprintf(g.stdio.Out, "%s: it obeys\n", names[0])
	return nil
}

// answers waits for the machines that were told something, and has each outcome say what became
// of it.
func (r *remote) answers(ctx context.Context, outcomes []*api.Outcome) error {
	for end := time.Now().Add(hearOrder); ; {
		resp, err := r.operator().ListMachines(ctx, connect.NewRequest(&api.ListMachinesRequest{}))
		if err != nil {
			return err
		}
		orders := map[string]*api.OrderView{}
		for _, m := range resp.Msg.GetMachines() {
			orders[m.GetName()] = m.GetOrder()
		}
		open := 0
		for _, o := range outcomes {
			switch v := orders[o.GetMachine()]; {
			case !o.GetOk():
			case v.GetState() == "asked":
				open++
			case v.GetState() == "refused":
				o.Ok, o.ReasonCode, o.Message = false, "node-refuses", v.GetDetail()
			case v.GetState() == "obeyed" && !strings.HasSuffix(o.GetMessage(), "; it obeys"):
				o.Message += "; it obeys"
			}
		}
		if open == 0 || time.Now().After(end) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(askAgain):
		}
	}
}
