package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
)

func newServerEncryption(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "encryption-key",
		Short:   "Show and replace the key that Kubernetes' Secrets are encrypted with in etcd",
		Example: "  imagectl server encryption-key show\n  imagectl server encryption-key rotate",
		Args:    needVerb,
		RunE:    func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newEncryptionShow(g), newEncryptionRotate(g))
	return cmd
}

func newEncryptionShow(g *globals) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show which key is in use, and what a rotation waits for",
		Example: "  imagectl server encryption-key show\n  imagectl server encryption-key show -o json",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().ShowEncryption(cmd.Context(), connect.NewRequest(&api.ShowEncryptionRequest{}))
			if err != nil {
				return r.explain(err)
			}
			if f == formatJSON {
				return printMessage(g.stdio.Out, resp.Msg.GetEncryption())
			}
			return printEncryption(g.stdio.Out, resp.Msg.GetEncryption())
		},
	}
	formatFlag(cmd, &f)
	return cmd
}

func newEncryptionRotate(g *globals) *cobra.Command {
	var alsoRead []string
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the key, while everything runs",
		Long: "Make another key, let every API server read with it, then write with it, and have\n" +
			"all Secrets written anew. It goes on by itself: imagectl status says how far it is.\n" +
			"It waits for every control plane, and for a backup of the server's state that has the\n" +
			"key, where backups are made. Allow for some minutes: API servers look for keys once a\n" +
			"minute.\n\n" +
			"On a cluster from before Secrets were encrypted it turns that on, with the audit log\n" +
			"and kubernetes.podSecurity of cluster.yaml: API servers are started anew for it, one at\n" +
			"a time.\n\n" +
			"After a snapshot of etcd from before a rotation was restored, --also-read names the\n" +
			"key of that time (imagectl server encryption-key show), or identity when Secrets were\n" +
			"not encrypted then: API servers read with it too, until all is written anew.",
		Example: "  imagectl server encryption-key rotate\n  imagectl server encryption-key rotate --also-read k-0a1b2c3d",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := g.dial()
			if err != nil {
				return err
			}
			resp, err := r.operator().RotateEncryption(cmd.Context(), connect.NewRequest(&api.RotateEncryptionRequest{AlsoRead: alsoRead}))
			if err != nil {
				return r.explain(err)
			}
			fmt.Fprintln(g.stdio.Out, resp.Msg.GetMessage())
			return printEncryption(g.stdio.Out, resp.Msg.GetEncryption())
		},
	}
	cmd.Flags().StringSliceVar(&alsoRead, "also-read", nil, "former `keys` that the Secrets of a restored snapshot are encrypted with")
	return cmd
}

func printEncryption(w io.Writer, e *api.EncryptionView) error {
	made := func(at *timestamppb.Timestamp) string {
		if at == nil {
			return ""
		}
		return at.AsTime().Local().Format(time.DateTime)
	}
	rows := [][]string{{e.GetStage(), strings.Join(e.GetKeys(), ", "), made(e.GetMadeAt())}}
	for _, k := range e.GetFormer() {
		rows = append(rows, []string{"former", k.GetName(), made(k.GetMadeAt())})
	}
	if err := table(w, []string{"STAGE", "KEYS", "MADE"}, rows); err != nil {
		return err
	}
	for _, each := range e.GetWaits() {
		fmt.Fprintf(w, "waits: %s\n", each)
	}
	return nil
}
