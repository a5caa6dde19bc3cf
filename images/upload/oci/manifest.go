package oci

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

const (
	// artifactType of our manifests, and what its layers' types begin with.
	artifactType = "application/vnd.imagectl.image.v1"
	// emptyType is the config of an artifact that has none (OCI image 1.1).
	emptyType  = "application/vnd.oci.empty.v1+json"
	emptyValue = "{}"

	ociTitle    = "org.opencontainers.image.title"
	ociVersion  = "org.opencontainers.image.version"
	ociCreated  = "org.opencontainers.image.created"
	ociRevision = "org.opencontainers.image.revision"

	// ours stands before the keys of the audit record.
	ours       = "org.imagectl."
	keyOurs    = ours + upload.LabelOurs
	keyFormat  = ours + "format"
	keyFile    = ours + upload.LabelFile
	keyRawSize = ours + "raw-size"
	// keyUploaded is the only thing that differs between two uploads of one image.
	keyUploaded = ours + "uploaded"
	keyDocument = ours + "document"
)

// manifest is one that may be put: its bytes are what its digest is made of.
type manifest struct {
	v1.Manifest
	raw    []byte
	digest v1.Hash
}

// RawManifest implements remote.Taggable.
func (m manifest) RawManifest() ([]byte, error) { return m.raw, nil }

// MediaType makes the library send the right Content-Type.
func (m manifest) MediaType() (types.MediaType, error) { return m.Manifest.MediaType, nil }

func encode(content v1.Manifest) (manifest, error) {
	content.SchemaVersion, content.MediaType = 2, types.OCIManifestSchema1
	raw, err := json.Marshal(content)
	if err != nil {
		return manifest{}, fmt.Errorf("writing a manifest: %w", err)
	}
	return decode(raw)
}

func decode(raw []byte) (m manifest, err error) {
	m.raw = raw
	if err := json.Unmarshal(raw, &m.Manifest); err != nil {
		return m, fmt.Errorf("reading a manifest: %w", err)
	}
	m.digest, _, err = v1.SHA256(bytes.NewReader(raw))
	return m, err
}

// descriptor is how another manifest refers to it.
func (m manifest) descriptor() *v1.Descriptor {
	return &v1.Descriptor{MediaType: m.Manifest.MediaType, Size: int64(len(m.raw)), Digest: m.digest}
}

func (m manifest) label(key string) string { return m.Annotations[ours+key] }

func (m manifest) ours() bool { return m.Annotations[keyOurs] == "1" }

// is tells whether the manifest is of this image's disk.
func (m manifest) is(img upload.Image) bool {
	return m.ours() && m.label(upload.LabelDigest) == "sha256:"+img.Digest
}

// layerOf finds the layer of a file by its name.
func (m manifest) layerOf(file string) (v1.Descriptor, bool) {
	i := slices.IndexFunc(m.Layers, func(l v1.Descriptor) bool { return l.Annotations[ociTitle] == file })
	if i < 0 {
		return v1.Descriptor{}, false
	}
	return m.Layers[i], true
}

func (t *Target) object(m manifest) upload.Object {
	o := upload.Object{Name: m.label(upload.LabelName), Version: m.label(upload.LabelVersion)}
	o.ID = t.id(o.Name, o.Version)
	o.Digest, _ = strings.CutPrefix(m.label(upload.LabelDigest), "sha256:")
	o.Created, _ = time.Parse(time.RFC3339Nano, m.Annotations[keyUploaded])
	var formats []string
	for _, l := range m.Layers {
		formats = append(formats, l.Annotations[keyFormat])
	}
	slices.Sort(formats)
	o.State = strings.Join(formats, ",")
	return o
}

// annotations are the audit record, under OCI's keys where it has some.
func annotations(img upload.Image, now time.Time) map[string]string {
	all := map[string]string{ociTitle: img.Name, ociVersion: img.Version, keyUploaded: now.UTC().Format(time.RFC3339Nano), keyRawSize: strconv.FormatInt(img.RawSize, 10)}
	for k, v := range img.Audit() {
		all[ours+k] = v
	}
	delete(all, keyFile) // the layers have it: there may be several
	if _, err := time.Parse(time.RFC3339, img.Labels[upload.LabelCreated]); err == nil {
		all[ociCreated] = img.Labels[upload.LabelCreated]
	}
	if git := img.Labels[upload.LabelGit]; git != "" {
		all[ociRevision] = git
	}
	return all
}

// version is the manifest of an image, with what another format left there.
func (t *Target) version(img upload.Image, layer, config blob, there *manifest) (manifest, error) {
	m := v1.Manifest{
		Config:      v1.Descriptor{MediaType: config.mediaType, Size: config.size, Digest: config.digest},
		Annotations: annotations(img, t.now()),
	}
	file := path.Base(img.File.Name())
	if t.form == Artifact {
		m.ArtifactType = artifactType
		if there != nil {
			m.Annotations[keyUploaded] = there.Annotations[keyUploaded]
			m.Layers = slices.DeleteFunc(slices.Clone(there.Layers), func(l v1.Descriptor) bool { return l.Annotations[ociTitle] == file })
		}
	}
	m.Layers = append(m.Layers, v1.Descriptor{
		MediaType: layer.mediaType, Size: layer.size, Digest: layer.digest,
		Annotations: map[string]string{ociTitle: file, keyFormat: string(img.Format), keyFile: "sha256:" + img.SHA256},
	})
	slices.SortFunc(m.Layers, func(a, b v1.Descriptor) int {
		return cmp.Compare(a.Annotations[ociTitle], b.Annotations[ociTitle])
	})
	return encode(m)
}

// layerType is the media type of a file of a format.
func layerType(f store.Format) types.MediaType {
	return types.MediaType("application/vnd.imagectl.disk.v1." + string(f))
}

// blob is content that the registry keeps by its digest; it implements v1.Layer.
type blob struct {
	digest    v1.Hash
	size      int64
	mediaType types.MediaType
	open      func() io.ReadCloser
}

func inMemory(content string, mediaType types.MediaType) (blob, error) {
	digest, size, err := v1.SHA256(strings.NewReader(content))
	return blob{digest, size, mediaType, func() io.ReadCloser { return io.NopCloser(strings.NewReader(content)) }}, err
}

// Digest implements v1.Layer.
func (b blob) Digest() (v1.Hash, error) { return b.digest, nil }

// DiffID implements v1.Layer.
func (b blob) DiffID() (v1.Hash, error) { return b.digest, nil }

// Compressed implements v1.Layer: the bytes as they are sent.
func (b blob) Compressed() (io.ReadCloser, error) { return b.open(), nil }

// Uncompressed implements v1.Layer.
func (b blob) Uncompressed() (io.ReadCloser, error) { return b.open(), nil }

// Size implements v1.Layer.
func (b blob) Size() (int64, error) { return b.size, nil }

// MediaType implements v1.Layer.
func (b blob) MediaType() (types.MediaType, error) { return b.mediaType, nil }
