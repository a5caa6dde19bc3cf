// Package digitalocean makes custom images by DigitalOcean's API v2.
//
// A version is a custom image. DigitalOcean takes no bytes: it fetches the file from
// a URL, and keeps neither digest nor file. The audit record stands in the image's
// description, as JSON; the tag imagectl marks what is ours. The current image of a
// family is called NAME, the others NAME_VERSION, and a number in the record says
// which one was promoted last (upload.Turned).
//
// Names are not unique there. Of two uploads at once that both made an image, the
// one with the lower number stays, which both of them see.
//
// Written from DigitalOcean's OpenAPI description and documentation, and from what
// others found out about its imports; never run against DigitalOcean.
package digitalocean

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/bearer"
)

// Config says where and how. Token, Region, Transport, Wait, Mark and Now are needed,
// and Source to upload.
type Config struct {
	// API is another address than DigitalOcean's.
	API   string
	Token string
	// Region is where the image is made, such as fra1.
	Region string
	// Source gives DigitalOcean the file, at a URL on the internet.
	Source    upload.Source
	Transport http.RoundTripper
	// Tries of a request that may be sent again before it has failed; 0 for 5.
	Tries int
	// Wait passes the time between two questions about the same thing, and between
	// two tries.
	Wait func(ctx context.Context, d time.Duration) error
	// Mark makes a text that nobody else has.
	Mark func() string
	// Now is the clock, by which versions are in their order.
	Now func() time.Time
}

const (
	tries = 5
	// poll is between two questions about the same thing.
	poll      = 2 * time.Second
	publicAPI = "https://api.digitalocean.com"
	// tag is on every image of ours.
	tag = "imagectl"
	// sizeLimit of the unpacked disk, in bytes (Custom Images Limits, 2025).
	sizeLimit = 100 * 1000 * 1000 * 1000
)

// Target is an account, or a team's. It may be used by several goroutines.
type Target struct {
	conf Config
	api  bearer.Client
}

// New calls nobody.
func New(c Config) (*Target, error) {
	switch {
	case c.Token == "":
		return nil, errors.New("reading the token: it is empty")
	case c.Region == "":
		return nil, errors.New("reading the region: there is none; want one such as fra1")
	}
	return &Target{c, bearer.Client{
		Base: strings.TrimRight(cmp.Or(c.API, publicAPI), "/"), Token: c.Token, Transport: c.Transport, Reason: reason, Kind: kind,
		Tries: cmp.Or(c.Tries, tries), Wait: c.Wait,
	}}, nil
}

// reason reads an error as the API gives it.
func reason(body []byte) (code, message string) {
	var e struct{ ID, Message string }
	if json.Unmarshal(body, &e) != nil {
		return "", ""
	}
	return e.ID, e.Message
}

// kind: limits of an account have no code of their own.
func kind(r bearer.Refusal) error {
	if r.Status == http.StatusUnprocessableEntity && strings.Contains(strings.ToLower(r.Message), "limit") {
		return upload.ErrSpace
	}
	return nil
}

// Formats that it imports, small ones first.
func (t *Target) Formats() []store.Format {
	return []store.Format{store.QCOW2, store.Raw + ".gz", store.Raw}
}

// fileName ends in what DigitalOcean tells the format by. It refuses .raw.
func fileName(img upload.Image) string {
	name := versionName(img.Name, img.Version)
	if packed, raw := strings.CutPrefix(string(img.Format), string(store.Raw)); raw {
		return name + ".img" + packed
	}
	return name + "." + string(img.Format)
}

func versionName(name, version string) string { return name + "_" + version }

// image is one as the API shows it.
type image struct {
	ID          int    `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Status      string `json:"status"`
	Error       string `json:"error_message"`

	// record is what the description says.
	record record
}

// record is our part of an image's description.
type record struct {
	Labels map[string]string `json:"imagectl"`
	// Upload says whose upload made the image.
	Upload string `json:"upload"`
	// Created is exact, for versions made within a second.
	Created time.Time `json:"created"`
	Turn    int       `json:"turn"`
}

func (r record) text() (string, error) {
	b, err := json.Marshal(r)
	return string(b), err
}

// ours reads the description; it is somebody else's when it is no record.
func (i *image) ours() bool {
	err := json.Unmarshal([]byte(i.Description), &i.record)
	return err == nil && i.record.Labels[upload.LabelOurs] == "1" && i.record.Labels[upload.LabelName] != ""
}

func (i image) label(key string) string { return i.record.Labels[key] }

// stage is what an image's status means for us.
type stage int

const (
	finished stage = iota
	pending
	broken
)

func (i image) stage() stage {
	switch status := strings.ToLower(i.Status); {
	case status == "available":
		return finished
	case (status == "new" || status == "pending") && strings.TrimSpace(i.Error) == "":
		return pending
	}
	return broken
}

// pageLimit bounds the pages of a list; a page has two hundred images.
const pageLimit = 100

// images are ours of a family, or all of ours.
func (t *Target) images(ctx context.Context, family string) ([]image, error) {
	var out []image
	query := url.Values{"tag_name": {tag}, "per_page": {"200"}, "page": {"1"}}.Encode()
	for range pageLimit {
		var page struct {
			Images []image
			Links  struct{ Pages struct{ Next string } }
		}
		if err := t.api.Do(ctx, http.MethodGet, "/v2/images?"+query, nil, &page); err != nil {
			return nil, err
		}
		for _, i := range page.Images {
			if i.ours() && (family == "" || i.label(upload.LabelName) == family) {
				out = append(out, i)
			}
		}
		next, err := url.Parse(page.Links.Pages.Next)
		if err != nil || page.Links.Pages.Next == "" {
			break
		}
		query = next.RawQuery
	}
	return out, nil
}

// get reads an image; none is ErrNotFound.
func (t *Target) get(ctx context.Context, id string) (image, error) {
	var a struct{ Image image }
	if err := t.api.Do(ctx, http.MethodGet, "/v2/images/"+url.PathEscape(id), nil, &a); err != nil {
		return image{}, err
	}
	if !a.Image.ours() {
		return image{}, fmt.Errorf("looking at image %s: %w: it is not ours", id, upload.ErrTaken)
	}
	return a.Image, nil
}

// remove deletes an image; one that is gone is fine.
func (t *Target) remove(ctx context.Context, id string) error {
	err := t.api.Do(ctx, http.MethodDelete, "/v2/images/"+url.PathEscape(id), nil, nil)
	if errors.Is(err, upload.ErrNotFound) {
		return nil
	}
	return err
}
