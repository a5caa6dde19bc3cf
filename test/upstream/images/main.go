// Command pack writes the container images of a test cluster into one archive
// that `ctr -n k8s.io images import` takes: an OCI image layout in a tar.
//
// The archive depends only on the files it is given. Layers are uncompressed,
// because an emulated machine checks digests faster than it inflates, and
// images share layers: the Kubernetes program is there once for all of kube-*,
// the Debian programs that kube-proxy and flannel call once for both.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Tags that kubeadm 1.36.3 asks for (cmd/kubeadm/app/constants) and that
// containerd 2.4.2 starts sandboxes from (internal/cri/config).
const (
	corednsTag = "v1.14.2"
	pauseTag   = "3.10.2"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("pack", flag.ContinueOnError)
	var (
		kubernetes        = flags.String("kubernetes", "", "the dispatching Kubernetes program")
		kubernetesVersion = flags.String("kubernetes-version", "", "tag of the kube-* images")
		coredns           = flags.String("coredns", "", "the coredns program")
		flanneld          = flags.String("flanneld", "", "the flanneld program")
		flannelVersion    = flags.String("flannel-version", "", "tag of the flannel image")
		flannelCNI        = flags.String("flannel-cni", "", "flannel's CNI plugin")
		userland          = flags.String("userland", "", "directory with the Debian programs, laid out as a root")
		pause             = flags.String("pause", "", "the pause program")
		probe             = flags.String("probe", "", "the probe program")
		output            = flags.String("o", "", "archive to write")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}

	var layers layerSet
	control := []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"}
	kube := tree{"usr/local/bin/kubernetes": program(*kubernetes)}
	for _, name := range control {
		kube["usr/local/bin/"+name] = symlink("kubernetes")
	}
	kubeLayer := layers.add(kube)
	debian, err := treeOf(*userland)
	if err != nil {
		return err
	}
	debianLayer := layers.add(debian)

	var images []image
	for _, name := range control {
		i := image{
			name:       "registry.k8s.io/" + name + ":" + *kubernetesVersion,
			layers:     []v1.Layer{kubeLayer},
			entrypoint: []string{"/usr/local/bin/" + name},
		}
		if name == "kube-proxy" {
			i.layers = append(i.layers, debianLayer)
		}
		images = append(images, i)
	}
	images = append(images,
		image{
			name:       "registry.k8s.io/coredns/coredns:" + corednsTag,
			layers:     []v1.Layer{layers.add(tree{"coredns": program(*coredns)})},
			entrypoint: []string{"/coredns"},
		},
		image{
			name:       "registry.k8s.io/pause:" + pauseTag,
			layers:     []v1.Layer{layers.add(tree{"pause": program(*pause)})},
			entrypoint: []string{"/pause"},
		},
		image{
			name: "ghcr.io/flannel-io/flannel:" + *flannelVersion,
			layers: []v1.Layer{debianLayer, layers.add(tree{
				"opt/bin/flanneld": program(*flanneld),
				"flannel":          program(*flannelCNI),
			})},
			entrypoint: []string{"/opt/bin/flanneld"},
		},
		image{
			name:       "docker.io/imagectl/probe:v1",
			layers:     []v1.Layer{layers.add(tree{"probe": program(*probe)})},
			entrypoint: []string{"/probe"},
		},
	)
	if layers.err != nil {
		return layers.err
	}
	scratch, err := os.MkdirTemp(filepath.Dir(*output), ".layout")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if err := writeLayout(scratch, images); err != nil {
		return fmt.Errorf("writing the image layout: %w", err)
	}
	if err := writeArchive(*output, scratch); err != nil {
		return fmt.Errorf("writing %s: %w", *output, err)
	}
	return nil
}
