//go:build e2e

package byhand

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/clarketm/json"
	ignition "github.com/coreos/ignition/v2/config/v3_4"
	"github.com/coreos/ignition/v2/config/v3_4/types"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	registry "github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/vincent-petithory/dataurl"

	"github.com/imagectl/imagectl/test/lab"
)

// handPort is where the test types.
const handPort = "hand"

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
		if err := os.MkdirAll(filepath.Join(dir, "opt/hand"), 0o755); err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, "cp", etcdImage, filepath.Join(dir, "opt/hand/etcd.tar")).CombinedOutput()
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
	flannel, err := os.ReadFile(filepath.Join(h.rack.Upstream, "addons", "flannel.yaml"))
	if err != nil {
		return err
	}
	text, err = json.Marshal(ignition.Merge(image, handIgnition(m, string(flannel))))
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
func handIgnition(m lab.Machine, flannel string) types.Config {
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
			inline("/opt/hand/flannel.yaml", flannel),
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

// etcdImage writes the one image that kubeadm's own etcd needs beside the others: the
// program that imagectl's control planes run as a service. It has the name that kubeadm
// asks for, whatever version the program is.
func etcdImage(ctx context.Context, upstream, kubernetes, file string) error {
	kubeadm := filepath.Join(upstream, "kubernetes", kubernetes, "bin/linux/amd64/kubeadm")
	list, err := exec.CommandContext(ctx, kubeadm, "config", "images", "list", "--kubernetes-version", kubernetes).Output()
	if err != nil {
		return fmt.Errorf("asking kubeadm for its images: %w", err)
	}
	var tag name.Tag
	for line := range strings.Lines(string(list)) {
		if strings.Contains(line, "/etcd:") {
			if tag, err = name.NewTag(strings.TrimSpace(line)); err != nil {
				return err
			}
		}
	}
	found, err := filepath.Glob(filepath.Join(upstream, "etcd", "v*", "etcd"))
	if err != nil || len(found) != 1 || tag.TagStr() == "" {
		return fmt.Errorf("making etcd's image %s: found %v for a program (%v)", tag, found, err)
	}
	program, err := os.ReadFile(found[0])
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "usr/local/bin/etcd", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	if _, err := w.Write(program); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, static.NewLayer(layer.Bytes(), registry.DockerUncompressedLayer))
	if err != nil {
		return err
	}
	image, err = mutate.ConfigFile(image, withPlatform(image))
	if err != nil {
		return err
	}
	return tarball.WriteToFile(file, tag, image)
}

// withPlatform is an image's configuration for the machines of the rack.
func withPlatform(image v1.Image) *v1.ConfigFile {
	// An image in memory has its configuration at hand.
	config, _ := image.ConfigFile()
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return config
}
