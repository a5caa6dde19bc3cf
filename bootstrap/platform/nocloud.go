package platform

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io/fs"

	"gopkg.in/yaml.v3"
)

// noCloud reads the medium of cloud-init's NoCloud (doc/rtd/reference/datasources/nocloud.rst),
// which Proxmox VE and KubeVirt write: network-config, and the machine's name in meta-data or,
// as Proxmox VE has it (qemu-server, Cloudinit.pm), in a #cloud-config, of which nothing else is
// read. A FAT label is in capitals.
func noCloud(ctx context.Context, m Machine) (Network, error) {
	for _, label := range []string{"cidata", "CIDATA"} {
		config, err := present(description(ctx, m, label, "network-config"))
		if err != nil {
			return Network{}, err
		}
		meta, err := present(description(ctx, m, label, "meta-data"))
		if err != nil {
			return Network{}, err
		}
		about, err := names(label+" meta-data", meta)
		if err != nil {
			return Network{}, err
		}
		name := about.name()
		if name == "" {
			name = cloudConfigName(ctx, m, label)
		}
		switch {
		case config != nil:
			n, err := netConfig(label+" network-config", config)
			n.Hostname = name
			return n, err
		case about.Interfaces != "":
			return Network{Hostname: name}, fmt.Errorf("%s meta-data: network-interfaces is in a form that is not read: write the file network-config", label)
		case name != "":
			return Network{From: label + " meta-data", Hostname: name}, nil
		}
	}
	return Network{}, fmt.Errorf("no medium of NoCloud says anything of the network: %w", fs.ErrNotExist)
}

// about is what a meta-data says of the machine.
type about struct {
	LocalHostname string    `yaml:"local-hostname"`
	Hostname      string    `yaml:"hostname"`
	Interfaces    string    `yaml:"network-interfaces"`
	Network       yaml.Node `yaml:"network"`
	Encoding      string    `yaml:"network.encoding"`
}

func (a about) name() string { return hostname(cmp.Or(a.LocalHostname, a.Hostname)) }

func names(from string, text []byte) (about, error) {
	var a about
	root, err := document(text)
	if err == nil {
		err = root.Decode(&a)
	}
	if err != nil {
		return about{}, fmt.Errorf("%s: %w", from, err)
	}
	return a, nil
}

// cloudConfigName is the word hostname of a #cloud-config. User data of any other kind, or that
// cannot be read, is none of ours, and gives no name.
func cloudConfigName(ctx context.Context, m Machine, label string) string {
	b, err := description(ctx, m, label, "user-data")
	if err != nil || !bytes.HasPrefix(b, []byte("#cloud-config")) {
		return ""
	}
	a, err := names(label+" user-data", b)
	if err != nil {
		return ""
	}
	return hostname(a.Hostname)
}
