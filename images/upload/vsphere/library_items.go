package vsphere

import (
	"cmp"
	"context"
	"crypto/md5"  //nolint:gosec // One of what vCenter may say of a file; the digests of ours are SHA-256.
	"crypto/sha1" //nolint:gosec // As above.
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// item is one of a library, as the API shows it.
type item struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
}

// labelTurn says which promotion was an item's last.
const labelTurn = "turn"

// maxDescription is vCenter's, in characters.
const maxDescription = 2000

// describe is the description with all labels, which people see, too.
func describe(labels map[string]string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "Flatcar image %s of %s, by imagectl\n", labels[upload.LabelVersion], labels[upload.LabelName])
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		fmt.Fprintf(&b, "%s: %s\n", k, labels[k])
	}
	if b.Len() > maxDescription {
		return "", fmt.Errorf("describing %s: the labels have %d characters, and vCenter takes %d", labels[upload.LabelName], b.Len(), maxDescription)
	}
	return b.String(), nil
}

func (i item) labels() map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(i.Description) {
		if key, value, is := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); is {
			out[key] = value
		}
	}
	return out
}

func (i item) label(key string) string { return i.labels()[key] }

func (i item) ours() bool {
	return i.label(upload.LabelOurs) == "1" && i.label(upload.LabelName) != ""
}

func (i item) family() string { return i.label(upload.LabelName) }

func (i item) versionName() string {
	return versionName(i.family(), i.label(upload.LabelVersion))
}

// finished tells a version from a half one.
func (i item) finished() bool {
	return i.ours() && (i.Name == i.family() || i.Name == i.versionName())
}

// abandoned is how long an item may be unfinished before it is called broken.
const abandoned = 24 * time.Hour

func (i item) turned() upload.Turned {
	at, _ := time.Parse(time.RFC3339Nano, i.label(keyUploaded))
	turn, _ := strconv.Atoi(i.label(labelTurn))
	return upload.Turned{Turn: turn, Object: upload.Object{
		ID: i.ID, Name: i.family(), Version: i.label(upload.LabelVersion), Digest: strings.TrimPrefix(i.label(upload.LabelDigest), "sha256:"),
		Broken: !i.finished(), Created: at, State: "item " + i.Name,
	}}
}

// items are all of the library, oldest first: those of others and those that are being
// made, too.
func (l *Library) items(ctx context.Context) ([]item, error) {
	id, err := l.library(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	if err := l.call(ctx, "listing the library", http.MethodGet, itemPath+"?library_id="+url.QueryEscape(id), nil, &ids); err != nil {
		return nil, err
	}
	var out []item
	for _, id := range ids {
		i, err := l.item(ctx, id)
		if errors.Is(err, upload.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b item) int {
		return cmp.Or(a.turned().Created.Compare(b.turned().Created), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

func idPath(base, id string) string { return base + "/id:" + url.PathEscape(id) }

func (l *Library) item(ctx context.Context, id string) (i item, err error) {
	return i, l.call(ctx, "looking at item "+id, http.MethodGet, idPath(itemPath, id), nil, &i)
}

// update changes an item's name, and its description if that is not empty.
func (l *Library) update(ctx context.Context, id, name, description string) error {
	spec := map[string]string{"name": name}
	if description != "" {
		spec["description"] = description
	}
	return l.call(ctx, "naming item "+id+" "+name, http.MethodPatch, idPath(itemPath, id), map[string]any{"update_spec": spec}, nil)
}

func (l *Library) remove(ctx context.Context, i item) error {
	return l.call(ctx, "deleting item "+i.Name, http.MethodDelete, idPath(itemPath, i.ID), nil, nil)
}

// versions are the items of a family, or of all, that are finished, or unfinished for
// long.
func (l *Library) versions(ctx context.Context, name string) ([]item, []upload.Turned, error) {
	all, err := l.items(ctx)
	if err != nil {
		return nil, nil, err
	}
	all = slices.DeleteFunc(all, func(i item) bool {
		return !i.ours() || name != "" && i.family() != name || !i.finished() && l.Now().Sub(i.turned().Created) < abandoned
	})
	out := make([]upload.Turned, len(all))
	for n, i := range all {
		out[n] = i.turned()
	}
	return all, out, nil
}

// List implements upload.Target. Without the family's name, which a promotion that broke
// off has taken from it, an item is not current.
func (l *Library) List(ctx context.Context, name string) ([]upload.Object, error) {
	items, all, err := l.versions(ctx, name)
	out := upload.Point(all)
	for n, i := range items {
		out[n].Current = out[n].Current && i.Name == i.family()
	}
	return out, err
}

func (l *Library) object(ctx context.Context, i item) (upload.Object, error) {
	all, err := l.List(ctx, i.family())
	if err != nil {
		return upload.Object{}, err
	}
	n := slices.IndexFunc(all, func(o upload.Object) bool { return o.ID == i.ID })
	if n < 0 {
		return upload.Object{}, fmt.Errorf("looking for item %s: %w: it was there a moment ago", i.Name, upload.ErrNotFound)
	}
	return all[n], nil
}

// Promote takes the family's name from the item that has it and gives it to another.
// For a moment nothing has it, for a library has no name twice.
func (l *Library) Promote(ctx context.Context, o upload.Object) error {
	all, turned, err := l.versions(ctx, o.Name)
	if err != nil {
		return err
	}
	n := slices.IndexFunc(all, func(i item) bool { return i.ID == o.ID && i.finished() })
	if n < 0 {
		return fmt.Errorf("promoting item %s: %w", o.ID, upload.ErrNotFound)
	}
	for k, i := range all {
		if k != n && i.Name == o.Name {
			if err := l.update(ctx, i.ID, i.versionName(), ""); err != nil {
				return err
			}
		}
	}
	i, turn := all[n], strconv.Itoa(upload.NextTurn(turned, o.ID))
	if i.Name == o.Name && i.label(labelTurn) == turn {
		return nil
	}
	labels := i.labels()
	labels[labelTurn] = turn
	text, err := describe(labels)
	if err != nil {
		return err
	}
	return l.update(ctx, i.ID, o.Name, text)
}

// Delete implements upload.Target. Machines that were deployed from an item have copies
// of its disk.
func (l *Library) Delete(ctx context.Context, o upload.Object) error {
	i, err := l.item(ctx, o.ID)
	switch {
	case err != nil:
		return err
	case !i.ours():
		return fmt.Errorf("deleting item %s: %w: it is not ours", i.Name, upload.ErrTaken)
	case i.Name == i.family():
		return fmt.Errorf("deleting item %s: %w: it is the family's current one", i.Name, upload.ErrInUse)
	}
	return l.remove(ctx, i)
}

// file is one of an item.
type file struct {
	Name     string `json:"name"`
	Size     int64  `json:"size"`
	Checksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksum"`
	} `json:"checksum_info"`
}

// disk finds the VMDK of an item.
func (l *Library) disk(ctx context.Context, id string) (f file, err error) {
	var all []file
	if err := l.call(ctx, "listing the files of item "+id, http.MethodGet, itemFilePath+"?library_item_id="+url.QueryEscape(id), nil, &all); err != nil {
		return f, err
	}
	for _, f := range all {
		if strings.HasSuffix(f.Name, ".vmdk") {
			return f, nil
		}
	}
	return f, nil
}

// Verify implements upload.Target.
func (l *Library) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	i, err := l.item(ctx, o.ID)
	if err != nil {
		return nil, fmt.Errorf("verifying: %w", err)
	}
	checks := []upload.Check{upload.CompareLabels(i.label, img)}
	if i.label(upload.LabelFile) != "sha256:"+img.SHA256 {
		return append(checks, upload.Check{Name: "stored bytes", Result: upload.Unprovable, Detail: "the item was made of another file with the same disk"}), nil
	}
	src, err := newSource(img)
	if err != nil {
		return nil, err
	}
	f, err := l.disk(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	size := upload.Compare("size of the disk's file", strconv.FormatInt(f.Size, 10), strconv.FormatInt(src.size, 10))
	if size.Result != upload.Good {
		size.Result, size.Detail = upload.Unprovable, fmt.Sprintf("vCenter says %d bytes, and %d were sent: it may keep disks in another form", f.Size, src.size)
	}
	checks = append(checks, size)
	h := checksumOf(f.Checksum.Algorithm)
	if h == nil || f.Checksum.Value == "" {
		return append(checks, upload.Check{Name: "stored bytes", Result: upload.Unprovable, Detail: "this vCenter says no digest of the file"}), nil
	}
	if _, err := io.Copy(h, src.disk(img)); err != nil {
		return nil, fmt.Errorf("reading %s: %w", img.File.Name(), err)
	}
	return append(checks, upload.Compare(f.Checksum.Algorithm+" that vCenter has", strings.ToLower(f.Checksum.Value), hex.EncodeToString(h.Sum(nil)))), nil
}

// checksumOf is one of those that vCenter knows.
func checksumOf(algorithm string) hash.Hash {
	switch algorithm {
	case "MD5":
		return md5.New() //nolint:gosec // See the import.
	case "SHA1":
		return sha1.New() //nolint:gosec // See the import.
	case "SHA256":
		return sha256.New()
	case "SHA512":
		return sha512.New()
	}
	return nil
}

var _ upload.Target = (*Library)(nil)
