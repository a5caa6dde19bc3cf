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

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	registry "github.com/google/go-containerregistry/pkg/v1/types"
)

// WriteEtcdImage writes the one image that kubeadm's own etcd needs beside the others: the
// program that imagectl's control planes run as a service. It has the name that kubeadm
// asks for, whatever version the program is.
func WriteEtcdImage(ctx context.Context, upstream, kubernetes, file string) error {
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
