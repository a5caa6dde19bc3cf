package s3

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/images/upload"
)

// Metadata of an image's object, which a HEAD shows.
const (
	metaPart = "part-size"
	metaFile = upload.LabelFile
)

// Kinds of what a broken upload leaves.
const (
	// leftParts is a multipart upload; its name is the key.
	leftParts = "multipart"
	// leftVersion is a version without its record; its name is the directory.
	leftVersion = "version"
)

// Preflight finds out whether the keys are good for the bucket and what is there.
// No call of S3 tells how much space is left.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	if err := checkNames(img); err != nil {
		return upload.Plan{}, err
	}
	key := path.Join(t.version(img.Name, img.Version), path.Base(img.File.Name()))
	// First, for it is answered with a code: versitygw says 404 to a HEAD of the bucket
	// by a key that it does not know.
	begun, err := t.begun(ctx, key)
	if err != nil {
		return upload.Plan{}, err
	}
	_, o, err := t.look(ctx, img)
	if err != nil {
		return upload.Plan{}, err
	}
	if o != nil {
		return upload.Plan{Found: o}, nil
	}
	dir := path.Dir(key)
	plan := upload.Plan{Bytes: img.Size}
	verb := "send"
	if begun != "" {
		verb = "go on sending"
	}
	plan.Steps = append(plan.Steps, fmt.Sprintf("%s %s (%d bytes, in parts) to %s/%s", verb, path.Base(key), img.Size, t.bucket, key))
	for _, d := range img.Documents {
		plan.Steps = append(plan.Steps, fmt.Sprintf("send %s to %s/%s", path.Base(d.Path), t.bucket, dir))
	}
	plan.Steps = append(plan.Steps, fmt.Sprintf("write %s/%s, which makes the version exist", dir, recordName))
	return plan, nil
}

// state is what a version's directory says now.
type state struct {
	record record
	at     tag
	found  bool
}

// look reads a version's record; o is the finished object if this very file is in
// it and in the store. Another disk, or other bytes under the same name, are
// refused: versions do not change.
func (t *Target) look(ctx context.Context, img upload.Image) (s state, o *upload.Object, err error) {
	dir, name := t.version(img.Name, img.Version), path.Base(img.File.Name())
	key := path.Join(dir, recordName)
	at, found, err := t.read(ctx, key, &s.record)
	s.at, s.found = at, found
	switch {
	case err != nil:
		return s, nil, err
	case !found && at != "":
		return s, nil, fmt.Errorf("looking for %s: %w: %s/%s is no record of imagectl", dir, upload.ErrTaken, t.bucket, key)
	case !found:
		return s, nil, nil
	case s.record.Digest != img.Digest:
		return s, nil, fmt.Errorf("looking for %s: %w: it is there with the digest %s, and this disk has %s; a version never changes", dir, upload.ErrTaken, s.record.Digest, img.Digest)
	}
	i := slices.IndexFunc(s.record.Files, func(f file) bool { return f.Name == name })
	if i < 0 {
		return s, nil, nil
	}
	if there := s.record.Files[i]; there.SHA256 != img.SHA256 {
		return s, nil, fmt.Errorf("looking for %s/%s: %w: it is there with the SHA-256 %s, and this file has %s; a version never changes", dir, name, upload.ErrTaken, there.SHA256, img.SHA256)
	}
	if there, err := t.isThere(ctx, img, path.Join(dir, name)); err != nil || !there {
		return s, nil, err
	}
	object := t.object(s.record)
	var p pointer
	if _, _, err = t.read(ctx, t.pointer(img.Name), &p); err != nil {
		return s, nil, err
	}
	object.point(p)
	return s, &object.Object, nil
}

// isThere asks whether the key holds the image's file.
func (t *Target) isThere(ctx context.Context, img upload.Image, key string) (bool, error) {
	info, err := t.core.StatObject(ctx, t.bucket, key, minio.StatObjectOptions{})
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, failed(ctx, "looking for "+key, err)
	}
	if info.Size != img.Size || meta(info, metaFile) != "sha256:"+img.SHA256 {
		return false, fmt.Errorf("looking for %s: %w: there is something else of %d bytes, whose label says %q; remove it, or give the image another name", key, upload.ErrTaken, info.Size, meta(info, metaFile))
	}
	return true, nil
}

// appears looks for an object whose upload has ended.
func (t *Target) appears(ctx context.Context, img upload.Image, key string) (bool, error) {
	pause := firstPause
	for n := 1; ; n++ {
		there, err := t.isThere(ctx, img, key)
		if there || err != nil || n >= t.looks {
			return there, err
		}
		select {
		case <-ctx.Done():
			return false, failed(ctx, "looking for "+key, ctx.Err())
		case <-time.After(pause):
		}
		pause *= 2
	}
}

// Upload sends the file, then the documents, then the record.
func (t *Target) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	if err := checkNames(img); err != nil {
		return upload.Object{}, err
	}
	_, o, err := t.look(ctx, img)
	if err != nil {
		return upload.Object{}, err
	}
	if o != nil {
		return *o, forget(j)
	}
	dir := t.version(img.Name, img.Version)
	left := upload.Leftover{Kind: leftVersion, Name: dir}
	if err := j.Write(left); err != nil {
		return upload.Object{}, err
	}
	files, err := t.sendFiles(ctx, img, dir, j, ev)
	if err != nil {
		return upload.Object{}, err
	}
	done, err := t.enter(ctx, img, files)
	if err != nil {
		return upload.Object{}, err
	}
	return done, forget(j)
}

func forget(j upload.Journal) error {
	for _, l := range j.Left() {
		if err := j.Forget(l); err != nil {
			return err
		}
	}
	return nil
}

func (t *Target) sendFiles(ctx context.Context, img upload.Image, dir string, j upload.Journal, ev upload.Events) ([]file, error) {
	name := path.Base(img.File.Name())
	key := path.Join(dir, name)
	there, err := t.isThere(ctx, img, key)
	if err != nil {
		return nil, err
	}
	if !there {
		if err := t.sendImage(ctx, img, key, t.imageOptions(img), j, ev); err != nil {
			return nil, err
		}
	}
	files := []file{{Name: name, Format: img.Format, Size: img.Size, SHA256: img.SHA256}}
	ev(upload.Event{Phase: "sending documents"})
	for _, d := range img.Documents {
		f, err := t.sendDocument(ctx, dir, d.Path)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// sendImage makes the object of the disk, out of parts.
func (t *Target) sendImage(ctx context.Context, img upload.Image, key string, o minio.PutObjectOptions, j upload.Journal, ev upload.Events) error {
	partSize := partSizeFor(img.Size, t.partSize)
	left := upload.Leftover{Kind: leftParts, Name: key}
	id, err := t.begun(ctx, key)
	if err != nil {
		return err
	}
	var have map[int]minio.ObjectPart
	found := false
	if id != "" {
		if have, found, err = t.listParts(ctx, key, id); err != nil {
			return err
		}
	}
	if found {
		ev(upload.Event{Phase: "sending", Note: fmt.Sprintf("an earlier upload sent %d parts of %s: going on from there", len(have), path.Base(key))})
	} else {
		if err := j.Write(left); err != nil {
			return err
		}
		if id, err = t.core.NewMultipartUpload(ctx, t.bucket, key, o); err != nil {
			return failed(ctx, "beginning the upload of "+key, err)
		}
	}
	left.ID = id
	if err := j.Write(left); err != nil {
		return err
	}
	parts, err := t.sendParts(ctx, img, key, id, have, partSize, ev)
	told := err
	if err == nil {
		_, err = t.core.CompleteMultipartUpload(ctx, t.bucket, key, id, parts, minio.PutObjectOptions{})
		told = failed(ctx, "putting the parts of "+key+" together", err)
	}
	if err != nil && !missing(answered(err)) {
		// A store that failed may have done it all the same, or another upload of the image
		// has.
		if !errors.Is(told, upload.ErrServer) {
			return told
		}
		if there, err := t.appears(ctx, img, key); err != nil || !there {
			return told
		}
		if err := t.abort(ctx, key, id); err != nil {
			return err
		}
		return j.Forget(left)
	}
	// Also when the upload is gone: another one of the same image may have finished
	// it, or a lost answer said so.
	there, err := t.appears(ctx, img, key)
	if errors.Is(err, upload.ErrTaken) && told == nil {
		// Parts were found whose beginning was of another file. What is there is not
		// finished and has no record.
		return errors.Join(err, failed(ctx, "removing "+key, t.core.RemoveObject(ctx, t.bucket, key, minio.RemoveObjectOptions{})))
	}
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("sending %s: %w: the store does not have it, for the upload was ended by somebody else; run it again", key, upload.ErrServer)
	}
	return j.Forget(left)
}

// answered is the store's own error inside of ours.
func answered(err error) error {
	var p *partError
	if errors.As(err, &p) {
		return p.answer
	}
	return err
}

func (t *Target) imageOptions(img upload.Image) minio.PutObjectOptions {
	return minio.PutObjectOptions{
		ContentType: "application/octet-stream",
		UserMetadata: map[string]string{
			upload.LabelOurs:           "1",
			upload.LabelName:           img.Name,
			upload.LabelVersion:        img.Version,
			upload.LabelDigest:         "sha256:" + img.Digest,
			metaFile:                   "sha256:" + img.SHA256,
			metaPart:                   strconv.FormatInt(partSizeFor(img.Size, t.partSize), 10),
			"X-Amz-Checksum-Algorithm": "SHA256",
		},
	}
}

// begun is the newest unfinished upload of a key; none is "".
func (t *Target) begun(ctx context.Context, key string) (id string, err error) {
	all, err := t.unfinished(ctx, key)
	if err != nil {
		return "", err
	}
	var newest minio.ObjectMultipartInfo
	for _, u := range all {
		if u.Key == key && (newest.UploadID == "" || u.Initiated.After(newest.Initiated)) {
			newest = u
		}
	}
	return newest.UploadID, nil
}

func (t *Target) sendDocument(ctx context.Context, dir, source string) (f file, err error) {
	in, err := os.Open(source)
	if err != nil {
		return f, fmt.Errorf("reading a document of the image: %w", err)
	}
	defer in.Close()
	stat, err := in.Stat()
	if err != nil {
		return f, fmt.Errorf("reading a document of the image: %w", err)
	}
	content := io.NewSectionReader(in, 0, stat.Size())
	d, err := digest(content)
	if err != nil {
		return f, fmt.Errorf("reading %s: %w", source, err)
	}
	f = file{Name: path.Base(source), Size: d.size, SHA256: hex.EncodeToString(d.sha256[:])}
	key := path.Join(dir, f.Name)
	o := minio.PutObjectOptions{UserMetadata: map[string]string{upload.LabelOurs: "1", metaFile: "sha256:" + f.SHA256}}
	return f, failed(ctx, "sending "+key, t.put(ctx, key, content, d.size, d.sha256, o))
}

// enter writes the record, or adds to the one that is there.
func (t *Target) enter(ctx context.Context, img upload.Image, files []file) (upload.Object, error) {
	key := path.Join(t.version(img.Name, img.Version), recordName)
	for range editors {
		s, _, err := t.look(ctx, img)
		if err != nil {
			return upload.Object{}, err
		}
		r := s.record
		if !s.found {
			r = record{Imagectl: 1, Name: img.Name, Version: img.Version, Digest: img.Digest, RawSize: img.RawSize, Uploaded: t.now().UTC(), Labels: img.Audit()}
		}
		r.Files = merge(r.Files, files)
		done, err := t.write(ctx, key, s.at, r)
		if err != nil {
			return upload.Object{}, err
		}
		if !done {
			continue
		}
		_, o, err := t.look(ctx, img)
		if err != nil {
			return upload.Object{}, err
		}
		if o == nil {
			return upload.Object{}, fmt.Errorf("reading %s again: %w: the store does not have what it took", key, upload.ErrServer)
		}
		return *o, nil
	}
	return upload.Object{}, fmt.Errorf("writing %s: %w: somebody else kept changing it", key, upload.ErrServer)
}

// editors is how many others may be quicker than we are, one after the other.
const editors = 10

// merge adds files, which replace those of the same name, and sorts.
func merge(there, files []file) []file {
	all := slices.Clone(files)
	for _, f := range there {
		if !slices.ContainsFunc(files, func(g file) bool { return g.Name == f.Name }) {
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b file) int { return strings.Compare(a.Name, b.Name) })
	return all
}
