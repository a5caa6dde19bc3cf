package cli

import (
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newServerCA(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Replace CAs while everything runs",
		Long: "Replace the CA imagectl, which signs the certificates of machines, operators and\n" +
			"servers, while everything runs: prepare makes another one and lets machines know of\n" +
			"it, activate lets it sign, finish takes the old one away. A step that somebody would\n" +
			"be shut out by is refused, with all names; one that was done already does nothing.\n\n" +
			"rotate replaces the CA of etcd, which goes on by itself.",
		Example: "  imagectl server ca show\n  imagectl server ca prepare\n  imagectl server ca activate\n  imagectl server ca finish\n  imagectl server ca rotate etcd",
		Args:    needVerb,
		RunE:    func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newServerCAShow(g),
		newServerCAStep(g, "prepare", api.RollAuthorityRequest_STEP_PREPARE, "Make another CA, and let machines and operators trust it too",
			"Make another CA with a key of its own, which signs nothing yet. Machines that call\nlearn of it within seconds; imagectl server ca show says which have not."),
		newServerCAStep(g, "activate", api.RollAuthorityRequest_STEP_ACTIVATE, "Let the other CA sign, and delete the old one's key",
			"Let the other CA sign from now on. Machines get its certificates within ten minutes,\noperators with their next one. It is refused while a machine with a good certificate has\nnot said that it trusts that CA; --without gives a machine up."),
		newServerCAStep(g, "finish", api.RollAuthorityRequest_STEP_FINISH, "Trust the old CA no more",
			"Trust the old CA no more. It is refused while somebody holds a good certificate of it,\nand while no backup was made since the new one signs; --without gives a holder up."),
		newServerCAStep(g, "cancel", api.RollAuthorityRequest_STEP_CANCEL, "Take back what prepare did",
			"Take the other CA back while it signs nothing."),
		newServerCARotate(g),
	)
	return cmd
}

func newServerCAShow(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show the CAs, and what the next step waits for",
		Example: "  imagectl server ca show\n  imagectl server ca show -o json",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().ShowAuthority(cmd.Context(), connect.NewRequest(&api.ShowAuthorityRequest{}))
			if err != nil {
				return r.explain(err)
			}
			if f == formatJSON {
				return printMessage(g.stdio.Out, resp.Msg.GetAuthority())
			}
			return printAuthority(g.stdio.Out, resp.Msg.GetAuthority())
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

func newServerCAStep(g *globals, name string, step api.RollAuthorityRequest_Step, short, long string) *cobra.Command {
	var without []string
	cmd := &cobra.Command{
		Use: name, Short: short, Long: long,
		Example: "  imagectl server ca " + name,
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().RollAuthority(cmd.Context(), connect.NewRequest(&api.RollAuthorityRequest{Step: step, Without: without}))
			if err != nil {
				return r.explain(err)
			}
			fmt.Fprintln(g.stdio.Out, resp.Msg.GetMessage())
			if !resp.Msg.GetChanged() {
				return nil
			}
			return printAuthority(g.stdio.Out, resp.Msg.GetAuthority())
		},
	}
	if step == api.RollAuthorityRequest_STEP_ACTIVATE || step == api.RollAuthorityRequest_STEP_FINISH {
		cmd.Flags().StringArrayVar(&without, "without", nil, "`name` of a machine, or operator/NAME, that is not waited for; may be repeated")
		cmd.Example += "\n  imagectl server ca " + name + " --without w3"
	}
	return cmd
}

func newServerCARotate(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "rotate CA",
		Short: "Replace the CA of etcd, which goes on by itself",
		Long: "Make another CA for etcd. All control planes learn to trust it too, then every certificate\n" +
			"for etcd is made anew by it, then the old one is trusted no more. Members of etcd and API\n" +
			"servers are started anew for that, one at a time and while all others are well; with one\n" +
			"or two control planes nothing can be written for some seconds each time.\n\n" +
			"It waits for every control plane, and for a backup of the server's state that has the new\n" +
			"key, where backups are made: imagectl status and imagectl server ca show say for what.\n" +
			"There is no way back, but to replace it once more. CA is etcd.",
		Example: "  imagectl server ca rotate etcd",
		Args:    wants("a CA", 1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().RotateAuthority(cmd.Context(), connect.NewRequest(&api.RotateAuthorityRequest{Ca: args[0]}))
			if err != nil {
				return r.explain(err)
			}
			fmt.Fprintln(g.stdio.Out, resp.Msg.GetMessage())
			return printRotation(g.stdio.Out, resp.Msg.GetRotation())
		},
	}
}

// printRotation tells of a CA that goes on by itself.
func printRotation(w io.Writer, v *api.RotationView) error {
	fmt.Fprintf(w, "CA %s: %s\n", v.GetCa(), v.GetStage())
	if err := table(w, []string{"CA", "USE", "FROM", "UNTIL"}, authorityRows(v.GetCas())); err != nil {
		return err
	}
	for _, each := range v.GetWaits() {
		fmt.Fprintf(w, "waits: %s\n", each)
	}
	return nil
}

func authorityRows(cas []*api.AuthorityView_CA) [][]string {
	var rows [][]string
	for _, c := range cas {
		rows = append(rows, []string{c.GetSha256()[:min(16, len(c.GetSha256()))], c.GetUse(), c.GetNotBefore().AsTime().Local().Format(time.DateTime), c.GetNotAfter().AsTime().Local().Format(time.DateTime)})
	}
	return rows
}

func printAuthority(w io.Writer, a *api.AuthorityView) error {
	if err := table(w, []string{"CA", "USE", "FROM", "UNTIL"}, authorityRows(a.GetCas())); err != nil {
		return err
	}
	switch {
	case a.GetNext() == "":
	case len(a.GetWaits()) == 0:
		fmt.Fprintf(w, "next: imagectl server ca %s; nothing is in its way\n", a.GetNext())
	default:
		fmt.Fprintf(w, "next: imagectl server ca %s, which waits for:\n", a.GetNext())
		for _, each := range a.GetWaits() {
			fmt.Fprintf(w, "- %s\n", each)
		}
	}
	for _, n := range a.GetNotes() {
		fmt.Fprintln(w, n)
	}
	for _, v := range a.GetRotations() {
		if err := printRotation(w, v); err != nil {
			return err
		}
	}
	return nil
}
