package s3

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"

	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/images/upload"
)

// Verify holds the record's labels, the file's size and label, and the digest that
// the store computed of the parts as they arrived, against the image.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	dir, name := t.version(o.Name, o.Version), path.Base(img.File.Name())
	var r record
	_, found, err := t.read(ctx, path.Join(dir, recordName), &r)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("verifying %s: %w in %s", dir, upload.ErrNotFound, t.bucket)
	}
	checks := []upload.Check{upload.Compare("digest of the disk", r.Digest, img.Digest), upload.CompareLabels(func(key string) string { return r.Labels[key] }, img)}
	i := slices.IndexFunc(r.Files, func(f file) bool { return f.Name == name })
	if i < 0 {
		return append(checks, upload.Check{Name: "file", Result: upload.Bad, Detail: "the record does not name " + name}), nil
	}
	checks = append(checks, upload.Compare("digest of the file in the record", r.Files[i].SHA256, img.SHA256))

	key := path.Join(dir, name)
	info, err := t.core.StatObject(ctx, t.bucket, key, minio.StatObjectOptions{Checksum: true})
	if missing(err) {
		return append(checks, upload.Check{Name: "file", Result: upload.Bad, Detail: key + " is gone"}), nil
	}
	if err != nil {
		return nil, failed(ctx, "looking at "+key, err)
	}
	checks = append(checks,
		upload.Compare("size of the file", strconv.FormatInt(info.Size, 10), strconv.FormatInt(img.Size, 10)),
		upload.Compare("label of the file", meta(info, metaFile), "sha256:"+img.SHA256))
	sum, err := t.storedSum(info, img)
	return append(checks, sum), err
}

// storedSum compares what the store computed with what the file's bytes give.
func (t *Target) storedSum(info minio.ObjectInfo, img upload.Image) (upload.Check, error) {
	const what = "SHA-256 of the parts, computed by the store"
	partSize, err := strconv.ParseInt(meta(info, metaPart), 10, 64)
	switch {
	case info.ChecksumSHA256 == "":
		return upload.Check{Name: what, Result: upload.Unprovable, Detail: "this store keeps none"}, nil
	case err != nil || partSize < 1 || partCount(img.Size, partSize) > maxParts:
		return upload.Check{Name: what, Result: upload.Unprovable, Detail: fmt.Sprintf("the size of its parts is not known: the label %s says %q", metaPart, meta(info, metaPart))}, nil
	}
	want, err := wholeSum(img, partSize)
	return upload.Compare(what, info.ChecksumSHA256, want), err
}
