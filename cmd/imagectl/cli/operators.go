package cli

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func newOperators(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "operators",
		Aliases: []string{"operator"},
		Short:   "Let people in with own keys, keep them out, and agree to what takes two",
		Example: `  imagectl operators request >ada.csr
  imagectl operators add ada --role operator --csr ada.csr >ada.json
  imagectl operators accept ada.json
  imagectl operators revoke ada --reason "left us"`,
		Args: needVerb,
		RunE: func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newOperatorsRequest(g), newOperatorsAdd(g), newOperatorsAccept(g), newOperatorsLs(g), newOperatorsRevoke(g), newOperatorsRequests(g), newOperatorsApprove(g))
	return cmd
}

func newOperatorsRequest(g *globals) *cobra.Command {
	var another bool
	cmd := &cobra.Command{
		Use:   "request",
		Short: "Make a key of your own on this machine, and print the request for an admin",
		Long: "Make a key of your own on this machine, unless there is one, and print a certificate\n" +
			"request for it. The request is no secret; let an admin have it in a way that shows\n" +
			"that it is yours. The key stays here, beside the context file.",
		Example: "  imagectl operators request >ada.csr",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := operatorKeyPath()
			if err != nil {
				return err
			}
			key, err := operatorKey(path, another)
			if err != nil {
				return err
			}
			csr, err := operatorRequest(key)
			if err != nil {
				return err
			}
			fmt.Fprintf(g.stdio.Err, "the key is %s; next, by an admin: imagectl operators add NAME --role ROLE --csr FILE\n", path)
			return pem.Encode(g.stdio.Out, &pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
		},
	}
	cmd.Flags().BoolVar(&another, "new", false, "make another key in place of the one that is there")
	return cmd
}

func newOperatorsAdd(g *globals) *cobra.Command {
	var role, file string
	var replace bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Let a person in, with the person's own key",
		Long: "Let a person in, with the key whose request the person sent. What it prints is for\n" +
			"the person, and no secret: imagectl operators accept makes it the context there. Roles are\n" +
			"admin (all), operator (machines), reader (looks), backup (backups of the server).",
		Example: "  imagectl operators add ada --role operator --csr ada.csr >ada.json\n  imagectl operators add ada --role admin --csr ada.csr --replace >ada.json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("say whom; see %s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(pki.Roles(), pki.Role(role)) {
				return usageError{fmt.Errorf("--role %q: want admin, operator, reader or backup", role)}
			}
			b, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("reading --csr: %w", err)
			}
			block, _ := pem.Decode(b)
			if block == nil || block.Type != "CERTIFICATE REQUEST" {
				return fmt.Errorf("reading --csr %s: it is not what imagectl operators request prints", file)
			}
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().AddOperator(cmd.Context(), connect.NewRequest(&api.AddOperatorRequest{Name: args[0], Role: role, CsrDer: block.Bytes, Replace: replace}))
			if err != nil {
				return r.explain(err)
			}
			out, err := json.MarshalIndent(serverContext{Cluster: resp.Msg.GetCluster(), Server: r.Server, Servers: r.Servers, CA: resp.Msg.GetCaPem(), Former: resp.Msg.GetFormerPem(), Certificate: resp.Msg.GetCertificatePem()}, "", "  ")
			if err != nil {
				return err
			}
			fmt.Fprintf(g.stdio.Err, "%s may come in with role %s; next, on the machine of %s: imagectl operators accept FILE\n", text(args[0]), text(role), text(args[0]))
			_, err = fmt.Fprintf(g.stdio.Out, "%s\n", out)
			return err
		},
	}
	cmd.Flags().StringVar(&role, "role", string(pki.RoleReader), "admin, operator, reader or backup")
	cmd.Flags().StringVar(&file, "csr", "", "`file` with the person's request")
	cmd.Flags().BoolVar(&replace, "replace", false, "take away the key or role that the person has")
	return cmd
}

func newOperatorsAccept(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "accept FILE",
		Short: "Take what an admin sent as the context of this machine",
		Long: "Take what imagectl operators add printed as the context of this machine. Whoever\n" +
			"sends it says which server you trust, so it has to come from your admin. The\n" +
			"certificate in it lives for hours and is renewed by itself, as long as nobody has\n" +
			"revoked you.",
		Example: "  imagectl operators accept ada.json && imagectl status",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("say which file; see %s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			keyFile, err := operatorKeyPath()
			if err != nil {
				return err
			}
			c, err := acceptContext(args[0], keyFile)
			if err != nil {
				return err
			}
			path, err := contextPath()
			if err != nil {
				return err
			}
			if err := c.write(path); err != nil {
				return err
			}
			fmt.Fprintf(g.stdio.Out, "%s: cluster %s at %s\n", path, text(c.Cluster), text(c.Server))
			return nil
		},
	}
}

func newOperatorsLs(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List who may operate this cluster, and who may no more",
		Example: "  imagectl operators ls\n  imagectl operators ls -o json",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().ListOperators(cmd.Context(), connect.NewRequest(&api.ListOperatorsRequest{}))
			if err != nil {
				return r.explain(err)
			}
			if f == formatJSON {
				return printMessages(g.stdio.Out, resp.Msg.GetOperators())
			}
			var rows [][]string
			for _, p := range resp.Msg.GetOperators() {
				key, what := p.GetKey(), ""
				if p.GetLocal() {
					key, what = "", "imagectl serve keeps its context file"
				}
				if p.GetRevokedAt() != nil {
					what = fmt.Sprintf("revoked %s: %s", p.GetRevokedAt().AsTime().Local().Format(time.DateTime), p.GetRevokedReason())
				}
				rows = append(rows, []string{p.GetName(), p.GetRole(), p.GetAddedAt().AsTime().Local().Format(time.DateTime), shortSubject(p.GetAddedBy()), key[:min(len(key), 16)], what})
			}
			return table(g.stdio.Out, []string{"NAME", "ROLE", "SINCE", "BY", "KEY", "WHAT"}, rows)
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

func newOperatorsRevoke(g *globals) *cobra.Command {
	var f format
	var reason string
	cmd := &cobra.Command{
		Use:   "revoke NAME...",
		Short: "Keep a person out from now on",
		Long: "Keep a person out from now on: key and certificates are refused by the server at\n" +
			"once and by nodes with their next call to it. The name stays on record; starting\n" +
			"imagectl serve under it gives no certificate either. An admin may add it again with\n" +
			"another key.",
		Example: `  imagectl operators revoke ada --reason "left us"`,
		Args:    needNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().RevokeOperators(cmd.Context(), connect.NewRequest(&api.RevokeOperatorsRequest{Names: args, Reason: reason}))
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

func newOperatorsRequests(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "requests",
		Short: "List what waits for a second person",
		Long: "List what waits for a second person, because policy.secondPerson of cluster.yaml asks\n" +
			"for one. A request is forgotten after an hour.",
		Example: "  imagectl operators requests",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().ListRequests(cmd.Context(), connect.NewRequest(&api.ListRequestsRequest{}))
			if err != nil {
				return r.explain(err)
			}
			if f == formatJSON {
				return printMessages(g.stdio.Out, resp.Msg.GetRequests())
			}
			var rows [][]string
			for _, q := range resp.Msg.GetRequests() {
				rows = append(rows, []string{q.GetId(), q.GetBy(), q.GetWhat(), q.GetUntil().AsTime().Local().Format(time.DateTime), q.GetApprovedBy()})
			}
			return table(g.stdio.Out, []string{"ID", "WHO", "WHAT", "UNTIL", "AGREED"}, rows)
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

func newOperatorsApprove(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "approve ID",
		Short:   "Agree to what another person asked for",
		Long:    "Agree to what another person asked for. It is not done by that: the person repeats\nthe command, which then goes through, once.",
		Example: "  imagectl operators approve 5b1d7c0e",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("say which request; imagectl operators requests lists them")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().ApproveRequest(cmd.Context(), connect.NewRequest(&api.ApproveRequestRequest{Id: args[0]}))
			if err != nil {
				return r.explain(err)
			}
			q := resp.Msg.GetRequest()
			fmt.Fprintf(g.stdio.Out, "%s may %s, once, until %s\n", text(q.GetBy()), text(q.GetWhat()), q.GetUntil().AsTime().Local().Format(time.DateTime))
			return nil
		},
	}
}
