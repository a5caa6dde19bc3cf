package opennebula

import (
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// image is an IMAGE document, as far as it is used.
type image struct {
	ID   int    `xml:"ID"`
	Name string `xml:"NAME"`
	owner
	SizeMB      int64  `xml:"SIZE"`
	State       int    `xml:"STATE"`
	RegTime     int64  `xml:"REGTIME"`
	DatastoreID int    `xml:"DATASTORE_ID"`
	Datastore   string `xml:"DATASTORE"`
	Template    struct {
		Error   string `xml:"ERROR"`
		SHA1    string `xml:"SHA1"`
		Ours    string `xml:"IMAGECTL"`
		Family  string `xml:"IMAGECTL_NAME"`
		Version string `xml:"IMAGECTL_VERSION"`
		Digest  string `xml:"IMAGECTL_DIGEST"`
		File    string `xml:"IMAGECTL_FILE_DIGEST"`
		Upload  string `xml:"IMAGECTL_UPLOAD"`
		// Rest are all others, the labels among them.
		Rest []attribute `xml:",any"`
	} `xml:"TEMPLATE"`
}

// attribute is one of a TEMPLATE whose name is not known beforehand.
type attribute struct {
	XMLName xml.Name
	Text    string `xml:",chardata"`
}

// stage is what an image's state means for us.
type stage int

const (
	finished stage = iota
	pending
	broken
)

// stateWords are oned's states (include/Image.h).
func stateWords() []string {
	return []string{"INIT", "READY", "USED", "DISABLED", "LOCKED", "ERROR", "CLONE", "DELETE", "USED_PERS", "LOCKED_USED", "LOCKED_USED_PERS"}
}

func (i image) state() string {
	if words := stateWords(); i.State >= 0 && i.State < len(words) {
		return words[i.State]
	}
	return "state " + strconv.Itoa(i.State)
}

func (i image) stage() stage {
	switch i.state() {
	case "ERROR":
		return broken
	case "INIT", "LOCKED", "DELETE":
		return pending
	}
	return finished
}

// says tells whether it has our record under the name that we give such an image. One
// that somebody copied has the record, too, and another name; so has one of a user who
// is not we (caller.owns).
func (i image) says() bool {
	return i.Template.Ours == "1" && i.Template.Family != "" && i.Name == versionName(i.Template.Family, i.Template.Version)
}

// label gives a part of the audit record as upload.Image.Audit writes it: in attributes
// digests go without their algorithm.
func (i image) label(key string) string {
	switch key {
	case upload.LabelOurs:
		return i.Template.Ours
	case upload.LabelName:
		return i.Template.Family
	case upload.LabelVersion:
		return i.Template.Version
	case upload.LabelDigest:
		return withAlgorithm(i.Template.Digest)
	case upload.LabelFile:
		return withAlgorithm(i.Template.File)
	}
	for _, a := range i.Template.Rest {
		if a.XMLName.Local == attributeOf(key) {
			return withAlgorithm(a.Text)
		}
	}
	return ""
}

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

func withAlgorithm(text string) string {
	if digestForm.MatchString(text) {
		return "sha256:" + text
	}
	return text
}

// template is a VMTEMPLATE document.
type template struct {
	ID   int    `xml:"ID"`
	Name string `xml:"NAME"`
	owner
	Template struct {
		Disks    []disk `xml:"DISK"`
		Ours     string `xml:"IMAGECTL"`
		Family   string `xml:"IMAGECTL_NAME"`
		Previous string `xml:"IMAGECTL_PREVIOUS"`
		Settings string `xml:"IMAGECTL_SETTINGS"`
	} `xml:"TEMPLATE"`
}

// says is image.says: Sunstone's Clone copies our attributes under another name.
func (t template) says() bool {
	return t.Template.Ours == "1" && t.Template.Family != "" && t.Name == t.Template.Family
}

// disk names an image by its number, or by its name and whose it is.
type disk struct {
	ImageID string `xml:"IMAGE_ID"`
	Image   string `xml:"IMAGE"`
	UID     string `xml:"IMAGE_UID"`
	User    string `xml:"IMAGE_UNAME"`
}

// names tells whether a disk in a template of a user's is of an image.
func (d disk) names(i image, by int) bool {
	switch {
	case d.ImageID != "":
		return d.ImageID == strconv.Itoa(i.ID)
	case d.Image != i.Name:
		return false
	case d.UID != "":
		return d.UID == strconv.Itoa(i.UID)
	case d.User != "":
		return d.User == i.User
	}
	return by == i.UID
}

// uses tells whether a machine of this template would have the image.
func (t template) uses(i image) bool {
	return slices.ContainsFunc(t.Template.Disks, func(d disk) bool { return d.names(i, t.UID) })
}

type datastore struct {
	ID      int    `xml:"ID"`
	Name    string `xml:"NAME"`
	Type    int    `xml:"TYPE"`
	TotalMB int64  `xml:"TOTAL_MB"`
	FreeMB  int64  `xml:"FREE_MB"`
}

// fits compares as oned does: by the disk's size, whatever the file's.
func (d datastore) fits(img upload.Image) error {
	need := (img.RawSize + 1<<20 - 1) >> 20
	if d.TotalMB == 0 {
		return fmt.Errorf("%w: datastore %s says 0 MB of 0 are free, which it does until OpenNebula has monitored it once after its start: try again in a few minutes", upload.ErrSpace, d.Name)
	}
	if d.FreeMB < need {
		return fmt.Errorf("%w: datastore %s has %d MB free, and the disk has %d MB", upload.ErrSpace, d.Name, d.FreeMB, need)
	}
	return nil
}

// all is oned's filter for everything that one may use, from the first to the last.
const (
	filterAll = -2
	noLimit   = -1
)

// typeImage is the type of datastores that hold images.
const typeImage = 0

func (t *Target) datastore(ctx context.Context) (datastore, error) {
	var pool struct {
		All []datastore `xml:"DATASTORE"`
	}
	if err := t.read(ctx, &pool, "one.datastorepool.info"); err != nil {
		return datastore{}, err
	}
	var names []string
	for _, d := range pool.All {
		if d.Type != typeImage {
			continue
		}
		if d.Name == t.conf.Datastore || strconv.Itoa(d.ID) == t.conf.Datastore {
			return d, nil
		}
		names = append(names, d.Name)
	}
	return datastore{}, fmt.Errorf("finding image datastore %s: %w; there are: %s", t.conf.Datastore, upload.ErrNotFound, strings.Join(names, ", "))
}

func (t *Target) image(ctx context.Context, id int) (image, error) {
	var i image
	return i, t.read(ctx, &i, "one.image.info", id, false)
}

// images are ours, oldest first.
func (t *Target) images(ctx context.Context) ([]image, error) {
	me, err := t.caller(ctx)
	if err != nil {
		return nil, err
	}
	all, err := t.everybodys(ctx)
	if err != nil {
		return nil, err
	}
	out := slices.DeleteFunc(all, func(i image) bool { return !i.says() || !me.owns(i.owner) })
	slices.SortFunc(out, func(a, b image) int {
		return cmp.Or(cmp.Compare(a.RegTime, b.RegTime), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// everybodys are all images that one may use, those of others, too.
func (t *Target) everybodys(ctx context.Context) ([]image, error) {
	var pool struct {
		All []image `xml:"IMAGE"`
	}
	return pool.All, t.read(ctx, &pool, "one.imagepool.info", filterAll, noLimit, noLimit)
}

// ourImage reads an image that is asked for by its number.
func (t *Target) ourImage(ctx context.Context, doing, number string) (image, error) {
	id, err := strconv.Atoi(number)
	if err != nil {
		return image{}, fmt.Errorf("%s image %q: %w: it is no number", doing, number, upload.ErrNotFound)
	}
	me, err := t.caller(ctx)
	if err != nil {
		return image{}, err
	}
	i, err := t.image(ctx, id)
	if err != nil {
		return image{}, err
	}
	if !i.says() || !me.owns(i.owner) {
		return image{}, fmt.Errorf("%s image %d: %w: it is not ours but %s's, called %s", doing, id, upload.ErrTaken, i.User, i.Name)
	}
	return i, nil
}

// templates are everybody's: any of them may name an image.
func (t *Target) templates(ctx context.Context) ([]template, error) {
	var pool struct {
		All []template `xml:"VMTEMPLATE"`
	}
	return pool.All, t.read(ctx, &pool, "one.templatepool.info", filterAll, noLimit, noLimit)
}

// find returns the image with a disk's content; nil when there is none.
func (t *Target) find(ctx context.Context, ds datastore, img upload.Image) (*image, error) {
	all, err := t.images(ctx)
	if err != nil {
		return nil, err
	}
	var hit *image
	for _, i := range all {
		if i.Template.Family != img.Name || i.Template.Digest != img.Digest {
			continue
		}
		// Of a finished one and the rest of a broken upload, the finished one counts.
		if hit == nil || hit.stage() != finished {
			hit = &i
		}
	}
	if hit != nil && hit.DatastoreID != ds.ID {
		return nil, fmt.Errorf("%w: image %d has this disk in datastore %s, and datastore %s is wanted: a family lives in one datastore; give the other that name again, or delete the image", upload.ErrTaken, hit.ID, hit.Datastore, ds.Name)
	}
	return hit, nil
}

// read puts a question and decodes the document in the answer.
func (t *Target) read(ctx context.Context, into any, method string, args ...any) error {
	text, err := t.ask(ctx, method, args...)
	if err != nil {
		return err
	}
	if err := xml.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("calling %s: %w: its document cannot be read: %w", method, upload.ErrServer, err)
	}
	return nil
}

// List implements upload.Target.
func (t *Target) List(ctx context.Context, name string) ([]upload.Object, error) {
	all, err := t.images(ctx)
	if err != nil {
		return nil, err
	}
	stable, err := t.stable(ctx)
	if err != nil {
		return nil, err
	}
	var out []upload.Object
	for _, i := range all {
		if name == "" || i.Template.Family == name {
			out = append(out, describe(i, stable))
		}
	}
	return out, nil
}

// stable are the templates that are ours.
func (t *Target) stable(ctx context.Context) ([]template, error) {
	me, err := t.caller(ctx)
	if err != nil {
		return nil, err
	}
	all, err := t.templates(ctx)
	return slices.DeleteFunc(all, func(tm template) bool { return !tm.says() || !me.owns(tm.owner) }), err
}

// object describes one image.
func (t *Target) object(ctx context.Context, i image) (upload.Object, error) {
	stable, err := t.stable(ctx)
	if err != nil {
		return upload.Object{}, err
	}
	return describe(i, stable), nil
}

// describe says of an image what our templates make of it.
func describe(i image, stable []template) upload.Object {
	o := upload.Object{
		ID: strconv.Itoa(i.ID), Name: i.Template.Family, Version: i.Template.Version, Digest: i.Template.Digest,
		Broken: i.stage() == broken, Created: time.Unix(i.RegTime, 0).UTC(), State: i.state(),
	}
	for _, t := range stable {
		if t.Template.Family != o.Name {
			continue
		}
		o.Current = o.Current || t.uses(i)
		o.Previous = o.Previous || t.Template.Previous == o.ID
	}
	return o
}

// Delete implements upload.Target. oned itself refuses while a machine has the
// image; a template that names it would only fail later, so it is asked here.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	i, err := t.ourImage(ctx, "deleting", o.ID)
	if err != nil {
		return err
	}
	templates, err := t.templates(ctx)
	if err != nil {
		return err
	}
	for _, tm := range templates {
		if tm.uses(i) {
			return fmt.Errorf("deleting image %d: %w: template %d (%s) names it", i.ID, upload.ErrInUse, tm.ID, tm.Name)
		}
	}
	_, err = t.call(ctx, "one.image.delete", i.ID)
	return err
}

// Clean implements upload.Target: it removes the very image that the broken upload
// made, which its mark tells from one that another upload makes under the same name,
// whoever the user was.
// oned lets no owner remove an image that is still being imported, so that is waited
// for; without its source an import fails soon.
func (t *Target) Clean(ctx context.Context, left upload.Leftover) error {
	if mine, err := upload.CleanStaged(ctx, t.conf.Source, left); mine {
		return err
	}
	all, err := t.everybodys(ctx)
	if err != nil {
		return err
	}
	found := false
	for _, i := range all {
		if i.Template.Upload != left.Note || left.Note == "" || i.Name != left.Name {
			continue
		}
		found = true
		if i.stage() == pending {
			if i, err = t.settled(ctx, i.ID); errors.Is(err, upload.ErrNotFound) {
				continue
			} else if err != nil {
				return err
			}
		}
		if i.stage() == finished {
			continue
		}
		if err := t.remove(ctx, i.ID); err != nil && !errors.Is(err, upload.ErrNotFound) {
			return err
		}
	}
	if id, err := strconv.Atoi(left.ID); err == nil && !found {
		// It is gone, or another user made it and we may not see it.
		if _, err := t.image(ctx, id); err != nil && !errors.Is(err, upload.ErrNotFound) {
			return fmt.Errorf("looking for image %d, which an upload left: %w", id, err)
		}
	}
	return nil
}
