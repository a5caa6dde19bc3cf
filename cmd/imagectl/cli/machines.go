package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/enrol"
)

func newMachines(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "machines",
		Short: "List, approve, arm, switch, reboot, replace and retire machines",
		Example: `  imagectl machines ls
  imagectl machines arm --all
  imagectl machines approve cp1 --code cp1=7K3M-0QZD-9X2V`,
		Args: needVerb,
		RunE: func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newMachinesLs(g), newMachinesShow(g), newMachinesApprove(g), newMachinesReject(g), newMachinesArm(g), newMachinesDisarm(g), newMachinesConfig(g), newMachinesPower(g), newMachinesProvision(g), newMachinesReplace(g), newMachinesRetire(g), newMachinesDrain(g), newMachinesReboot(g), newMachinesShutdown(g), newMachinesReset(g))
	return cmd
}

// needVerb refuses a word that is no subcommand.
func needVerb(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command %q; see %s --help", args[0], cmd.CommandPath())}
	}
	return nil
}

func newMachinesLs(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List machines with their state and what they wait for",
		Example: "  imagectl machines ls\n  imagectl machines ls -o json",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().ListMachines(cmd.Context(), connect.NewRequest(&api.ListMachinesRequest{}))
			if err != nil {
				return r.explain(err)
			}
			if f == formatJSON {
				return printMessages(g.stdio.Out, resp.Msg.GetMachines())
			}
			return printMachines(g.stdio.Out, time.Now(), resp.Msg.GetMachines())
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

func printMachines(w io.Writer, now time.Time, machines []*api.MachineView) error {
	var rows [][]string
	for _, m := range machines {
		code := m.GetPendingCode()
		if m.GetKeyConflict() {
			code += " (another key!)"
		}
		rows = append(rows, []string{m.GetName(), m.GetRole(), m.GetState(), m.GetAddress(), code, ago(now, m.GetLastSeen()), activity(m)})
	}
	return table(w, []string{"NAME", "ROLE", "STATE", "ADDRESS", "CODE", "SEEN", "WHAT"}, rows)
}

// activity is what a machine does or waits for, in a few words.
func activity(m *api.MachineView) string {
	if m.GetState() == "installing" && m.GetInstallBytesTotal() > 0 {
		return fmt.Sprintf("%d%% of %d MiB written", 100*m.GetInstallBytesDone()/m.GetInstallBytesTotal(), m.GetInstallBytesTotal()>>20)
	}
	for _, s := range m.GetSteps() {
		switch s.GetState() {
		case api.StepStatus_STATE_RUNNING:
			return strings.TrimSpace(s.GetName() + " " + s.GetDetail())
		case api.StepStatus_STATE_FAILED:
			return strings.TrimSpace(s.GetName() + " failed: " + s.GetDetail())
		case api.StepStatus_STATE_PENDING:
			if s.GetName() == stepNetworkLinks && s.GetDetail() != "" {
				return s.GetDetail() // nobody but an operator ends this
			}
		}
	}
	if m.GetReason() == "" && m.GetState() != "ready" && m.GetBootStage() != "" {
		return "boot: " + m.GetBootStage()
	}
	return m.GetReason()
}

// selection is names or --all.
type selection struct {
	all bool
}

func (s *selection) flag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.all, "all", false, "every machine that it applies to")
}

func (s *selection) of(args []string) (*api.Selection, error) {
	if (len(args) > 0) == s.all {
		return nil, usageError{errors.New("say which machines: their names, or --all")}
	}
	return &api.Selection{Names: args, All: s.all}, nil
}

// change asks the server for something about the selected machines.
func (g *globals) change(f format, s selection, args []string, ask func(*remote, *api.Selection) ([]*api.Outcome, error)) error {
	sel, err := s.of(args)
	if err != nil {
		return err
	}
	r, err := g.dial()
	if err != nil {
		return err
	}
	all, err := ask(r, sel)
	if err != nil {
		return r.explain(err)
	}
	return g.outcomes(f, all)
}

// outcomes prints one line per machine; a refusal makes the exit code 1.
func (g *globals) outcomes(f format, all []*api.Outcome) error {
	refused := 0
	for _, o := range all {
		if !o.GetOk() {
			refused++
		}
	}
	if f == formatJSON {
		if err := printMessages(g.stdio.Out, all); err != nil {
			return err
		}
	} else {
		for _, o := range all {
			if o.GetOk() {
				fmt.Fprintf(g.stdio.Out, "%s: %s (%s)\n", text(o.GetMachine()), text(o.GetMessage()), text(o.GetState()))
			} else {
				fmt.Fprintf(g.stdio.Err, "%s: refused (%s): %s\n", text(o.GetMachine()), text(o.GetReasonCode()), text(o.GetMessage()))
			}
		}
		if len(all) == 0 {
			fmt.Fprintln(g.stdio.Out, "no changes: it applies to no machine")
		}
	}
	if refused > 0 {
		return reportedError{fmt.Errorf("%d of %d were refused", refused, len(all))}
	}
	return nil
}

func newMachinesArm(g *globals) *cobra.Command {
	var f format
	var s selection
	var reinstall bool
	cmd := &cobra.Command{
		Use:   "arm NAME... | --all",
		Short: "Let the next netboot of a machine write its disk, once",
		Long: "Let the next netboot of a machine write its disk, once. The machine's key is\n" +
			"still quarantined until its code is compared: imagectl machines approve.",
		Example: "  imagectl machines arm cp1 w1\n  imagectl machines arm --all\n  imagectl machines arm w1 --reinstall",
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.change(f, s, args, func(r *remote, sel *api.Selection) ([]*api.Outcome, error) {
				resp, err := r.operator().ArmMachine(cmd.Context(), connect.NewRequest(&api.ArmMachineRequest{Selection: sel, Reinstall: reinstall}))
				if err != nil {
					return nil, err
				}
				return resp.Msg.GetOutcomes(), nil
			})
		},
	}
	formatFlag(cmd, &f)
	s.flag(cmd)
	cmd.Flags().BoolVar(&reinstall, "reinstall", false, "also machines that are installed: their disk is wiped")
	return cmd
}

func newMachinesDisarm(g *globals) *cobra.Command {
	var f format
	var s selection
	cmd := &cobra.Command{
		Use:     "disarm NAME... | --all",
		Short:   "Take an arming back",
		Example: "  imagectl machines disarm w1",
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.change(f, s, args, func(r *remote, sel *api.Selection) ([]*api.Outcome, error) {
				resp, err := r.operator().DisarmMachine(cmd.Context(), connect.NewRequest(&api.DisarmMachineRequest{Selection: sel}))
				if err != nil {
					return nil, err
				}
				return resp.Msg.GetOutcomes(), nil
			})
		},
	}
	formatFlag(cmd, &f)
	s.flag(cmd)
	return cmd
}

func newMachinesReject(g *globals) *cobra.Command {
	var f format
	var s selection
	var reason string
	cmd := &cobra.Command{
		Use:     "reject NAME... | --all",
		Short:   "Turn down the keys that wait for approval",
		Example: `  imagectl machines reject w1 --reason "nobody booted it"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.change(f, s, args, func(r *remote, sel *api.Selection) ([]*api.Outcome, error) {
				resp, err := r.operator().RejectMachine(cmd.Context(), connect.NewRequest(&api.RejectMachineRequest{Selection: sel, Reason: reason}))
				if err != nil {
					return nil, err
				}
				return resp.Msg.GetOutcomes(), nil
			})
		},
	}
	formatFlag(cmd, &f)
	s.flag(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	return cmd
}

func newMachinesApprove(g *globals) *cobra.Command {
	var f format
	var s selection
	var codes []string
	var codesFrom string
	var replace, force bool
	cmd := &cobra.Command{
		Use:   "approve NAME... | --all",
		Short: "Accept a machine's key by the code on its console",
		Long: "Accept a machine's key by the code on its console. The code depends on the\n" +
			"machine's key and on the CA that the machine was given, so comparing it also\n" +
			"unmasks whoever swapped the CA on the way. Give the codes that the consoles show\n" +
			"with --code or --codes-from; without them the server's are shown, to be compared\n" +
			"and confirmed.",
		Example: `  imagectl machines approve cp1 --code cp1=7K3M-0QZD-9X2V
  imagectl machines approve --all --codes-from codes.txt     lines of NAME CODE
  imagectl machines approve --all                            asks once`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.change(f, s, args, func(r *remote, sel *api.Selection) ([]*api.Outcome, error) {
				given, err := readCodes(g, codes, codesFrom)
				if err == nil && len(given) == 0 {
					given, err = confirmCodes(cmd.Context(), g, r, sel)
				}
				if err != nil {
					return nil, err
				}
				resp, err := r.operator().ApproveMachine(cmd.Context(), connect.NewRequest(&api.ApproveMachineRequest{Selection: sel, Codes: given, ReplaceKey: replace, Force: force}))
				if err != nil {
					return nil, err
				}
				return resp.Msg.GetOutcomes(), nil
			})
		},
	}
	formatFlag(cmd, &f)
	s.flag(cmd)
	cmd.Flags().StringArrayVar(&codes, "code", nil, "NAME=CODE as the machine's console shows it; repeatable")
	cmd.Flags().StringVar(&codesFrom, "codes-from", "", "file with lines of NAME CODE; - is standard input")
	cmd.Flags().BoolVar(&replace, "replace-key", false, "accept a key that replaces an approved one, whose certificates are revoked")
	cmd.Flags().BoolVar(&force, "force", false, "although etcd loses its quorum by that")
	return cmd
}

// readCodes collects --code and --codes-from.
func readCodes(g *globals, codes []string, from string) (map[string]string, error) {
	out := map[string]string{}
	for _, c := range codes {
		name, code, ok := strings.Cut(c, "=")
		if !ok || name == "" || code == "" {
			return nil, usageError{fmt.Errorf("--code %q is not NAME=CODE", c)}
		}
		out[name] = code
	}
	if from == "" {
		return out, nil
	}
	text, err := readInput(g, from)
	if err != nil {
		return nil, err
	}
	n := 0
	for line := range strings.Lines(text) {
		n++
		name, code, ok := strings.Cut(strings.TrimSpace(line), " ")
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if !ok {
			return nil, usageError{fmt.Errorf("%s:%d: %q is not NAME CODE", from, n, strings.TrimSpace(line))}
		}
		out[name] = strings.TrimSpace(code)
	}
	return out, nil
}

// confirmCodes shows the codes that the server has and asks once.
func confirmCodes(ctx context.Context, g *globals, r *remote, sel *api.Selection) (map[string]string, error) {
	resp, err := r.operator().ListMachines(ctx, connect.NewRequest(&api.ListMachinesRequest{}))
	if err != nil {
		return nil, r.explain(err)
	}
	wanted := map[string]bool{}
	for _, n := range sel.GetNames() {
		wanted[n] = true
	}
	codes := map[string]string{}
	for _, m := range resp.Msg.GetMachines() {
		if m.GetPendingCode() == "" || !m.GetKnown() || !sel.GetAll() && !wanted[m.GetName()] {
			continue
		}
		if len(codes) == 0 {
			fmt.Fprintln(g.stdio.Err, "Compare with what each machine's console shows:")
		}
		codes[m.GetName()] = m.GetPendingCode()
		fmt.Fprintf(g.stdio.Err, "  %s  %s\n", enrol.NormalCode(m.GetPendingCode()), m.GetName())
	}
	if len(codes) == 0 {
		return codes, nil // the server says what is wrong with each
	}
	fmt.Fprintf(g.stdio.Err, "Do all %d agree? Type yes: ", len(codes))
	answer, err := readLine(ctx, g.stdio.In)
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w; nothing was approved", err)
	}
	if strings.TrimSpace(answer) != "yes" {
		return nil, errors.New("nothing was approved; imagectl machines reject turns a wrong one down")
	}
	return codes, nil
}
