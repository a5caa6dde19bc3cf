package azure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// version is one of an image definition, as far as it is used. What is sent back is
// what came, with one field changed.
type version struct {
	ID         string            `json:"id,omitempty"`
	Name       string            `json:"name,omitempty"`
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags"`
	Properties properties        `json:"properties"`
}

type properties struct {
	Stage      string         `json:"provisioningState,omitempty"`
	Publishing publishing     `json:"publishingProfile"`
	Storage    map[string]any `json:"storageProfile"`
}

type publishing struct {
	Excluded  bool           `json:"excludeFromLatest"`
	Regions   []targetRegion `json:"targetRegions"`
	Replicas  int            `json:"replicaCount,omitempty"`
	Published *time.Time     `json:"publishedDate,omitempty"`
}

type targetRegion struct {
	Name     string `json:"name"`
	Replicas int    `json:"regionalReplicaCount"`
	Storage  string `json:"storageAccountType"`
}

// finished: also while it is changed, which Updating says, what it holds is whole.
func (v version) finished() bool {
	return v.Properties.Stage == "Succeeded" || v.Properties.Stage == "Updating"
}

func (v version) broken() bool {
	return v.Properties.Stage == "Failed" || v.Properties.Stage == "Canceled"
}

func (v version) ours() bool { return v.Tags[upload.LabelOurs] == "1" }

func (v version) label(key string) string { return v.Tags[tagOf(key)] }

// id is short: the rest of the path is the gallery's.
func (v version) id() string {
	steps := strings.Split(v.ID, "/")
	if len(steps) < 4 {
		return v.Name
	}
	return steps[len(steps)-3] + "/" + v.Name
}

// key sorts by number, as Azure does.
func (v version) key() (out [3]int64) {
	for i, s := range strings.SplitN(v.Name, ".", 3) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err == nil {
			out[i] = n
		}
	}
	return out
}

func higher(a, b version) int {
	x, y := a.key(), b.key()
	return slices.Compare(x[:], y[:])
}

// number is a version's name at Azure, three numbers: of the release 4593.2.1 and
// the digest's first 31 bits, 4593.2001.439041101. Two builds of one release are
// two versions.
func number(img upload.Image) string {
	release, _, _ := strings.Cut(img.Version, "-")
	var n [3]int64
	for i, s := range strings.SplitN(release, ".", 3) {
		if v, err := strconv.ParseInt(s, 10, 32); err == nil && v >= 0 {
			n[i] = v
		}
	}
	bits, err := strconv.ParseInt(img.Digest[:min(8, len(img.Digest))], 16, 64)
	if err != nil {
		bits = 0
	}
	return fmt.Sprintf("%d.%d.%d", n[0], n[1]*1000+min(n[2], 999), bits>>1)
}

// Tags besides the audit record's: which version took the place of a current one,
// and when.
const (
	tagReplacedBy = "replaced-by"
	tagReplacedAt = "replaced-at"
	// maxTag is how long a tag's value may be.
	maxTag = 256
)

func tagOf(label string) string {
	if label == upload.LabelOurs {
		return label
	}
	return upload.LabelOurs + "-" + label
}

func tagsOf(img upload.Image) map[string]string {
	out := map[string]string{}
	for k, v := range img.Audit() {
		out[tagOf(k)] = v[:min(len(v), maxTag)]
	}
	return out
}

// version is what is asked for: one that nobody gets by asking for the latest.
func (t *Target) version(img upload.Image, disk string) version {
	return version{
		Location: t.conf.Location, Tags: tagsOf(img),
		Properties: properties{
			Publishing: publishing{Excluded: true, Regions: []targetRegion{{t.conf.Location, 1, "Standard_LRS"}}},
			Storage:    map[string]any{"osDiskImage": map[string]any{"hostCaching": "ReadOnly", "source": map[string]any{"id": disk}}},
		},
	}
}

// family makes the image definition, unless there is one.
func (t *Target) family(ctx context.Context, name string) error {
	path := t.familyPath(name)
	type definition struct {
		Properties struct {
			OS         string `json:"osType"`
			Generation string `json:"hyperVGeneration"`
			Arch       string `json:"architecture"`
			Stage      string `json:"provisioningState"`
		}
	}
	var d definition
	_, err := t.ask(ctx, http.MethodGet, path, apiGallery, nil, &d)
	if errors.Is(err, upload.ErrNotFound) {
		_, err = t.ask(ctx, http.MethodPut, path, apiGallery, map[string]any{
			"location": t.conf.Location, "tags": map[string]string{tagOf(upload.LabelOurs): "1", tagOf(upload.LabelName): name},
			"properties": map[string]any{
				"osType": "Linux", "osState": "Generalized", "hyperVGeneration": "V2", "architecture": t.conf.Arch,
				"identifier": map[string]any{"publisher": "imagectl", "offer": name, "sku": name},
				// It puts a second card behind the first, which nothing in the image leaves alone
				// (docs/platforms.md).
				"features": []map[string]any{{"name": "IsAcceleratedNetworkSupported", "value": "False"}},
			},
		}, &d)
	}
	for err == nil {
		switch stage := d.Properties.Stage; {
		case d.Properties.OS != "Linux" || d.Properties.Generation != "V2" || cmp.Or(d.Properties.Arch, "x64") != t.conf.Arch:
			return fmt.Errorf("looking at image definition %s: %w: it is for %s, generation %s, %s; want Linux, V2, %s", name, upload.ErrTaken, d.Properties.OS, d.Properties.Generation, d.Properties.Arch, t.conf.Arch)
		case stage == "Succeeded":
			return nil
		case stage == "Failed":
			return fmt.Errorf("making image definition %s: %w: Azure says it has failed", name, upload.ErrServer)
		}
		if err = t.wait(ctx, "waiting for image definition "+name); err == nil {
			_, err = t.ask(ctx, http.MethodGet, path, apiGallery, nil, &d)
		}
	}
	return err
}

// versions are all of a family, theirs too, oldest first. A family that is not there
// has none.
func (t *Target) versions(ctx context.Context, name string) ([]version, error) {
	all, err := list[version](ctx, t, t.familyPath(name)+"/versions", apiGallery)
	if errors.Is(err, upload.ErrNotFound) {
		return nil, nil
	}
	slices.SortFunc(all, func(a, b version) int {
		return cmp.Or(a.published().Compare(b.published()), higher(a, b))
	})
	return all, err
}

func (v version) published() time.Time {
	if v.Properties.Publishing.Published == nil {
		return time.Time{}
	}
	return *v.Properties.Publishing.Published
}

func (t *Target) oneVersion(ctx context.Context, name, number string) (version, error) {
	var v version
	_, err := t.ask(ctx, http.MethodGet, t.versionPath(name, number), apiGallery, nil, &v)
	return v, err
}

// find returns the version of a disk; nil when there is none.
func find(all []version, img upload.Image) (*version, error) {
	for i, v := range all {
		if v.ours() && v.label(upload.LabelDigest) == img.Audit()[upload.LabelDigest] {
			return &all[i], nil
		}
		if v.Name == number(img) {
			return nil, fmt.Errorf("looking for version %s of %s: %w: it is there, and is not this disk; its digest is %q", v.Name, img.Name, upload.ErrTaken, v.label(upload.LabelDigest))
		}
	}
	return nil, nil
}

// latest is the one that Azure resolves the definition to.
func latest(all []version) (version, bool) {
	var out version
	found := false
	for _, v := range all {
		if v.finished() && !v.Properties.Publishing.Excluded && (!found || higher(v, out) > 0) {
			out, found = v, true
		}
	}
	return out, found
}

// previous is the one in whose place the latest came, most recently.
func previous(all []version, now version) string {
	name, at := "", ""
	for _, v := range all {
		// The times sort as text.
		if v.label(tagReplacedBy) == now.Name && v.label(tagReplacedAt) > at && v.Name != now.Name {
			name, at = v.Name, v.label(tagReplacedAt)
		}
	}
	return name
}

func describe(v version, all []version) upload.Object {
	digest, _ := strings.CutPrefix(v.label(upload.LabelDigest), "sha256:")
	o := upload.Object{
		ID: v.id(), Name: v.label(upload.LabelName), Version: v.label(upload.LabelVersion), Digest: digest,
		Broken: v.broken(), Created: v.published(), State: v.Properties.Stage,
	}
	if now, ok := latest(all); ok {
		o.Current, o.Previous = now.Name == v.Name, previous(all, now) == v.Name
	}
	return o
}
