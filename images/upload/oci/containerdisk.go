package oci

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imagectl/imagectl/images/upload"
)

// qemuUser is whom KubeVirt runs QEMU as: the disk has to be its own (KubeVirt's
// containerDisk documentation).
const qemuUser = 107

// diskLayer is the layer of a containerDisk: an archive with the disk under disk/,
// made anew each time that it is read.
func diskLayer(img upload.Image) (blob, error) {
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "disk/", Mode: 0o555, Uid: qemuUser, Gid: qemuUser},
		{Typeflag: tar.TypeReg, Name: "disk/" + path.Base(img.File.Name()), Mode: 0o440, Uid: qemuUser, Gid: qemuUser, Size: img.Size},
	} {
		if err := w.WriteHeader(&h); err != nil {
			return blob{}, fmt.Errorf("writing the archive of a containerDisk: %w", err)
		}
	}
	header := head.Bytes()
	// The file up to a whole block, and two blocks of zeros: the end.
	const block = 512
	tail := make([]byte, (block-img.Size%block)%block+2*block)
	open := func() io.ReadCloser {
		return io.NopCloser(io.MultiReader(bytes.NewReader(header), io.NewSectionReader(img.File, 0, img.Size), bytes.NewReader(tail)))
	}
	digest, size, err := v1.SHA256(open())
	if err != nil {
		return blob{}, fmt.Errorf("reading %s: %w", img.File.Name(), err)
	}
	return blob{digest, size, types.OCIUncompressedLayer, open}, nil
}

// diskConfig is the container image's configuration: nothing runs in it.
func diskConfig(img upload.Image, layer blob) (blob, error) {
	c := v1.ConfigFile{Architecture: cmp.Or(img.Labels["arch"], "amd64"), OS: "linux", RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{layer.digest}}}
	raw, err := json.Marshal(c)
	if err != nil {
		return blob{}, fmt.Errorf("writing the configuration of a containerDisk: %w", err)
	}
	return inMemory(string(raw), types.OCIConfigJSON)
}
