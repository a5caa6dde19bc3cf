//go:build e2e

package byhand

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/clarketm/json"
	ignition "github.com/coreos/ignition/v2/config/v3_4"
	"github.com/coreos/ignition/v2/config/v3_4/types"
	"github.com/vincent-petithory/dataurl"

	"github.com/imagectl/imagectl/test/lab"
)

const (
	// handPort is where the test types.
	handPort = "hand"
	// handDir has on a machine what came with its disk; flannel is the pod network's manifest.
	handDir = "/opt/hand"
	flannel = "flannel.yaml"
)

// handDisk writes a machine's disk: its role's image, of the size of the other cluster's
// disks, without our agent, with a shell.
func (h hand) handDisk(ctx context.Context, m lab.Machine, etcdImage string) error {
	disk := h.config(m).Disk
	images, err := filepath.Glob(filepath.Join(h.rack.Site, "out", "demo-"+m.Role+"-*.raw"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("looking for the image of role %s: want one, have %q: %v", m.Role, images, err)
	}
	for _, argv := range [][]string{
		{"cp", "--sparse=always", images[0], disk},
		{"truncate", "--size", "24G", disk},
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("running %v: %w: %s", argv, err, out)
		}
	}
	if err := lab.OnPartition(disk, "OEM", func(dir string) error { return h.rewriteIgnition(m, filepath.Join(dir, "config.ign")) }); err != nil {
		return err
	}
	if m.Role == "worker" {
		return nil
	}
	return lab.OnPartition(disk, "ROOT", func(dir string) error {
		if err := os.MkdirAll(filepath.Join(dir, handDir), 0o755); err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, "cp", etcdImage, filepath.Join(dir, handDir, EtcdImage)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("copying etcd's image: %w: %s", err, out)
		}
		return nil
	})
}

// rewriteIgnition adds what makes a machine of the image that somebody works at.
func (h hand) rewriteIgnition(m lab.Machine, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	image, _, err := ignition.Parse(text)
	if err != nil {
		return fmt.Errorf("reading the image's Ignition config: %w", err)
	}
	addon, err := os.ReadFile(filepath.Join(h.rack.Upstream, "addons", flannel))
	if err != nil {
		return err
	}
	text, err = json.Marshal(ignition.Merge(image, handIgnition(m, string(addon))))
	if err != nil {
		return err
	}
	if _, report, err := ignition.Parse(text); err != nil {
		return fmt.Errorf("ignition does not accept what was made of the image's config: %w: %s", err, report.String())
	}
	return os.WriteFile(file, text, 0o644)
}

// handIgnition: no agent of ours and no firewall, which the others' traffic would have to
// get through; the address, name and shell that the agent and the server give elsewhere.
func handIgnition(m lab.Machine, addon string) types.Config {
	return types.Config{
		Ignition: types.Ignition{Version: "3.4.0"},
		Systemd: types.Systemd{Units: []types.Unit{
			{Name: "bootstrapd.service", Mask: ptr(true)},
			// kubelet.service of the image requires it.
			{Name: "imagectl-firewall.service", Contents: ptr("[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/bin/true\n")},
			// A port can be opened once only, so bash reads and writes by one descriptor.
			{Name: "hand.service", Enabled: ptr(true), Contents: ptr("[Unit]\nDescription=a shell for who makes the cluster by hand\n" +
				"[Service]\nEnvironment=HOME=/root\nRestart=always\nRestartSec=2\n" +
				"ExecStart=/bin/bash -c 'until [ -e /dev/virtio-ports/" + handPort + " ]; do sleep 1; done; exec /bin/bash 0<>/dev/virtio-ports/" + handPort + " 1>&0 2>&0'\n" +
				"[Install]\nWantedBy=multi-user.target\n")},
		}},
		Storage: types.Storage{Files: []types.File{
			inline("/etc/hostname", m.Name+"\n"),
			inline("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"+m.Address+" "+m.Name+"\n"),
			inline("/etc/systemd/network/10-hand.network", "[Match]\nMACAddress="+m.MAC+"\n[Network]\nAddress="+m.Address+"/24\nGateway="+lab.ServerAddress+"\n"),
			inline(handDir+"/"+flannel, addon),
		}},
	}
}

func inline(path, content string) types.File {
	return types.File{
		Node:          types.Node{Path: path, Overwrite: ptr(true)},
		FileEmbedded1: types.FileEmbedded1{Mode: ptr(0o644), Contents: types.Resource{Source: ptr("data:," + dataurl.EscapeString(content))}},
	}
}

func ptr[T any](v T) *T { return &v }
