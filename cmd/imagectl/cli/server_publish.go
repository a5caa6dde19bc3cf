package cli

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

func newServerPublish(g *globals) *cobra.Command {
	var out, cache string
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Send what servers serve to the store that they share",
		Long: "Send what imagectl serve gives to machines (the installer, and an image for each role)\n" +
			"to the store of server.artefacts in cluster.yaml. A server that has the manifest of\n" +
			"the output directory, and not the rest, gets that from there when it starts, and\n" +
			"believes only what has the digests of the manifest. What is there is not sent again.\n\n" +
			"All of it is public on the boot network, and holds no secret of imagectl's.",
		Example: "  imagectl server publish\n  imagectl server publish --out out",
		Args:    needVerb,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.publish(cmd.Context(), out, cache)
		},
	}
	cmd.Flags().StringVar(&out, "out", "out", "output `directory` of imagectl build")
	cacheFlag(cmd, &cache)
	return cmd
}

func (g *globals) publish(ctx context.Context, out, cache string) error {
	p, err := g.plan()
	if err != nil {
		return err
	}
	place, err := g.shelf(p)
	if err != nil {
		return err
	}
	if place == nil {
		return usageError{fmt.Errorf("%s names no store that servers share: server.artefacts (docs/two-servers.md)", g.file)}
	}
	s, err := g.loadSite(ctx, p, sources{out: out, cache: cache})
	if err != nil {
		return err
	}
	shown := newProgress(g.stdio.Err)
	defer shown.close()
	err = place.Keep(ctx, p.Cluster, s.artefacts, out, func(e upload.Event) { shown.step(e.Phase, e.Done, e.Total) })
	shown.close()
	if err != nil {
		return uploadError(err)
	}
	var bytes int64
	for _, a := range s.artefacts {
		bytes += a.Size
	}
	fmt.Fprintf(g.stdio.Out, "%s has %d files, %s\n", p.Server.Artefacts, len(s.artefacts), size(bytes))
	fmt.Fprintf(g.stdio.Out, "next: bring cluster.yaml, imagectl.lock and %s to each server\n", filepath.Join(out, store.ManifestName))
	return nil
}
