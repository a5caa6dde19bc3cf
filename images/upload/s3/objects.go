package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/images/upload"
)

// object is an upload.Object that a pointer can be held against.
type object struct{ upload.Object }

func (t *Target) object(r record) object {
	var formats []string
	for _, f := range r.Files {
		if f.Format != "" {
			formats = append(formats, string(f.Format))
		}
	}
	return object{upload.Object{ID: t.version(r.Name, r.Version), Name: r.Name, Version: r.Version, Digest: r.Digest, Created: r.Uploaded, State: strings.Join(formats, ",")}}
}

func (o *object) point(p pointer) {
	o.Current = p.Version != "" && p.Version == o.Version
	o.Previous = p.Previous != "" && p.Previous == o.Version
}

// ourVersion is how versions end: a multipart upload shows no label.
var ourVersion = regexp.MustCompile(`-[0-9a-f]{8}$`)

// List reads the records. A version without one is broken once nothing of it has
// changed for a day; until then somebody may be sending it.
func (t *Target) List(ctx context.Context, name string) ([]upload.Object, error) {
	prefix := t.prefix + "/"
	if name != "" {
		prefix = path.Join(t.prefix, name) + "/"
	}
	versions, err := t.versions(ctx, prefix)
	if err != nil {
		return nil, err
	}
	pointers := map[string]pointer{}
	var all []upload.Object
	for _, v := range versions {
		o, ok, err := t.describe(ctx, v)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		p, known := pointers[o.Name]
		if !known {
			if _, _, err := t.read(ctx, t.pointer(o.Name), &p); err != nil {
				return nil, err
			}
			pointers[o.Name] = p
		}
		o.point(p)
		all = append(all, o.Object)
	}
	slices.SortStableFunc(all, func(a, b upload.Object) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// found is a version's directory: its keys, and the last sign of life in it.
type found struct {
	name, version string
	keys          []string
	begun         bool // there is a multipart upload
	alive         time.Time
}

// versions lists the directories below a prefix, in order.
func (t *Target) versions(ctx context.Context, prefix string) ([]*found, error) {
	byDir := map[string]*found{}
	note := func(key string, at time.Time) *found {
		name, version, _, ok := t.split(key)
		if !ok {
			return nil
		}
		dir := path.Dir(key)
		if byDir[dir] == nil {
			byDir[dir] = &found{name: name, version: version}
		}
		if at.After(byDir[dir].alive) {
			byDir[dir].alive = at
		}
		return byDir[dir]
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop() // ends the listing's goroutine
	for info := range t.core.Client.ListObjects(ctx, t.bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if info.Err != nil {
			return nil, failed(ctx, "listing "+t.bucket+"/"+prefix, info.Err)
		}
		if v := note(info.Key, info.LastModified); v != nil {
			v.keys = append(v.keys, info.Key)
		}
	}
	begun, err := t.unfinished(ctx, prefix)
	if err != nil {
		return nil, err
	}
	for _, u := range begun {
		if v := note(u.Key, u.Initiated); v != nil {
			v.begun = true
		}
	}
	var all []*found
	for _, v := range byDir {
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b *found) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.version, b.version))
	})
	return all, nil
}

// describe makes an object of a directory; ok is false for what is not ours, and
// for what is being sent.
func (t *Target) describe(ctx context.Context, v *found) (o object, ok bool, err error) {
	dir := t.version(v.name, v.version)
	if key := path.Join(dir, recordName); slices.Contains(v.keys, key) {
		var r record
		_, found, err := t.read(ctx, key, &r)
		if err != nil || !found || r.Name != v.name || r.Version != v.version {
			return object{}, false, err
		}
		return t.object(r), true, nil
	}
	if t.now().Sub(v.alive) < abandoned {
		return object{}, false, nil
	}
	o = object{upload.Object{ID: dir, Name: v.name, Version: v.version, Created: v.alive, Broken: true, State: "unfinished"}}
	if v.begun && ourVersion.MatchString(v.version) {
		return o, true, nil
	}
	for _, key := range v.keys {
		info, ours, err := t.ours(ctx, key)
		if err != nil || ours {
			digest, _ := strings.CutPrefix(meta(info, upload.LabelDigest), "sha256:")
			o.Digest = digest
			return o, ours, err
		}
	}
	return object{}, false, nil
}

// ours asks whether we made what the key holds; what is gone is not ours.
func (t *Target) ours(ctx context.Context, key string) (minio.ObjectInfo, bool, error) {
	info, err := t.core.StatObject(ctx, t.bucket, key, minio.StatObjectOptions{})
	if missing(err) {
		return info, false, nil
	}
	return info, err == nil && meta(info, upload.LabelOurs) == "1", failed(ctx, "looking at "+key, err)
}

// meta is a label of an object; stores differ in the case of its key.
func meta(info minio.ObjectInfo, key string) string {
	for k, v := range info.UserMetadata {
		if strings.EqualFold(k, key) {
			return v
		}
	}
	return ""
}

// Promote writes latest.json anew.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	var r record
	key := path.Join(t.version(o.Name, o.Version), recordName)
	if _, found, err := t.read(ctx, key, &r); err != nil {
		return err
	} else if !found || r.Digest != o.Digest {
		return fmt.Errorf("promoting %s: %w: %s/%s does not name this image", o.ID, upload.ErrNotFound, t.bucket, key)
	}
	at := t.pointer(o.Name)
	for range editors {
		var p pointer
		was, found, err := t.read(ctx, at, &p)
		switch {
		case err != nil:
			return err
		case !found && was != "":
			return fmt.Errorf("promoting %s: %w: %s/%s was not written by imagectl", o.ID, upload.ErrTaken, t.bucket, at)
		case p.Version == o.Version:
			return nil
		}
		next := pointer{Imagectl: 1, Name: o.Name, Version: o.Version, Digest: o.Digest, Path: t.version(o.Name, o.Version), Previous: p.Version}
		if done, err := t.write(ctx, at, was, next); err != nil || done {
			return err
		}
	}
	return fmt.Errorf("promoting %s: %w: somebody else kept changing %s/%s", o.ID, upload.ErrServer, t.bucket, at)
}

// Delete removes a version, its record last, so that what was cut off is found
// again.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	var p pointer
	if _, _, err := t.read(ctx, t.pointer(o.Name), &p); err != nil {
		return err
	}
	if p.Version == o.Version {
		return fmt.Errorf("deleting %s: %w: %s/%s points to it; promote another version first", o.ID, upload.ErrInUse, t.bucket, t.pointer(o.Name))
	}
	n, err := t.remove(ctx, o.Name, o.Version, func(string) bool { return true })
	if err == nil && n == 0 {
		return fmt.Errorf("deleting %s: %w in %s", o.ID, upload.ErrNotFound, t.bucket)
	}
	return err
}

// Clean aborts multipart uploads and removes files that no record names. S3 keeps,
// and bills, the parts of an unfinished upload until somebody aborts it.
func (t *Target) Clean(ctx context.Context, left upload.Leftover) error {
	switch left.Kind {
	case leftParts:
		if left.ID != "" {
			return t.abort(ctx, left.Name, left.ID)
		}
		if _, _, _, ok := t.split(left.Name); !ok {
			return fmt.Errorf("cleaning %q: it is no key of an image", left.Name)
		}
		all, err := t.unfinished(ctx, left.Name)
		for _, u := range all {
			if u.Key == left.Name {
				err = errors.Join(err, t.abort(ctx, u.Key, u.UploadID))
			}
		}
		return err
	case leftVersion:
		name, version, _, ok := t.split(left.Name + "/" + recordName)
		if !ok {
			return fmt.Errorf("cleaning %q: it is no directory of a version", left.Name)
		}
		var r record
		_, found, err := t.read(ctx, path.Join(left.Name, recordName), &r)
		if err != nil {
			return err
		}
		_, err = t.remove(ctx, name, version, func(key string) bool {
			named := func(f file) bool { return path.Join(left.Name, f.Name) == key }
			return !found || path.Base(key) != recordName && !slices.ContainsFunc(r.Files, named)
		})
		return err
	}
	return fmt.Errorf("cleaning %s %q: a store has no such thing", left.Kind, left.Name)
}

func (t *Target) abort(ctx context.Context, key, id string) error {
	err := t.core.AbortMultipartUpload(ctx, t.bucket, key, id)
	if missing(err) {
		return nil
	}
	return failed(ctx, "aborting the upload of "+key, err)
}

// remove removes those of our objects of a version that which says, and its
// unfinished uploads. n is how many there were.
func (t *Target) remove(ctx context.Context, name, version string, which func(key string) bool) (n int, err error) {
	dir := t.version(name, version)
	dirs, err := t.versions(ctx, dir+"/")
	if err != nil {
		return 0, err
	}
	begun, err := t.unfinished(ctx, dir+"/")
	if err != nil {
		return 0, err
	}
	for _, u := range begun {
		if !which(u.Key) {
			continue
		}
		n++
		if err := t.abort(ctx, u.Key, u.UploadID); err != nil {
			return n, err
		}
	}
	var keys, last []string
	for _, v := range dirs {
		for _, key := range v.keys {
			if path.Base(key) == recordName {
				last = append(last, key)
			} else {
				keys = append(keys, key)
			}
		}
	}
	for _, key := range append(keys, last...) {
		if !which(key) {
			continue
		}
		_, ours, err := t.ours(ctx, key)
		if err != nil {
			return n, err
		}
		if !ours {
			continue
		}
		n++
		if err := t.core.RemoveObject(ctx, t.bucket, key, minio.RemoveObjectOptions{}); err != nil && !missing(err) {
			return n, failed(ctx, "removing "+key, err)
		}
	}
	return n, nil
}
