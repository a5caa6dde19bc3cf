package oci

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// servedType is the artifact type of what servers serve, and what its layers' types
// begin with.
const servedType = "application/vnd.imagectl.served.v1"

// servedTag names the newest set; no image has such a tag, whose name ends in a role.
func servedTag(set string) string { return set + "_served" }

// Keep implements shelf.Place: a blob for each artefact, and a manifest that names them
// all, so that the registry keeps them, under a tag that moves from build to build.
func (t *Target) Keep(ctx context.Context, set string, artefacts []store.Artefact, dir string, ev upload.Events) error {
	t, err := t.once()
	if err != nil {
		return err
	}
	config, err := inMemory(emptyValue, emptyType)
	if err != nil {
		return err
	}
	blobs := []blob{config}
	m := v1.Manifest{
		ArtifactType: servedType,
		Config:       v1.Descriptor{MediaType: config.mediaType, Size: config.size, Digest: config.digest},
	}
	for _, a := range artefacts {
		f, err := os.Open(filepath.Join(dir, a.Name))
		if err != nil {
			return fmt.Errorf("reading what was built: %w", err)
		}
		defer f.Close()
		b, err := served(a, f, ev)
		if err != nil {
			return err
		}
		if err := t.sendBlobs(ctx, b); err != nil {
			return err
		}
		blobs = append(blobs, b)
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: b.mediaType, Size: b.size, Digest: b.digest, Annotations: map[string]string{ociTitle: a.Name}})
	}
	if err := t.sendBlobs(ctx, config); err != nil {
		return err
	}
	made, err := encode(m)
	if err != nil {
		return err
	}
	ref := t.repo.Tag(servedTag(set))
	return t.put(ctx, ref.Name(), ref, made, blobs...)
}

// served is the blob of an artefact. The registry compares its digest.
func served(a store.Artefact, f *os.File, ev upload.Events) (blob, error) {
	digest, err := v1.NewHash("sha256:" + a.SHA256)
	if err != nil {
		return blob{}, fmt.Errorf("reading the digest of %s: %w", a.Name, err)
	}
	var done atomic.Int64
	open := func() io.ReadCloser {
		done.Store(0) // the library begins again
		return &counted{io.NopCloser(io.NewSectionReader(f, 0, a.Size)), func(n int) {
			ev(upload.Event{Phase: "sending " + a.Name, Done: done.Add(int64(n)), Total: a.Size})
		}}
	}
	return blob{digest, a.Size, types.MediaType(servedType + "." + string(a.Format)), open}, nil
}

// Open implements shelf.Place.
func (t *Target) Open(ctx context.Context, a store.Artefact) (io.ReadCloser, error) {
	ref := t.repo.Digest("sha256:" + a.SHA256)
	l, err := remote.Layer(ref, t.with(ctx)...)
	if err != nil {
		return nil, failed(ctx, "opening "+ref.Name(), err)
	}
	r, err := l.Compressed()
	if err != nil {
		return nil, failed(ctx, "opening "+ref.Name(), err)
	}
	return r, nil
}
