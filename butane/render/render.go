// Package render writes Ignition 3.4.0 configs, which every current Flatcar
// channel reads: one for the installed image of a role, one for the netbooted
// installer, and one for each diskless machine. All carry the lock-down; none carries a
// secret. The same input gives the same bytes.
//
// An installed node's identity, node.json included, is not in its image: the
// installer leaves it in ROOT. System extensions come by links in ROOT, not by
// Ignition.
package render

import (
	"fmt"
	"strings"

	// Butane's own encoder: it leaves out empty structs, which encoding/json writes.
	"github.com/clarketm/json"
	ignition "github.com/coreos/ignition/v2/config/v3_4"
	"github.com/coreos/ignition/v2/config/v3_4/types"
	"github.com/vincent-petithory/dataurl"

	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/butane/lockdown"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/butane/snippet"
)

// specVersion is what Butane flatcar 1.1.0 translates to. Newer ones are not
// read by the LTS channel.
const specVersion = "3.4.0"

// Role returns config.ign of a role's installed image, for the root of its OEM
// file system. The user's snippets come first and the lock-down is merged over
// them, so that it always wins.
func Role(r plan.Role) ([]byte, error) {
	cfg, err := role(r)
	if err != nil {
		return nil, err
	}
	b, err := encode(cfg)
	if err != nil {
		return nil, fmt.Errorf("rendering role %s: %w", r.Name, err)
	}
	return b, nil
}

func role(r plan.Role) (types.Config, error) {
	cfg := types.Config{Ignition: types.Ignition{Version: specVersion}}
	for _, s := range r.Butane {
		child, found := snippet.Translate(s.File, s.Content, s.Dir)
		if err := found.Err(); err != nil {
			return types.Config{}, fmt.Errorf("rendering role %s: %w", r.Name, err)
		}
		cfg = ignition.Merge(cfg, child)
	}
	cfg = ignition.Merge(cfg, closedDoors())
	cfg = ignition.Merge(cfg, kubernetesNode())
	return ignition.Merge(cfg, acceleratedCards()), nil
}

// InstallerInput is what the first Ignition of a netbooted installer needs.
type InstallerInput struct {
	// NodeConfig is node.json in mode installer.
	NodeConfig []byte
	// AgentURL is where the imagectl extension (imagectl.raw) is served.
	AgentURL string
	// AgentSHA256 is its digest in hexadecimal: the way there need not be trusted.
	AgentSHA256 string
	// AgentPath is where the extension lies already, for an installer that was loaded
	// with it; then the two above are not needed.
	AgentPath string
	// Links is what InstallerLinks returned; empty for none.
	Links []byte
}

// Installer returns the first Ignition config of a netbooted machine.
func Installer(in InstallerInput) ([]byte, error) {
	conf, err := nodeconf.Parse(in.NodeConfig)
	if err != nil {
		return nil, fmt.Errorf("rendering the installer's Ignition: %w", err)
	}
	if conf.Mode != nodeconf.Installer {
		return nil, fmt.Errorf("rendering the installer's Ignition: node.json is for mode %q, want %q", conf.Mode, nodeconf.Installer)
	}
	cfg := types.Config{Ignition: types.Ignition{Version: specVersion}}
	cfg.Storage.Files = append(cfg.Storage.Files, inline(nodeconf.Path, 0o644, string(in.NodeConfig)))
	if len(in.Links) > 0 {
		cfg.Storage.Files = append(cfg.Storage.Files, inline(nodeconf.LinksPath, 0o644, string(in.Links)))
	}
	const agent = "/etc/extensions/imagectl.raw"
	if in.AgentPath != "" {
		cfg.Storage.Links = append(cfg.Storage.Links, types.Link{
			Node: types.Node{Path: agent}, LinkEmbedded1: types.LinkEmbedded1{Target: &in.AgentPath, Hard: ptr(false)},
		})
	} else {
		cfg.Storage.Files = append(cfg.Storage.Files, file(agent, 0o644, types.Resource{
			Source:       &in.AgentURL,
			Verification: types.Verification{Hash: ptr("sha256-" + strings.ToLower(in.AgentSHA256))},
		}))
	}
	b, err := encode(ignition.Merge(cfg, closedDoors()))
	if err != nil {
		return nil, fmt.Errorf("rendering the installer's Ignition: %w", err)
	}
	return b, nil
}

// Medium returns config.ign of an installer that was not netbooted, for its OEM
// directory: where to get what Installer returned. The lock-down is in both, so
// that an answer which says nothing of a door leaves it closed.
func Medium(url string) ([]byte, error) {
	cfg := types.Config{Ignition: types.Ignition{
		Version: specVersion,
		Config:  types.IgnitionConfig{Merge: []types.Resource{{Source: &url}}},
	}}
	b, err := encode(ignition.Merge(cfg, closedDoors()))
	if err != nil {
		return nil, fmt.Errorf("rendering the Ignition of the installer's medium: %w", err)
	}
	return b, nil
}

// GrubCfg returns grub.cfg for the root of the OEM file system. Its one line has
// the only form that Flatcar's ignition-kargs-helper understands.
func GrubCfg(r plan.Role) []byte {
	return []byte("set linux_append=\"" + strings.Join(append(lockdown.KernelArgs(), r.KernelArgs...), " ") + "\"\n")
}

func closedDoors() types.Config {
	cfg := types.Config{Ignition: types.Ignition{Version: specVersion}}
	for _, d := range lockdown.Doors() {
		for _, name := range d.Masks {
			cfg.Systemd.Units = append(cfg.Systemd.Units, types.Unit{Name: name, Mask: ptr(true)})
		}
		for _, u := range d.Units {
			cfg.Systemd.Units = append(cfg.Systemd.Units, types.Unit{Name: u.Name, Contents: ptr(u.Content)})
		}
		for _, l := range d.Links {
			cfg.Storage.Links = append(cfg.Storage.Links, types.Link{
				Node:          types.Node{Path: l.Path, Overwrite: ptr(true)},
				LinkEmbedded1: types.LinkEmbedded1{Target: ptr(l.Target), Hard: ptr(false)},
			})
		}
		for _, f := range d.Files {
			cfg.Storage.Files = append(cfg.Storage.Files, inline(f.Path, f.Mode, f.Content))
		}
	}
	for _, u := range lockdown.Users() {
		user := types.PasswdUser{Name: u.Name, Shell: ptr(u.Shell)}
		for _, g := range u.Groups {
			user.Groups = append(user.Groups, types.Group(g))
		}
		cfg.Passwd.Users = append(cfg.Passwd.Users, user)
	}
	return cfg
}

// kubernetesNode is what kubelet, kube-proxy and CNI plugins expect of the kernel.
func kubernetesNode() types.Config {
	return types.Config{
		Ignition: types.Ignition{Version: specVersion},
		Storage: types.Storage{Files: []types.File{
			inline("/etc/modules-load.d/80-imagectl-kubernetes.conf", 0o644, "overlay\nbr_netfilter\n"),
			inline("/etc/sysctl.d/80-imagectl-kubernetes.conf", 0o644, ""+
				"# Pods talk through the node, and kube-proxy sees bridged traffic.\n"+
				"net.ipv4.ip_forward = 1\n"+
				"net.bridge.bridge-nf-call-iptables = 1\n"+
				"net.bridge.bridge-nf-call-ip6tables = 1\n"+
				"# A node that panics comes back by itself.\n"+
				"kernel.panic = 10\n"+
				"kernel.panic_on_oops = 1\n"+
				"# kubelet sets it anyway; from the start is better.\n"+
				"vm.overcommit_memory = 1\n"),
		}},
	}
}

func inline(path string, mode int, content string) types.File {
	return file(path, mode, types.Resource{Source: ptr("data:," + dataurl.EscapeString(content))})
}

// file is a file that is written whether or not the base system has it.
func file(path string, mode int, content types.Resource) types.File {
	return types.File{
		Node:          types.Node{Path: path, Overwrite: ptr(true)},
		FileEmbedded1: types.FileEmbedded1{Mode: &mode, Contents: content},
	}
}

func ptr[T any](v T) *T { return &v }

// encode writes a config and has Ignition's own parser judge it.
func encode(cfg types.Config) ([]byte, error) {
	b, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return nil, err
	}
	_, rep, err := ignition.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("ignition does not accept the result: %w: %s", err, strings.TrimSpace(rep.String()))
	}
	return append(b, '\n'), nil
}
