// Package hetzner makes snapshots in a project of the Hetzner Cloud.
//
// Hetzner takes no images. The only way is that of everybody: a small server for a
// few minutes, started into Hetzner's rescue system, where the disk is written
// through SSH; then a snapshot of that disk. The server and the key, which is made
// for this upload and never leaves memory, are deleted at the end. What is written is
// read back on the server, and its digest compared, before the snapshot is made.
//
// A version is a snapshot; the audit record is in its labels. The current one of a
// family is described as NAME, the others as NAME_VERSION, and a number says which
// one was promoted last (upload.Turned).
//
// A project has one server of a name, and the name is made from the disk's digest:
// so one of two uploads at once does the work, and the other waits for it.
//
// Written from Hetzner's API documentation and hcloud-upload-image; never run
// against Hetzner.
package hetzner

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/bearer"
)

// Config says where and how. Token, Transport, Dial, Random, Wait, Mark and Now are
// needed.
type Config struct {
	// API is another address than Hetzner's.
	API   string
	Token string
	// Location of the server; empty for fsn1. Snapshots are there for all locations.
	Location string
	// ServerType is small; empty for cx23. Its architecture is the snapshot's, and its
	// disk is the least that machines must have.
	ServerType string
	Transport  http.RoundTripper
	// Dial connects to the rescue system's SSH.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// User of the rescue system; empty for root.
	User string
	// Random makes the key.
	Random io.Reader
	// Tries of a request that may be sent again before it has failed; 0 for 5.
	Tries int
	// Connects are the tries of connecting while the rescue system starts; 0 for 90.
	Connects int
	// Wait passes the time between two tries, and between two questions about the same
	// thing.
	Wait func(ctx context.Context, d time.Duration) error
	// Mark makes a text that nobody else has, of letters and digits.
	Mark func() string
	// Now is the clock, by which versions are in their order.
	Now func() time.Time
}

const (
	publicAPI    = "https://api.hetzner.cloud/v1"
	tries        = 5
	connects     = 90
	poll         = 2 * time.Second
	defaultType  = "cx23"
	defaultPlace = "fsn1"
	bootImage    = "debian-12" // never started
	rescueSystem = "linux64"
	abandoned    = 24 * time.Hour
	tidyLimit    = time.Minute
	serverPrefix = "server/"
	labelPrefix  = "imagectl-"
	digestPrefix = "sha256:"
	digestHalf   = 32
	secondHalf   = "-2"
	markLabel    = labelPrefix + "upload"
	turnLabel    = labelPrefix + "turn"
	createdLabel = labelPrefix + "created"
	// builtLabel is the audit record's "created", for that name was given away before; a
	// label takes no colon.
	builtLabel    = labelPrefix + "built"
	oursSelector  = upload.LabelOurs + "==1"
	snapshotReady = "available"
)

// Target is a project. It may be used by several goroutines.
type Target struct {
	conf Config
	api  bearer.Client
}

// New calls nobody.
func New(c Config) (*Target, error) {
	if c.Token == "" {
		return nil, errors.New("reading the token: it is empty")
	}
	c.Location, c.ServerType, c.Connects = cmp.Or(c.Location, defaultPlace), cmp.Or(c.ServerType, defaultType), cmp.Or(c.Connects, connects)
	c.User = cmp.Or(c.User, "root")
	return &Target{c, bearer.Client{
		Base: strings.TrimRight(cmp.Or(c.API, publicAPI), "/"), Token: c.Token, Transport: c.Transport, Reason: reason, Kind: kind,
		Tries: cmp.Or(c.Tries, tries), Wait: c.Wait,
	}}, nil
}

// reason reads an error as the API gives it.
func reason(body []byte) (code, message string) {
	var e struct{ Error failure }
	if json.Unmarshal(body, &e) != nil {
		return "", ""
	}
	return e.Error.Code, e.Error.Message
}

// failure is that of a call, and of an action.
type failure struct{ Code, Message string }

// kind knows the codes whose status says less than they do.
func kind(r bearer.Refusal) error { return kindOf(r.Code) }

func kindOf(code string) error {
	switch code {
	case "resource_limit_exceeded", "resource_unavailable", "no_space_left_in_location", "placement_error":
		return upload.ErrSpace
	case "protected":
		return upload.ErrInUse
	}
	return nil
}

// taken: there is a server of that name.
func taken(err error) bool {
	var r *bearer.Refusal
	return errors.As(err, &r) && r.Code == "uniqueness_error"
}

// Formats whose content is the disk as it is. A raw one is packed on the way.
func (t *Target) Formats() []store.Format {
	return []store.Format{store.Raw, "img.zst", store.Raw + ".xz", store.Raw + ".gz"}
}

// labelForm is Hetzner's rule for a label's value.
var labelForm = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`)

// labelsOf makes labels of an audit record. A digest is longer than a label may be,
// and stands in two of them.
func labelsOf(audit map[string]string) (map[string]string, error) {
	out := map[string]string{}
	for k, v := range audit {
		key := labelPrefix + k
		if k == upload.LabelOurs {
			key = k
		}
		if hex, is := strings.CutPrefix(v, digestPrefix); is && len(hex) > digestHalf {
			out[key], out[key+secondHalf] = hex[:digestHalf], hex[digestHalf:]
		} else if k == upload.LabelCreated {
			out[builtLabel] = strings.ReplaceAll(v, ":", "_")
		} else {
			out[key] = v
		}
	}
	for k, v := range out {
		if !labelForm.MatchString(v) {
			return nil, fmt.Errorf("labelling with %s %q: Hetzner takes up to 63 letters, digits, dots, hyphens and underscores", k, v)
		}
	}
	return out, nil
}

// labelled is anything at Hetzner that has labels.
type labelled struct {
	ID      int64             `json:"id"`
	Labels  map[string]string `json:"labels"`
	Created time.Time         `json:"created"`
}

// label gives a part of the audit record.
func (l labelled) label(key string) string {
	if key == upload.LabelOurs {
		return l.Labels[key]
	}
	v, second := l.Labels[labelPrefix+key], l.Labels[labelPrefix+key+secondHalf]
	if second != "" {
		return digestPrefix + v + second
	}
	return v
}

func (l labelled) ours() bool {
	return l.label(upload.LabelOurs) == "1" && l.label(upload.LabelName) != ""
}

func (l labelled) turn() int {
	n, _ := strconv.Atoi(l.Labels[turnLabel])
	return n
}

// made is when it was made, to the nanosecond where we said so.
func (l labelled) made() time.Time {
	if n, err := strconv.ParseInt(l.Labels[createdLabel], 10, 64); err == nil {
		return time.Unix(0, n).UTC()
	}
	return l.Created.UTC()
}

type snapshot struct {
	labelled
	Status      string `json:"status"`
	Description string `json:"description"`
	Type        string `json:"type"`
}

type server struct {
	labelled
	Name      string `json:"name"`
	Status    string `json:"status"`
	PublicNet struct {
		IPv4 struct{ IP string }
	} `json:"public_net"`
}

// action is something that Hetzner does after it has answered.
type action struct {
	ID     int64
	Status string
	Error  failure
}

// pageLimit bounds the pages of a list; a page has fifty.
const pageLimit = 200

// each asks for all pages of what has our labels. what is the plural in the path,
// and take reads one page.
func (t *Target) each(ctx context.Context, what, selector string, more url.Values, take func(page json.RawMessage) error) error {
	q := url.Values{"label_selector": {selector}, "per_page": {"50"}}
	for k, v := range more {
		q[k] = v
	}
	for n := 1; n <= pageLimit; n++ {
		q.Set("page", strconv.Itoa(n))
		var page map[string]json.RawMessage
		if err := t.api.Do(ctx, http.MethodGet, "/"+what+"?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		if err := take(page[what]); err != nil {
			return fmt.Errorf("listing %s: %w: %w", what, upload.ErrServer, err)
		}
		var meta struct {
			Pagination struct {
				Next *int `json:"next_page"`
			}
		}
		if err := json.Unmarshal(page["meta"], &meta); err != nil || meta.Pagination.Next == nil {
			return nil
		}
	}
	return nil
}

// snapshots are ours of a family, or all of ours, whatever their state.
func (t *Target) snapshots(ctx context.Context, family string) (out []snapshot, err error) {
	selector := oursSelector
	if family != "" {
		selector += "," + labelPrefix + upload.LabelName + "==" + family
	}
	err = t.each(ctx, "images", selector, url.Values{"type": {"snapshot"}}, func(page json.RawMessage) error {
		var all []snapshot
		err := json.Unmarshal(page, &all)
		for _, s := range all {
			if s.ours() {
				out = append(out, s)
			}
		}
		return err
	})
	return out, err
}

// servers are those of uploads, by a label selector.
func (t *Target) servers(ctx context.Context, selector string) (out []server, err error) {
	err = t.each(ctx, "servers", selector, nil, func(page json.RawMessage) error {
		var all []server
		err := json.Unmarshal(page, &all)
		out = append(out, all...)
		return err
	})
	return out, err
}

// keys are the SSH keys of uploads, by a label selector.
func (t *Target) keys(ctx context.Context, selector string) (out []labelled, err error) {
	err = t.each(ctx, "ssh_keys", selector, nil, func(page json.RawMessage) error {
		var all []labelled
		err := json.Unmarshal(page, &all)
		out = append(out, all...)
		return err
	})
	return out, err
}

// act asks a server for an action, and waits for its end. out is for what the answer
// has besides.
func (t *Target) act(ctx context.Context, id int64, name string, in, out any) error {
	var raw json.RawMessage
	if in == nil {
		in = struct{}{}
	}
	if err := t.api.Do(ctx, http.MethodPost, fmt.Sprintf("/servers/%d/actions/%s", id, name), in, &raw); err != nil {
		return err
	}
	var a struct{ Action action }
	if err := json.Unmarshal(raw, &a); err != nil {
		return fmt.Errorf("reading the answer to %s: %w: %w", name, upload.ErrServer, err)
	}
	if out != nil {
		if err := json.Unmarshal(raw, out); err != nil {
			return fmt.Errorf("reading the answer to %s: %w: %w", name, upload.ErrServer, err)
		}
	}
	return t.ended(ctx, name, a.Action)
}

// ended waits until an action is over.
func (t *Target) ended(ctx context.Context, name string, a action) error {
	for a.Status == "running" {
		if err := t.conf.Wait(ctx, poll); err != nil {
			return fmt.Errorf("waiting for %s: %w", name, upload.CallError(ctx, err))
		}
		var now struct{ Action action }
		if err := t.api.Do(ctx, http.MethodGet, fmt.Sprintf("/actions/%d", a.ID), nil, &now); err != nil {
			return err
		}
		a = now.Action
	}
	if a.Status == "error" {
		k := kindOf(a.Error.Code)
		if k == nil {
			k = upload.ErrServer
		}
		return fmt.Errorf("doing %s: %w: Hetzner says: %s: %s", name, k, a.Error.Code, a.Error.Message)
	}
	return nil
}

// drop deletes a thing; one that is gone is fine.
func (t *Target) drop(ctx context.Context, what string, id int64) error {
	var a struct{ Action action }
	var into any
	if what == "servers" {
		into = &a
	}
	err := t.api.Do(ctx, http.MethodDelete, fmt.Sprintf("/%s/%d", what, id), nil, into)
	if errors.Is(err, upload.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return t.ended(ctx, "the deletion of a server", a.Action)
}
