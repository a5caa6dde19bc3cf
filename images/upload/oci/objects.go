package oci

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/imagectl/imagectl/images/upload"
)

// tagged is every manifest of the repository that a tag names.
func (t *Target) tagged(ctx context.Context) (map[string]manifest, error) {
	tags, err := remote.List(t.repo, t.with(ctx)...)
	if missing(err) {
		return nil, nil // registries make a repository with its first manifest
	}
	if err != nil {
		return nil, failed(ctx, "listing the tags of "+t.repo.Name(), err)
	}
	all := map[string]manifest{}
	for _, tag := range tags {
		if strings.HasPrefix(tag, "sha256-") {
			continue // what older registries keep the referrers in
		}
		m, found, err := t.get(ctx, t.repo.Tag(tag))
		if err != nil {
			return nil, err
		}
		if found {
			all[tag] = m
		}
	}
	return all, nil
}

// List reads the manifest of every tag.
func (t *Target) List(ctx context.Context, name string) ([]upload.Object, error) {
	t, err := t.once()
	if err != nil {
		return nil, err
	}
	tags, err := t.tagged(ctx)
	if err != nil {
		return nil, err
	}
	var all []upload.Object
	for tag, m := range tags {
		o := t.object(m)
		if !m.ours() || tag != versionTag(o.Name, o.Version) || name != "" && name != o.Name {
			continue
		}
		o.Current = sameVersion(tags[currentTag(o.Name)], m)
		o.Previous = sameVersion(tags[previousTag(o.Name)], m)
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b upload.Object) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// sameVersion: a version whose manifest has got another format since stays the
// same version.
func sameVersion(pointer, m manifest) bool {
	return pointer.ours() && pointer.label(upload.LabelName) == m.label(upload.LabelName) &&
		pointer.label(upload.LabelVersion) == m.label(upload.LabelVersion)
}

// point says what the pointing tags say of an object.
func (t *Target) point(ctx context.Context, o *upload.Object) error {
	is := func(tag string) (bool, error) {
		m, _, err := t.get(ctx, t.repo.Tag(tag))
		return m.ours() && m.label(upload.LabelName) == o.Name && m.label(upload.LabelVersion) == o.Version, err
	}
	var err error
	if o.Current, err = is(currentTag(o.Name)); err != nil {
		return err
	}
	o.Previous, err = is(previousTag(o.Name))
	return err
}

// Promote moves the tag NAME, and before that NAME_previous to where NAME was.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	t, err := t.once()
	if err != nil {
		return err
	}
	at := t.repo.Tag(versionTag(o.Name, o.Version))
	m, found, err := t.get(ctx, at)
	if err != nil {
		return err
	}
	if !found || m.label(upload.LabelDigest) != "sha256:"+o.Digest {
		return fmt.Errorf("promoting %s: %w in %s", at.Name(), upload.ErrNotFound, t.repo.Name())
	}
	stable := t.repo.Tag(currentTag(o.Name))
	was, found, err := t.get(ctx, stable)
	switch {
	case err != nil:
		return err
	case found && was.digest == m.digest:
		return nil
	case found && (!was.ours() || was.label(upload.LabelName) != o.Name):
		return fmt.Errorf("promoting %s: %w: the tag %s was not put there by imagectl", at.Name(), upload.ErrTaken, stable.Name())
	case found && !sameVersion(was, m):
		if err := t.setPrevious(ctx, o, was); err != nil {
			return err
		}
	}
	if err := remote.Put(stable, m, t.with(ctx)...); err != nil {
		return failed(ctx, "moving the tag "+stable.Name(), err)
	}
	// Whoever deletes the version just now has taken its tag away, and the manifest is
	// there again.
	_, found, err = t.get(ctx, at)
	if err != nil || found {
		return err
	}
	return failed(ctx, "tagging "+at.Name()+" again", remote.Put(at, m, t.with(ctx)...))
}

// setPrevious moves the tag NAME_previous, if it is ours.
func (t *Target) setPrevious(ctx context.Context, o upload.Object, to manifest) error {
	tag := t.repo.Tag(previousTag(o.Name))
	there, found, err := t.get(ctx, tag)
	if err != nil {
		return err
	}
	if found && (!there.ours() || there.label(upload.LabelName) != o.Name) {
		return fmt.Errorf("promoting %s: %w: the tag %s was not put there by imagectl", o.ID, upload.ErrTaken, tag.Name())
	}
	return failed(ctx, "moving the tag "+tag.TagStr(), remote.Put(tag, to, t.with(ctx)...))
}

// Delete removes a version and what refers to it. The registry frees the space when
// it next collects its garbage.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	t, err := t.once()
	if err != nil {
		return err
	}
	tags, err := t.tagged(ctx)
	if err != nil {
		return err
	}
	own := versionTag(o.Name, o.Version)
	m, found := tags[own]
	if !found || !m.ours() {
		return fmt.Errorf("deleting %s: %w in %s", own, upload.ErrNotFound, t.repo.Name())
	}
	var mine []string
	for tag, other := range tags {
		switch {
		case tag == own, tag == previousTag(o.Name) && sameVersion(other, m):
			mine = append(mine, tag)
		case other.digest == m.digest, tag == currentTag(o.Name) && sameVersion(other, m):
			return fmt.Errorf("deleting %s: %w: the tag %s is the same manifest", own, upload.ErrInUse, tag)
		}
	}
	_, pointed := tags[currentTag(o.Name)]
	documents, err := t.referrers(ctx, m.digest)
	if err != nil {
		return err
	}
	// Most registries drop the tags with the manifest, some keep them.
	if err := t.remove(ctx, t.repo.Digest(m.digest.String())); err != nil {
		return err
	}
	for _, tag := range mine {
		if err := t.remove(ctx, t.repo.Tag(tag)); err != nil {
			return err
		}
	}
	if err := t.unpromoted(ctx, o, m, pointed); err != nil {
		return err
	}
	for _, d := range documents {
		if err := t.remove(ctx, t.repo.Digest(d.Digest.String())); err != nil {
			return err
		}
	}
	return t.remove(ctx, t.repo.Tag(strings.Replace(m.digest.String(), ":", "-", 1)))
}

// unpromoted puts a manifest back that was promoted while it was deleted: the family's
// name is its tag now, or has gone with it where there was one before.
func (t *Target) unpromoted(ctx context.Context, o upload.Object, m manifest, pointed bool) error {
	stable := t.repo.Tag(currentTag(o.Name))
	now, found, err := t.get(ctx, stable)
	if err != nil {
		return err
	}
	if found && now.digest != m.digest || !found && !pointed {
		return nil
	}
	own := versionTag(o.Name, o.Version)
	for _, tag := range []string{own, currentTag(o.Name)} {
		if err := remote.Put(t.repo.Tag(tag), m, t.with(ctx)...); err != nil {
			return failed(ctx, "putting back the tag "+tag, err)
		}
	}
	return fmt.Errorf("deleting %s: %w: it was promoted meanwhile, and is put back", own, upload.ErrInUse)
}

// remove deletes a manifest or, where the registry can, a tag; what is gone
// already is no error.
func (t *Target) remove(ctx context.Context, ref name.Reference) error {
	tag, isTag := ref.(name.Tag)
	if isTag {
		// Registries before version 3 of distribution delete by digest only.
		d, err := remote.Head(tag, t.with(ctx)...)
		if missing(err) {
			return nil
		}
		if err != nil {
			return failed(ctx, "looking for "+ref.Name(), err)
		}
		if err := remote.Delete(tag, t.with(ctx)...); err == nil || missing(err) {
			return nil
		}
		ref = t.repo.Digest(d.Digest.String())
	}
	err := remote.Delete(ref, t.with(ctx)...)
	if missing(err) {
		return nil
	}
	return failed(ctx, "deleting "+ref.Name(), err)
}

// Clean is never needed: Upload writes nothing into the journal.
func (t *Target) Clean(_ context.Context, left upload.Leftover) error {
	return fmt.Errorf("cleaning %s %q: a registry has no such thing", left.Kind, left.Name)
}

// Verify holds the manifest, which the registry keeps by its digest, against the
// image.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	t, err := t.once()
	if err != nil {
		return nil, err
	}
	ref := t.repo.Tag(versionTag(o.Name, o.Version))
	m, found, err := t.get(ctx, ref)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("verifying %s: %w", ref.Name(), upload.ErrNotFound)
	}
	var checks []upload.Check
	want := annotations(img, t.now())
	for _, k := range slices.Sorted(maps.Keys(want)) {
		// Another build of the same disk may say other things of itself.
		if k != keyUploaded && k != ociRevision && k != ociCreated && !upload.SaysBuild(strings.TrimPrefix(k, ours)) {
			checks = append(checks, upload.Compare("label "+k, m.Annotations[k], want[k]))
		}
	}
	layer, _, err := t.content(img)
	if err != nil {
		return nil, err
	}
	there, found := m.layerOf(path.Base(img.File.Name()))
	if !found {
		return append(checks, upload.Check{Name: "file", Result: upload.Bad, Detail: "the manifest does not name " + path.Base(img.File.Name())}), nil
	}
	checks = append(checks,
		upload.Compare("digest that the registry keeps the file under", there.Digest.String(), layer.digest.String()),
		upload.Compare("size of the file", fmt.Sprint(there.Size), fmt.Sprint(layer.size)))
	stored, err := t.stored(ctx, layer)
	if err != nil {
		return nil, err
	}
	checks = append(checks, stored)
	missing, err := t.missingDocuments(ctx, img, &m)
	for _, d := range missing {
		checks = append(checks, upload.Check{Name: path.Base(d.Path), Result: upload.Bad, Detail: "it does not refer to the manifest"})
	}
	return checks, err
}

// stored asks whether the file's content is there.
func (t *Target) stored(ctx context.Context, layer blob) (upload.Check, error) {
	const what = "file in the registry"
	remoteLayer, err := remote.Layer(t.repo.Digest(layer.digest.String()), t.with(ctx)...)
	if err != nil {
		return upload.Check{}, failed(ctx, "looking for the file", err)
	}
	size, err := remoteLayer.Size()
	if missing(err) {
		return upload.Check{Name: what, Result: upload.Bad, Detail: "it is gone"}, nil
	}
	if err != nil {
		return upload.Check{}, failed(ctx, "looking for the file", err)
	}
	return upload.Compare(what, fmt.Sprintf("%d bytes", size), fmt.Sprintf("%d bytes", layer.size)), nil
}

var _ upload.Target = (*Target)(nil)
