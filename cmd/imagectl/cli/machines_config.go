package cli

import (
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

// configFlags are the flags of imagectl machines config.
type configFlags struct {
	token, out string
	lifetime   time.Duration
	replaceKey bool
	force      bool
	tpm        bool
}

func newMachinesConfig(g *globals) *cobra.Command {
	var f configFlags
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print what tells a virtual machine which server it belongs to",
		Long: "Print what tells a virtual machine which server it belongs to: node.json, with the\n" +
			"server's address and CA. It is public, the same for all machines of the cluster,\n" +
			"and for those that are cloned from an image and not installed. Give it to them as\n" +
			"the platform can (docs/platforms.md), as it is or in base64: as QEMU's fw_cfg key\n" +
			"opt/org.imagectl/node, as OpenNebula's context variable IMAGECTL_NODE, or as user\n" +
			"data. They then ask to be enrolled: imagectl machines approve.\n\n" +
			"With --token it is for one machine, and has a secret in it with which this machine\n" +
			"enrols itself, once and soon (identity.policy: token in cluster.yaml).",
		Example: "  imagectl machines config > node.json\n" +
			"  imagectl machines config --token w1 --out w1.json\n" +
			"  qemu-system-x86_64 … -fw_cfg name=opt/org.imagectl/node,file=node.json",
		Args: needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.token == "" && (f.lifetime != 0 || f.replaceKey || f.force) {
				return usageError{fmt.Errorf("--lifetime, --replace-key and --force are for --token NAME")}
			}
			minutes := f.lifetime / time.Minute
			if f.lifetime != 0 && (minutes < 1 || minutes*time.Minute != f.lifetime || minutes > 1<<20) {
				return usageError{fmt.Errorf("--lifetime %v: want whole minutes, such as 15m", f.lifetime)}
			}
			r, err := g.dial()
			if err != nil {
				return err
			}
			// What the context pins is what the machines shall pin.
			conf := nodeconf.Config{Cluster: r.Cluster, Mode: nodeconf.Node, Servers: []string{r.Server}, CA: r.CA, TPM: f.tpm}
			if f.token != "" {
				resp, err := r.operator().IssueToken(cmd.Context(), connect.NewRequest(&api.IssueTokenRequest{Machine: f.token, Minutes: uint32(minutes), ReplaceKey: f.replaceKey, Force: f.force}))
				if err != nil {
					return r.explain(err)
				}
				conf.Machine, conf.Token = f.token, resp.Msg.GetToken()
				fmt.Fprintf(g.stdio.Err, "%s: its token is good once, until %s\n", f.token, resp.Msg.GetNotAfter().AsTime().Local().Format(time.DateTime))
			}
			text, err := conf.Encode()
			if err != nil {
				return err
			}
			if f.out == "" || f.out == "-" {
				_, err = g.stdio.Out.Write(text)
				return err
			}
			if err := writePrivate(f.out, text); err != nil {
				return fmt.Errorf("writing %s: %w", f.out, err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&f.tpm, "tpm", false, "the machine proves itself by its TPM (identity.policy: tpm)")
	cmd.Flags().StringVar(&f.token, "token", "", "for this `machine` only, with a secret by which it enrols itself")
	cmd.Flags().DurationVar(&f.lifetime, "lifetime", 0, "how long the token is good for, up to 60m (default 15m)")
	cmd.Flags().BoolVar(&f.replaceKey, "replace-key", false, "the token may replace an approved key")
	cmd.Flags().BoolVar(&f.force, "force", false, "although etcd loses its quorum when that key's certificates are revoked")
	cmd.Flags().StringVar(&f.out, "out", "", "file to write, readable by its owner only (default standard output)")
	return cmd
}
