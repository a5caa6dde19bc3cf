package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/butane/render"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/pxe/catalog"
)

// addExtensions makes a role's extensions servable, where it has diskless machines.
func (o *artefacts) addExtensions(ctx context.Context, r plan.Role) error {
	if !r.Diskless {
		return nil
	}
	for _, a := range o.manifest.Artefacts {
		if a.Role != r.Name || a.Format != store.Extension {
			continue
		}
		if err := o.serve(ctx, a); err != nil {
			return err
		}
		o.site.public = append(o.site.public, blobOf(a))
		o.site.extensions[r.Name] = append(o.site.extensions[r.Name], a)
	}
	if len(o.site.extensions[r.Name]) == 0 {
		return fmt.Errorf("%s has no extensions of role %s, which its diskless machines load: run imagectl build", filepath.Join(o.dir, store.ManifestName), r.Name)
	}
	return nil
}

// addDiskless makes what diskless machines boot, and returns their Ignition configs by
// name. It is public as all that is netbooted: who such a machine is, it has to prove at
// each start.
func (s *site) addDiskless(c *catalog.Config, ca string) (map[string][]byte, error) {
	c.Diskless = map[string]catalog.Diskless{}
	configs := map[string][]byte{}
	networks := render.NewNetworks(s.plan)
	for _, m := range s.plan.Machines {
		i := slices.IndexFunc(s.plan.Roles, func(r plan.Role) bool { return r.Name == m.Role })
		if !m.Diskless || i < 0 {
			continue
		}
		role := s.plan.Roles[i]
		conf, err := nodeconf.Config{Cluster: s.plan.Cluster, Mode: nodeconf.Node, Servers: s.servers(), CA: ca, Machine: m.Name, TPM: s.plan.Identity == plan.ByTPM}.Encode()
		if err != nil {
			return nil, err
		}
		in := render.DisklessInput{Machine: m.Name, Role: role, NodeConfig: conf, Network: networks.Files(m.Network, render.Passwords{})}
		for _, a := range s.extensions[m.Role] {
			in.Extensions = append(in.Extensions, render.ExtensionFile{Name: a.Extension, URL: s.fileURL(a), SHA256: a.SHA256})
		}
		if configs[m.Name], err = render.Diskless(in); err != nil {
			return nil, err
		}
		d := catalog.Diskless{Args: role.KernelArgs}
		if c.Configured {
			oem := new(fstree.Tree)
			if err := oem.AddFile("config.ign", 0o644, fstree.Bytes(configs[m.Name])); err != nil {
				return nil, err
			}
			if d.Archive, err = s.addArchive(s.plan.Cluster+"-"+m.Name, oem); err != nil {
				return nil, err
			}
		}
		c.Diskless[m.Name] = d
	}
	return configs, nil
}
