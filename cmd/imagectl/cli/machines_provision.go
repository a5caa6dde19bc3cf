package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/machine"
)

// silentBoot is how long a machine may show nothing on the boot path before its
// operator is told where to look: firmware was seen to try other interfaces for
// twenty minutes after an update, five for each.
const silentBoot = 8 * time.Minute

func newMachinesProvision(g *globals) *cobra.Command {
	var s selection
	var reinstall, again, noWait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "provision NAME... | --all",
		Short: "Arm machines, have their BMCs start them from the network, and wait",
		Long: "Arm machines, have their BMCs start them from the network once, and wait until\n" +
			"their disks are written. What arming refuses is refused, and nothing is switched\n" +
			"then. When a BMC fails, its machine is disarmed again.\n\n" +
			"Stopping this command stops nothing but the waiting; the same command again\n" +
			"waits on, and does not switch a machine a second time.",
		Example: "  imagectl machines provision w1\n  imagectl machines provision --all --no-wait\n  imagectl machines provision w1 --reinstall",
		RunE: func(cmd *cobra.Command, args []string) error {
			sel, err := s.of(args)
			if err != nil {
				return err
			}
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().ArmMachine(cmd.Context(), connect.NewRequest(&api.ArmMachineRequest{Selection: sel, Reinstall: reinstall, Netboot: true, Again: again}))
			if err != nil {
				return r.explain(err)
			}
			refused := g.outcomes(formatTable, resp.Msg.GetOutcomes())
			names := map[string]bool{}
			for _, o := range resp.Msg.GetOutcomes() {
				if o.GetOk() {
					names[o.GetMachine()] = true
				}
			}
			if noWait || len(names) == 0 {
				return refused
			}
			return errors.Join(refused, g.waitProvisioned(cmd.Context(), r, names, timeout, "the same command waits on"))
		},
	}
	s.flag(cmd)
	cmd.Flags().BoolVar(&reinstall, "reinstall", false, "also machines that are installed: their disk is wiped")
	cmd.Flags().BoolVar(&again, "again", false, "start a machine once more that was started for this arming already")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return when the machines are armed")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Hour, "how long to wait")
	return cmd
}

// waitProvisioned asks the server until the named machines are installed. goOn is how to wait on
// after the time is over.
func (g *globals) waitProvisioned(ctx context.Context, r *remote, names map[string]bool, timeout time.Duration, goOn string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not all are installed after %s; %s, imagectl why NAME says what a machine gets", timeout, goOn))
	defer cancel()
	ask := func(ctx context.Context) ([]*api.MachineView, error) {
		resp, err := r.operator().ListMachines(ctx, connect.NewRequest(&api.ListMachinesRequest{}))
		if err != nil {
			return nil, r.explain(err)
		}
		return resp.Msg.GetMachines(), nil
	}
	next := func(ctx context.Context) error {
		select {
		case <-time.After(2 * time.Second):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return waitInstalled(ctx, g.stdio.Out, time.Now, names, ask, next)
}

// waitInstalled prints every new stage of the named machines until all are
// installed or have failed. A server that does not answer for a while is waited for.
func waitInstalled(ctx context.Context, w io.Writer, now func() time.Time, names map[string]bool, ask func(context.Context) ([]*api.MachineView, error), next func(context.Context) error) error {
	begun := now()
	said := map[string]string{}
	failed, deaf := 0, ""
	for {
		machines, err := ask(ctx)
		if err != nil && ctx.Err() == nil && err.Error() != deaf {
			deaf = err.Error()
			fmt.Fprintf(w, "waiting for the server: %s\n", deaf)
		}
		for _, m := range machines {
			if !names[m.GetName()] {
				continue
			}
			stage, end, ok := stageOf(m, begun, now())
			if said[m.GetName()] != stage {
				said[m.GetName()] = stage
				fmt.Fprintf(w, "%s: %s (%s)\n", m.GetName(), text(stage), now().Sub(begun).Round(time.Second))
			}
			if end {
				delete(names, m.GetName())
				if !ok {
					failed++
				}
			}
		}
		if len(names) == 0 && failed > 0 {
			return fmt.Errorf("%d machines were not installed", failed)
		}
		if len(names) == 0 {
			return nil
		}
		if err := next(ctx); err != nil {
			return err
		}
	}
}

// stageOf is where a machine is on its way, whether that is its end, and a good one.
func stageOf(m *api.MachineView, begun, now time.Time) (stage string, end, ok bool) {
	switch machine.State(m.GetState()) {
	case machine.Installed, machine.Enrolled, machine.Member, machine.Ready:
		return "installed", true, true
	case machine.Armed:
		booting := m.GetBootStageAt() != nil && m.GetBootStageAt().AsTime().After(begun)
		switch {
		case m.GetPendingCode() != "":
			return fmt.Sprintf("waits for its code to be compared with its console: imagectl machines approve %s --code %s=CODE", m.GetName(), m.GetName()), false, true
		case booting && m.GetLastSeen().AsTime().Before(begun):
			return "boots from the network: " + m.GetBootStage(), false, true
		case !booting && now.Sub(begun) > silentBoot:
			return fmt.Sprintf("nothing on the boot network for %s (%s): look at its console; firmware tries other interfaces first for minutes each, or boots its disk", silentBoot, m.GetReason()), false, true
		}
		return m.GetReason(), false, true
	case machine.Installing:
		return "writes its disk", false, true
	case machine.Failed, machine.Quarantined, machine.Retired:
		return m.GetState() + ": " + m.GetReason(), true, false
	default: // approved: it was disarmed
		return "not armed: " + m.GetReason(), true, false
	}
}
