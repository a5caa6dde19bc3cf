package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imagectl/imagectl/images/upload"
)

// get reads what a tag or digest names; found is false for none, and for an index.
func (t *Target) get(ctx context.Context, ref name.Reference) (m manifest, found bool, err error) {
	d, err := remote.Get(ref, t.with(ctx)...)
	if missing(err) {
		return m, false, nil
	}
	if err != nil {
		return m, false, failed(ctx, "reading "+ref.Name(), err)
	}
	if !d.MediaType.IsImage() {
		return m, false, nil
	}
	if m, err = decode(d.Manifest); err != nil {
		// Ours can be read.
		m = manifest{raw: d.Manifest, digest: d.Digest}
		m.Manifest.MediaType = d.MediaType
	}
	return m, true, nil
}

// look reads the manifest of an image's version; there is nil if there is none.
// Another disk, or another file of the same name, is refused.
func (t *Target) look(ctx context.Context, img upload.Image) (there *manifest, whole bool, err error) {
	ref := t.repo.Tag(versionTag(img.Name, img.Version))
	m, found, err := t.get(ctx, ref)
	if err != nil || !found {
		return nil, false, err
	}
	if !m.is(img) {
		return nil, false, fmt.Errorf("looking for %s: %w: it is there with the digest %q, and this disk has %q; a version never changes", ref.Name(), upload.ErrTaken, m.label(upload.LabelDigest), "sha256:"+img.Digest)
	}
	if (m.ArtifactType == artifactType) != (t.form == Artifact) {
		return nil, false, fmt.Errorf("looking for %s: %w: it is there in the other form; give %s a repository of its own", ref.Name(), upload.ErrTaken, t.form)
	}
	layer, found := m.layerOf(path.Base(img.File.Name()))
	if found && layer.Annotations[keyFile] != "sha256:"+img.SHA256 {
		return nil, false, fmt.Errorf("looking for %s: %w: its file %s has the digest %q, and this one has sha256:%s; a version never changes", ref.Name(), upload.ErrTaken, path.Base(img.File.Name()), layer.Annotations[keyFile], img.SHA256)
	}
	return &m, found, nil
}

// Preflight finds out whether the credentials may push and what is there. The
// specification has no question for space.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	t, err := t.once()
	if err != nil {
		return upload.Plan{}, err
	}
	if err := checkNames(img); err != nil {
		return upload.Plan{}, err
	}
	there, whole, err := t.look(ctx, img)
	if err != nil {
		return upload.Plan{}, err
	}
	var plan upload.Plan
	if there != nil {
		o := t.object(*there)
		if err := t.point(ctx, &o); err != nil {
			return upload.Plan{}, err
		}
		plan.Found = &o
	}
	if !whole {
		plan.Bytes = img.Size
		plan.Steps = append(plan.Steps,
			fmt.Sprintf("send %s (%d bytes) to %s, unless it is there", path.Base(img.File.Name()), img.Size, t.repo.Name()),
			"write its manifest with the tag "+versionTag(img.Name, img.Version))
	}
	missing, err := t.missingDocuments(ctx, img, there)
	for _, d := range missing {
		plan.Steps = append(plan.Steps, fmt.Sprintf("send %s, which refers to the manifest", path.Base(d.Path)))
	}
	return plan, err
}

// Upload sends the file, then the manifest with its tag, then the documents that
// refer to it. It leaves nothing that a registry does not clean up by itself, so
// the journal stays empty.
func (t *Target) Upload(ctx context.Context, img upload.Image, _ upload.Journal, ev upload.Events) (upload.Object, error) {
	t, err := t.once()
	if err != nil {
		return upload.Object{}, err
	}
	if err := checkNames(img); err != nil {
		return upload.Object{}, err
	}
	there, whole, err := t.look(ctx, img)
	if err != nil {
		return upload.Object{}, err
	}
	if !whole {
		if there, err = t.send(ctx, img, ev); err != nil {
			return upload.Object{}, err
		}
	}
	missing, err := t.missingDocuments(ctx, img, there)
	if err != nil {
		return upload.Object{}, err
	}
	for _, d := range missing {
		ev(upload.Event{Phase: "sending documents"})
		if err := t.attach(ctx, d, *there); err != nil {
			return upload.Object{}, err
		}
	}
	o := t.object(*there)
	return o, t.point(ctx, &o)
}

func (t *Target) send(ctx context.Context, img upload.Image, ev upload.Events) (*manifest, error) {
	layer, config, err := t.content(img)
	if err != nil {
		return nil, err
	}
	var done atomic.Int64
	told := layer
	told.open = func() io.ReadCloser {
		done.Store(0) // the library begins again
		return &counted{layer.open(), func(n int) { ev(upload.Event{Phase: "sending", Done: done.Add(int64(n)), Total: layer.size}) }}
	}
	if err := t.sendBlobs(ctx, told, config); err != nil {
		return nil, err
	}
	// Meanwhile somebody else may have been here.
	there, whole, err := t.look(ctx, img)
	if err != nil || whole {
		return there, err
	}
	m, err := t.version(img, layer, config, there)
	if err != nil {
		return nil, err
	}
	ref := t.repo.Tag(versionTag(img.Name, img.Version))
	if err := t.put(ctx, ref.Name(), ref, m, told, config); err != nil {
		return nil, err
	}
	// Another upload of the same image may have written it a moment later.
	now, found, err := t.get(ctx, ref)
	if err == nil && !found {
		err = fmt.Errorf("reading %s again: %w: the registry does not have what it took", ref.Name(), upload.ErrServer)
	}
	return &now, err
}

// content is what the form makes of an image's file.
func (t *Target) content(img upload.Image) (layer, config blob, err error) {
	if t.form == ContainerDisk {
		if layer, err = diskLayer(img); err != nil {
			return layer, config, err
		}
		config, err = diskConfig(img, layer)
		return layer, config, err
	}
	digest, err := v1.NewHash("sha256:" + img.SHA256)
	if err != nil {
		return layer, config, fmt.Errorf("reading the digest of %s: %w", img.File.Name(), err)
	}
	open := func() io.ReadCloser { return io.NopCloser(io.NewSectionReader(img.File, 0, img.Size)) }
	config, err = inMemory(emptyValue, emptyType)
	return blob{digest, img.Size, layerType(img.Format), open}, config, err
}

// counted tells of bytes as they are read.
type counted struct {
	io.ReadCloser
	tell func(int)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 {
		c.tell(n)
	}
	return n, err
}

// documentType is what a document is in the registry; documents without one are
// not sent, for the annotations say the same.
func documentType(k upload.DocumentKind) types.MediaType {
	switch k {
	case upload.SBOM:
		return "application/spdx+json"
	case upload.Provenance:
		return "application/vnd.dsse.envelope.v1+json"
	}
	return ""
}

// missingDocuments are those of an image that do not refer to its manifest yet.
func (t *Target) missingDocuments(ctx context.Context, img upload.Image, there *manifest) ([]upload.Document, error) {
	var have []v1.Descriptor
	if there != nil {
		var err error
		if have, err = t.referrers(ctx, there.digest); err != nil {
			return nil, err
		}
	}
	var missing []upload.Document
	for _, d := range img.Documents {
		if documentType(d.Kind) == "" {
			continue
		}
		_, digest, err := document(d)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(have, func(h v1.Descriptor) bool { return h.Annotations[keyDocument] == digest }) {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// documentLimit bounds what is read into memory. Bills of materials have a few MB.
const documentLimit = 64 << 20

func document(d upload.Document) (content, digest string, err error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return "", "", fmt.Errorf("reading a document of the image: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, documentLimit+1))
	if err == nil && len(b) > documentLimit {
		err = errors.New("it has more than 64 MiB")
	}
	if err != nil {
		return "", "", fmt.Errorf("reading %s: %w", d.Path, err)
	}
	made, err := inMemory(string(b), "")
	return string(b), made.digest.String(), err
}

// attach sends a document with a manifest of its own, which refers to the image's.
func (t *Target) attach(ctx context.Context, d upload.Document, to manifest) error {
	content, digest, err := document(d)
	if err != nil {
		return err
	}
	layer, err := inMemory(content, documentType(d.Kind))
	if err != nil {
		return err
	}
	config, err := inMemory(emptyValue, emptyType)
	if err != nil {
		return err
	}
	if err := t.sendBlobs(ctx, layer, config); err != nil {
		return err
	}
	m, err := encode(v1.Manifest{
		ArtifactType: string(layer.mediaType),
		Config:       v1.Descriptor{MediaType: config.mediaType, Size: config.size, Digest: config.digest},
		Layers: []v1.Descriptor{{MediaType: layer.mediaType, Size: layer.size, Digest: layer.digest,
			Annotations: map[string]string{ociTitle: path.Base(d.Path)}}},
		Annotations: map[string]string{keyOurs: "1", keyDocument: digest, ociTitle: path.Base(d.Path)},
		Subject:     to.descriptor(),
	})
	if err != nil {
		return err
	}
	return t.put(ctx, "the manifest of "+path.Base(d.Path), t.repo.Digest(m.digest.String()), m, layer, config)
}

// referrers are our documents that refer to a manifest. The list that older
// registries keep under a tag has the annotations too.
func (t *Target) referrers(ctx context.Context, of v1.Hash) ([]v1.Descriptor, error) {
	ref := t.repo.Digest(of.String())
	index, err := remote.Referrers(ref, t.with(ctx)...)
	if err != nil {
		return nil, failed(ctx, "asking what refers to "+ref.Name(), err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		return nil, failed(ctx, "asking what refers to "+ref.Name(), err)
	}
	return slices.DeleteFunc(slices.Clone(list.Manifests), func(d v1.Descriptor) bool { return d.Annotations[keyOurs] != "1" }), nil
}
