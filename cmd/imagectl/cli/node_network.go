package cli

import (
	"fmt"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/butane/render"
)

// stepNetworkLinks is the agent's step that waits for the machine's next start.
const stepNetworkLinks = "network-links"

// nodeNetworks gives each machine of the plan the files of its network: the installer
// leaves those without secrets on the disk, so that the first boot has them; the node, which
// has proved who it is, gets all. Passwords are read now, so that what is missing is said
// before anything is served.
func (g *globals) nodeNetworks(machines []serverapi.Machine, p plan.Plan, unseal func([]byte) ([]byte, error)) error {
	networks := render.NewNetworks(p)
	known := map[cluster.Secret]string{}
	read := func(from cluster.Secret) (string, error) {
		if password, ok := known[from]; ok {
			return password, nil
		}
		secret, err := g.secret(from, unseal)
		if err == nil {
			known[from] = string(secret)
		}
		return string(secret), err
	}
	for i, m := range p.Machines {
		passwords := render.Passwords{Mirrors: map[string]string{}}
		for _, mirror := range m.Network.Mirrors {
			if mirror.Username == "" {
				continue
			}
			var err error
			if passwords.Mirrors[mirror.Name], err = read(mirror.Password); err != nil {
				return fmt.Errorf("reading the password of machine %s for the mirror of %s: %w", m.Name, mirror.Name, err)
			}
		}
		if proxy := m.Network.Proxy; proxy.Username != "" {
			var err error
			if passwords.Proxy, err = read(proxy.Password); err != nil {
				return fmt.Errorf("reading the password of machine %s for its proxy: %w", m.Name, err)
			}
		}
		machines[i].Files = wire(networks.Files(m.Network, render.Passwords{}))
		machines[i].Network = &api.Network{Files: wire(networks.Files(m.Network, passwords))}
	}
	return nil
}

func wire(files []render.File) []*api.File {
	var out []*api.File
	for _, f := range files {
		out = append(out, &api.File{Path: f.Path, Mode: f.Mode, Content: f.Content})
	}
	return out
}
