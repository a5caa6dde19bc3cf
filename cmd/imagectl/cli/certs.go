package cli

import (
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newCerts(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "certs",
		Short:   "List and revoke certificates",
		Example: "  imagectl certs ls\n  imagectl certs revoke 5b1d7c0e9f... --reason \"laptop stolen\"\n  imagectl certs revoke operator/ada",
		Args:    needVerb,
		RunE:    func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCertsLs(g), newCertsRevoke(g))
	return cmd
}

func newCertsLs(g *globals) *cobra.Command {
	var f format
	var all bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List certificates that have not ended, and warn of those that were not renewed",
		Long: "List the certificates that this server issued and that have not ended. Those that a\n" +
			"newer one took the place of are shown with --all. What Kubernetes issues by itself\n" +
			"(kubelets', the API server's) is not among them.",
		Example: "  imagectl certs ls\n  imagectl certs ls --all -o json",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().ListCertificates(cmd.Context(), connect.NewRequest(&api.ListCertificatesRequest{}))
			if err != nil {
				return r.explain(err)
			}
			var shown []*api.CertificateView
			for _, c := range resp.Msg.GetCertificates() {
				if all || !c.GetSuperseded() || c.GetRevokedAt() != nil {
					shown = append(shown, c)
				}
			}
			if f == formatJSON {
				return printMessages(g.stdio.Out, shown)
			}
			return printCertificates(g.stdio.Out, time.Now(), shown)
		},
	}
	formatFlag(cmd, &f)
	cmd.Flags().BoolVar(&all, "all", false, "also those that a newer one took the place of")
	return cmd
}

func printCertificates(w io.Writer, now time.Time, all []*api.CertificateView) error {
	var rows [][]string
	for _, c := range all {
		rows = append(rows, []string{
			c.GetHolder(), c.GetProfile(), c.GetCa(), c.GetSubject(), c.GetSerial(),
			c.GetNotAfter().AsTime().Local().Format(time.DateTime), certificateState(now, c),
		})
	}
	return table(w, []string{"HOLDER", "FOR", "CA", "SUBJECT", "SERIAL", "UNTIL", "WHAT"}, rows)
}

// certificateState is what to know about a certificate; empty for nothing.
func certificateState(now time.Time, c *api.CertificateView) string {
	end := c.GetNotAfter().AsTime()
	switch {
	case c.GetRevokedAt() != nil:
		return fmt.Sprintf("revoked %s: %s", c.GetRevokedAt().AsTime().Local().Format(time.DateTime), c.GetRevokedReason())
	case c.GetSuperseded():
		return "a newer one took its place"
	case renewsItself(c) && end.Sub(now) < end.Sub(c.GetNotBefore().AsTime())/3:
		// It is due after a third of its life.
		return fmt.Sprintf("warning: ends in %s and was not renewed; does its machine run?", end.Sub(now).Round(time.Minute))
	}
	return ""
}

// renewsItself says whether somebody should have renewed it long before its end.
func renewsItself(c *api.CertificateView) bool {
	switch c.GetProfile() {
	case "operator", "kubernetes-admin", "kubelet-bootstrap":
		return false
	}
	return true
}

func newCertsRevoke(g *globals) *cobra.Command {
	var f format
	var reason string
	cmd := &cobra.Command{
		Use:   "revoke SERIAL|HOLDER...",
		Short: "Revoke certificates by serial number, or all that somebody holds",
		Long: "Revoke certificates by serial number, or all that a holder has, as imagectl certs ls\n" +
			"shows them. The server refuses them at once; nodes and etcd with their next call to\n" +
			"the server. A node's certificate takes the node's key with it.",
		Example: `  imagectl certs revoke 5b1d7c0e9f3a4c5d8e2f0a1b3c4d5e6f --reason "laptop stolen"
  imagectl certs revoke operator/ada`,
		Args: needNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().RevokeCertificates(cmd.Context(), connect.NewRequest(&api.RevokeCertificatesRequest{Serials: args, Reason: reason}))
			if err != nil {
				return r.explain(err)
			}
			return g.outcomes(f, resp.Msg.GetOutcomes())
		},
	}
	formatFlag(cmd, &f)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log and for whoever is refused")
	return cmd
}
