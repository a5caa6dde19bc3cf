package cli

import (
	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

func newMachinesConfig(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print what tells a virtual machine which server it belongs to",
		Long: "Print what tells a virtual machine which server it belongs to: node.json, with the\n" +
			"server's address and CA. It is public, the same for all machines of the cluster,\n" +
			"and for those that are cloned from an image and not installed. Give it to them as\n" +
			"the platform can (docs/platforms.md), as it is or in base64: as QEMU's fw_cfg key\n" +
			"opt/org.imagectl/node, as OpenNebula's context variable IMAGECTL_NODE, or as user\n" +
			"data. They then ask to be enrolled: imagectl machines approve.",
		Example: "  imagectl machines config > node.json\n" +
			"  qemu-system-x86_64 … -fw_cfg name=opt/org.imagectl/node,file=node.json",
		Args: needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			// Not a call: what the context pins is what the machines shall pin.
			r, err := dial()
			if err != nil {
				return err
			}
			text, err := nodeconf.Config{Cluster: r.Cluster, Mode: nodeconf.Node, Servers: []string{r.Server}, CA: r.CA}.Encode()
			if err != nil {
				return err
			}
			_, err = g.stdio.Out.Write(text)
			return err
		},
	}
}
