package gcp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// image is one of Compute Engine's, as far as it is used.
type image struct {
	Name        string            `json:"name"`
	Family      string            `json:"family"`
	Status      string            `json:"status"`
	Description string            `json:"description"`
	Labels      map[string]string `json:"labels"`
	Created     time.Time         `json:"creationTimestamp"`
	SizeGB      int64             `json:"diskSizeGb,string"`
	Deprecated  struct {
		State       string    `json:"state"`
		Replacement string    `json:"replacement"`
		Since       time.Time `json:"deprecated"`
	} `json:"deprecated"`
}

func (i image) ours() bool {
	return i.Labels[upload.LabelOurs] == "1" && i.label(upload.LabelName) != ""
}

func (i image) broken() bool { return i.Status == "FAILED" }

func (i image) finished() bool { return i.Status == "READY" }

func (i image) active() bool { return i.Deprecated.State == "" || i.Deprecated.State == "ACTIVE" }

// label is of the audit record, which is the description: labels of Compute Engine
// are too short for it.
func (i image) label(key string) string {
	var all map[string]string
	if json.Unmarshal([]byte(i.Description), &all) != nil {
		return ""
	}
	return all[key]
}

// labelFamily is the label that images of a family are found by.
const labelFamily = "imagectl-name"

var (
	familyName = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$`)
	notInNames = regexp.MustCompile(`[^a-z0-9]+`)
)

// maxName is how long names are, in characters.
const maxName = 63

// imageName is NAME-VERSION as far as the rules for names let it be; what does not
// fit loses the middle, and keeps the digest.
func imageName(img upload.Image) string {
	name := notInNames.ReplaceAllString(strings.ToLower(img.Name+"-"+img.Version), "-")
	if len(name) > maxName {
		name = strings.TrimRight(name[:maxName-17], "-") + "-" + img.Digest[:16]
	}
	return name
}

func fits(img upload.Image) error {
	if !familyName.MatchString(img.Name) {
		return fmt.Errorf("naming the image family %q: Google wants at most 63 lower-case letters, digits and -, a letter first", img.Name)
	}
	return nil
}

// images are those that pass a filter, oldest first.
func (t *Target) images(ctx context.Context, filter string) ([]image, error) {
	all, err := list[image](ctx, t, t.global("images"), url.Values{"filter": {filter}})
	slices.SortFunc(all, func(a, b image) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Name, b.Name))
	})
	return all, err
}

// list reads all pages of a list.
func list[T any](ctx context.Context, t *Target, at string, q url.Values) ([]T, error) {
	var all []T
	for {
		var page struct {
			Items []T
			Next  string `json:"nextPageToken"`
		}
		if err := t.call(ctx, http.MethodGet, at+"?"+q.Encode(), nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Items...)
		if page.Next == "" {
			return all, nil
		}
		q.Set("pageToken", page.Next)
	}
}

// family are our images of a family or, with an empty name, of all.
func (t *Target) family(ctx context.Context, name string) ([]image, error) {
	filter := "labels." + upload.LabelOurs + "=1"
	if name != "" {
		filter = "(" + filter + ") (labels." + labelFamily + "=" + name + ")"
	}
	all, err := t.images(ctx, filter)
	return slices.DeleteFunc(all, func(i image) bool { return !i.ours() || name != "" && i.label(upload.LabelName) != name }), err
}

// image is the one of a name.
func (t *Target) image(ctx context.Context, name string) (image, error) {
	var i image
	return i, t.call(ctx, http.MethodGet, t.global("images/"+url.PathEscape(name)), nil, &i)
}

// current is what Compute Engine resolves a family to; one without name when it has
// nothing.
func (t *Target) current(ctx context.Context, family string) (image, error) {
	var i image
	err := t.call(ctx, http.MethodGet, t.global("images/family/"+url.PathEscape(family)), nil, &i)
	if errors.Is(err, upload.ErrNotFound) {
		return image{}, nil
	}
	return i, err
}

// find returns the image of a disk; nil when there is none.
func (t *Target) find(ctx context.Context, img upload.Image) (*image, error) {
	all, err := t.family(ctx, img.Name)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].label(upload.LabelDigest) == img.Audit()[upload.LabelDigest] {
			return &all[i], nil
		}
	}
	i, err := t.image(ctx, imageName(img))
	if errors.Is(err, upload.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("looking for %s: %w: there is an image of this name, and it is not this disk; its digest is %q", i.Name, upload.ErrTaken, i.label(upload.LabelDigest))
}

// insert has an image made of a file in the bucket.
func (t *Target) insert(ctx context.Context, img upload.Image, file string) error {
	audit, err := json.Marshal(img.Audit())
	if err != nil {
		return fmt.Errorf("describing %s: %w", imageName(img), err)
	}
	type feature struct {
		Type string `json:"type"`
	}
	ask := map[string]any{
		"name": imageName(img), "description": string(audit), "architecture": t.conf.Arch,
		"labels":          map[string]string{upload.LabelOurs: "1", labelFamily: img.Name},
		"rawDisk":         map[string]any{"containerType": "TAR", "source": "https://storage.googleapis.com/" + t.conf.Bucket + "/" + file},
		"guestOsFeatures": []feature{{"UEFI_COMPATIBLE"}, {"VIRTIO_SCSI_MULTIQUEUE"}, {"GVNIC"}},
	}
	if t.conf.Location != "" {
		ask["storageLocations"] = []string{t.conf.Location}
	}
	return t.change(ctx, http.MethodPost, t.global("images"), ask)
}

func (t *Target) removeImage(ctx context.Context, name string) error {
	return t.change(ctx, http.MethodDelete, t.global("images/"+url.PathEscape(name)), nil)
}

// settled waits until an image is no longer being made.
func (t *Target) settled(ctx context.Context, name string) (image, error) {
	for {
		i, err := t.image(ctx, name)
		if err != nil || i.finished() || i.broken() {
			return i, err
		}
		if err := t.wait(ctx, fmt.Sprintf("waiting for image %s, which is %s", name, i.Status)); err != nil {
			return i, err
		}
	}
}

// names tells whether a link is to an image.
func names(link, image string) bool { return strings.HasSuffix(link, "/images/"+image) }

// describe makes an object of an image, whose family is all and resolves to now.
func describe(i image, all []image, now image) upload.Object {
	digest, _ := strings.CutPrefix(i.label(upload.LabelDigest), "sha256:")
	o := upload.Object{
		ID: i.Name, Name: i.label(upload.LabelName), Version: i.label(upload.LabelVersion), Digest: digest,
		Broken: i.broken(), Created: i.Created, State: strings.TrimSpace(i.Status + " " + i.Deprecated.State), Current: now.Name == i.Name,
	}
	var before image
	for _, b := range all {
		if now.Name != "" && b.Name != now.Name && names(b.Deprecated.Replacement, now.Name) && b.Deprecated.Since.After(before.Deprecated.Since) {
			before = b
		}
	}
	o.Previous = before.Name == i.Name
	return o
}
