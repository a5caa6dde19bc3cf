package digitalocean_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/digitalocean"
	"github.com/imagectl/imagectl/images/upload/staging"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

const token = "dop_v1_secret"

// ocean stands in for DigitalOcean's API, after its OpenAPI description and what is
// known of its imports.
type ocean struct {
	*httptest.Server

	mu      sync.Mutex
	images  []*imported
	last    int
	limit   bool
	hold    chan struct{}
	imports sync.WaitGroup
}

type imported struct {
	ID          int      `json:"id"`
	Name        string   `json:"name"`
	Type        string   `json:"type"`
	Description string   `json:"description"`
	Status      string   `json:"status"`
	Error       string   `json:"error_message"`
	Tags        []string `json:"tags"`
	Regions     []string `json:"regions"`
	Created     string   `json:"created_at"`

	sum string
}

func newOcean(t *testing.T) *ocean {
	o := &ocean{last: 1000}
	o.Server = httptest.NewServer(o)
	t.Cleanup(func() {
		o.release()
		o.imports.Wait()
		o.Close()
	})
	return o
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, status int, id, message string) {
	answer(w, status, map[string]string{"id": id, "message": message, "request_id": "4d9d8375-3c56-4925-a3e7-eb137fed17e9"})
}

// ServeHTTP implements http.Handler.
func (o *ocean) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+token {
		refuse(w, 401, "Unauthorized", "Unable to authenticate you")
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if r.URL.Path == "/v2/images" {
		switch r.Method {
		case http.MethodGet:
			o.list(w, r)
		case http.MethodPost:
			o.create(w, r)
		}
		return
	}
	id, err := strconv.Atoi(path.Base(r.URL.Path))
	n := slices.IndexFunc(o.images, func(i *imported) bool { return i.ID == id })
	if err != nil || n < 0 {
		refuse(w, 404, "not_found", "The resource you were accessing could not be found.")
		return
	}
	i := o.images[n]
	switch r.Method {
	case http.MethodPut:
		var change struct{ Name, Description *string }
		if err := json.NewDecoder(r.Body).Decode(&change); err != nil {
			refuse(w, 400, "bad_request", err.Error())
			return
		}
		if change.Name != nil {
			i.Name = *change.Name
		}
		if change.Description != nil {
			i.Description = *change.Description
		}
		fallthrough
	case http.MethodGet:
		answer(w, 200, map[string]any{"image": i})
	case http.MethodDelete:
		o.images = slices.Delete(o.images, n, n+1)
		w.WriteHeader(204)
	}
}

// pageSize is small, so that lists have several pages.
const pageSize = 2

func (o *ocean) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var hits []*imported
	for _, i := range o.images {
		if tag := q.Get("tag_name"); tag == "" || slices.Contains(i.Tags, tag) {
			hits = append(hits, i)
		}
	}
	page, err := strconv.Atoi(q.Get("page"))
	if err != nil || page < 1 {
		refuse(w, 400, "bad_request", "page")
		return
	}
	pages := map[string]string{}
	if len(hits) > page*pageSize {
		q.Set("page", strconv.Itoa(page+1))
		pages["next"] = o.URL + "/v2/images?" + q.Encode()
	}
	from, to := min(len(hits), (page-1)*pageSize), min(len(hits), page*pageSize)
	answer(w, 200, map[string]any{"images": append([]*imported{}, hits[from:to]...), "links": map[string]any{"pages": pages}, "meta": map[string]int{"total": len(hits)}})
}

func (o *ocean) create(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Name, URL, Region, Distribution, Description string
		Tags                                         []string
	}
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		refuse(w, 400, "bad_request", err.Error())
		return
	}
	switch {
	case o.limit:
		refuse(w, 422, "unprocessable_entity", "creating this/these image(s) will exceed your image limit")
		return
	case ask.Name == "" || ask.URL == "" || ask.Region != "fra1" || ask.Distribution != "Unknown":
		refuse(w, 422, "unprocessable_entity", fmt.Sprintf("%+v", ask))
		return
	}
	o.last++
	i := &imported{ID: o.last, Name: ask.Name, Type: "custom", Description: ask.Description, Status: "NEW", Tags: ask.Tags, Regions: []string{}, Created: time.Now().UTC().Format(time.RFC3339)}
	o.images = append(o.images, i)
	hold := o.hold
	o.imports.Go(func() {
		if hold != nil {
			<-hold
		}
		o.mu.Lock()
		i.Status = "pending"
		o.mu.Unlock()
		sum, err := fetch(ask.URL)
		o.mu.Lock()
		defer o.mu.Unlock()
		if i.Status, i.sum, i.Regions = "available", sum, []string{ask.Region}; err != nil {
			i.Status, i.Error = "deleted", err.Error()
		}
	})
	answer(w, 202, map[string]any{"image": i})
}

// fetch reads a URL as the importer does: the name says the format, and a query is
// not understood.
func fetch(from string) (sum string, err error) {
	u, err := url.Parse(from)
	known := []string{".img", ".qcow2", ".vhdx", ".vdi", ".vmdk"}
	if err != nil || u.RawQuery != "" || !slices.Contains(known, path.Ext(strings.TrimSuffix(strings.TrimSuffix(u.Path, ".gz"), ".bz2"))) {
		return "", errors.New("Your image is not in a supported format.")
	}
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		r, err := http.NewRequest(method, from, nil)
		if err != nil {
			return "", err
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || resp.ContentLength < 1 {
			return "", fmt.Errorf("Your image could not be downloaded: %s %v", resp.Status, err)
		}
		digest := sha256.Sum256(b)
		sum = hex.EncodeToString(digest[:])
	}
	return sum, nil
}

func (o *ocean) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.hold != nil {
		close(o.hold)
		o.hold = nil
	}
}

// plant makes images of somebody else, one of them with our tag and name.
func (o *ocean) plant() func() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, i := range []*imported{
		{ID: 1, Name: "prod-worker", Tags: []string{"imagectl"}, Status: "available", Description: "not by imagectl"},
		{ID: 2, Name: "prod-worker", Tags: []string{"imagectl"}, Status: "deleted", Description: `{"imagectl": {}}`},
		{ID: 3, Name: "backup", Status: "available"},
	} {
		o.images = append(o.images, i)
	}
	before, _ := json.Marshal(o.images[:3])
	return func() error {
		o.mu.Lock()
		defer o.mu.Unlock()
		if after, _ := json.Marshal(o.images[:min(3, len(o.images))]); !bytes.Equal(before, after) {
			return fmt.Errorf("images of others are %s now", after)
		}
		return nil
	}
}

// wait is short: what is waited for happens in this process.
func wait(ctx context.Context, _ time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Millisecond):
		return nil
	}
}

func config(t *testing.T, o *ocean) digitalocean.Config {
	t.Helper()
	l := httptest.NewUnstartedServer(nil)
	s := staging.New("http://" + l.Listener.Addr().String())
	l.Config.Handler = s
	l.Start()
	t.Cleanup(l.Close)
	var mu sync.Mutex
	marks := 0
	return digitalocean.Config{
		API: o.URL, Token: token, Region: "fra1", Source: s, Transport: http.DefaultTransport, Tries: 1, Wait: wait, Now: time.Now,
		Mark: func() string {
			mu.Lock()
			defer mu.Unlock()
			marks++
			return strconv.Itoa(marks)
		},
	}
}

func target(t *testing.T, c digitalocean.Config) *digitalocean.Target {
	t.Helper()
	to, err := digitalocean.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func TestConformance(t *testing.T) {
	t.Parallel()
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		o := newOcean(t)
		conf := config(t, o)
		return uploadtest.Platform{
			RawSize: 300<<10 + 512,
			Target: func(f *uploadtest.Faults) upload.Target {
				c := conf
				c.Transport = f.Transport(http.DefaultTransport)
				return target(t, c)
			},
			Patient: func(f *uploadtest.Faults) upload.Target {
				c := conf
				c.Transport, c.Tries = f.Transport(http.DefaultTransport), 5
				return target(t, c)
			},
			Repeats: func(r *http.Request) bool { return r.Method != http.MethodPost },
			Stranger: func() upload.Target {
				c := conf
				c.Token = "wrong"
				return target(t, c)
			},
			Leftovers: func() (all []string, err error) {
				o.mu.Lock()
				defer o.mu.Unlock()
				for _, i := range o.images {
					if i.ID > 1000 {
						all = append(all, fmt.Sprintf("%d %s", i.ID, i.Status))
					}
				}
				return all, nil
			},
			Unprovable: []string{"stored bytes"},
			Plant:      o.plant,
			Absent: map[uploadtest.Case]string{
				uploadtest.Forgotten: "an image is one from the first call on, and listed; what is staged is not looked for (docs/upload.md)",
				uploadtest.Options:   "an image has no options of ours: what a machine is like is said when it is made",
				uploadtest.Full:      "DigitalOcean names no place that could be full: what ends is the number of images",
				uploadtest.InUse:     "droplets have copies: DigitalOcean deletes an image whatever was made of it",
			},
			Quota: func() {
				o.mu.Lock()
				defer o.mu.Unlock()
				o.limit = true
			},
			Hold: func() {
				o.mu.Lock()
				defer o.mu.Unlock()
				o.hold = make(chan struct{})
			},
			Release: o.release,
			Settle:  o.imports.Wait,
		}
	})
}

func uploaded(t *testing.T, to upload.Target, img upload.Image, promote bool) (upload.Outcome, error) {
	t.Helper()
	j, err := upload.OpenJournal(t.TempDir(), upload.Key{Target: "do", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	return upload.Run(t.Context(), to, img, j, func(upload.Event) {}, promote)
}

func TestEachFormatHasANameThatDigitalOceanKnows(t *testing.T) {
	t.Parallel()
	for n, format := range (&digitalocean.Target{}).Formats() {
		o := newOcean(t)
		img := uploadtest.Image(t, store.Raw, "prod-worker", uint64(n))
		img.Format = format
		if _, err := uploaded(t, target(t, config(t, o)), img, true); err != nil {
			t.Errorf("%s: %v", format, err)
		} else if i := o.images[0]; i.sum != img.SHA256 || i.Name != "prod-worker" || !slices.Equal(i.Tags, []string{"imagectl"}) {
			t.Errorf("%s: made was %+v", format, i)
		}
	}
}

func TestAnImportThatFailsSaysWhyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	o := newOcean(t)
	conf := config(t, o)
	conf.Source = staging.Direct(o.URL + "/nothing/")
	_, err := uploaded(t, target(t, conf), uploadtest.Image(t, store.QCOW2, "prod-worker", 1), true)
	if !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), "DigitalOcean says: deleted Your image could not be downloaded: 401") {
		t.Errorf("got %v", err)
	}
	if len(o.images) > 0 {
		t.Errorf("left is %+v", o.images)
	}
}

func TestADiskThatIsTooLargeIsRefusedHere(t *testing.T) {
	t.Parallel()
	o := newOcean(t)
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	img.RawSize = 100e9
	if _, err := target(t, config(t, o)).Preflight(t.Context(), img); !errors.Is(err, upload.ErrSpace) {
		t.Errorf("got %v", err)
	}
}

// Two uploads that both found nothing and both made an image keep the first one.
func TestTheSecondOfTwoImagesGoes(t *testing.T) {
	t.Parallel()
	o := newOcean(t)
	conf := config(t, o)
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	// The first list of the second upload is from before the first upload began.
	conf.Transport = &lateList{o: o, before: func() {
		other := config(t, o)
		if _, err := uploaded(t, target(t, other), img, false); err != nil {
			t.Error(err)
		}
	}}
	out, err := uploaded(t, target(t, conf), img, false)
	if err != nil || out.Object.ID != "1001" || len(o.images) != 1 {
		t.Errorf("got %+v, %v; there is %+v", out, err, o.images)
	}
}

// lateList answers two lists, Preflight's and Upload's, and then lets another upload
// run to its end before the image is asked for.
type lateList struct {
	o      *ocean
	before func()
	once   sync.Once
}

// RoundTrip implements http.RoundTripper.
func (l *lateList) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPost {
		l.once.Do(l.before)
	}
	return http.DefaultTransport.RoundTrip(r)
}
