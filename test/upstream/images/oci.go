package main

import (
	"bytes"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// image is one container image: its full reference, its layers from the
// bottom, and what it runs.
type image struct {
	name       string
	layers     []v1.Layer
	entrypoint []string
}

// layerSet makes layers and keeps the first error, so that a list of images
// reads as a list.
type layerSet struct{ err error }

// add returns t as an uncompressed layer, nil after an error.
func (s *layerSet) add(t tree) v1.Layer {
	var content bytes.Buffer
	if s.err == nil {
		s.err = t.write(&content)
	}
	if s.err != nil {
		return nil
	}
	return static.NewLayer(content.Bytes(), types.OCIUncompressedLayer)
}

// writeLayout writes an OCI image layout with the images into the directory.
func writeLayout(directory string, images []image) error {
	where, err := layout.Write(directory, empty.Index)
	if err != nil {
		return err
	}
	for _, i := range images {
		built, err := i.build()
		if err != nil {
			return err
		}
		// containerd takes an image's name from this annotation
		// (images.AnnotationImageName); the index keeps no other.
		err = where.AppendImage(built,
			layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"}),
			layout.WithAnnotations(map[string]string{"io.containerd.image.name": i.name}))
		if err != nil {
			return err
		}
	}
	return nil
}

func (i image) build() (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	built, err := mutate.AppendLayers(base, i.layers...)
	if err != nil {
		return nil, err
	}
	config, err := built.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{
		Entrypoint: i.entrypoint,
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	return mutate.ConfigFile(built, config)
}
