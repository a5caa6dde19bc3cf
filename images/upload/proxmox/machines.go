package proxmox

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// tag of everything that is ours, and of what was cloned from it.
const tag = "imagectl"

// record is in the notes of a machine.
type record struct {
	Audit map[string]string `json:"audit"`
	// VMID tells the machine from its clones.
	VMID     int       `json:"vmid"`
	Uploaded time.Time `json:"uploaded"`
	// Mark is the upload's that made it.
	Mark string `json:"mark"`
	// Turn counts a family's promotions: the highest is current.
	Turn int `json:"turn,omitempty"`
	// Settings is a digest of the hardware that it was given.
	Settings string `json:"settings,omitempty"`
}

// notes are for people, with the record in one line.
func (r record) notes() (string, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("writing the notes: %w", err)
	}
	return fmt.Sprintf("Flatcar image %s of %s, by imagectl\n\n    %s\n", r.Audit[upload.LabelVersion], r.Audit[upload.LabelName], b), nil
}

func readNotes(text string) (r record, found bool) {
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &r) == nil && r.Audit[upload.LabelOurs] == "1" {
			return r, true
		}
	}
	return record{}, false
}

// flag is a boolean as Proxmox VE writes it: 1, "1" or nothing.
type flag bool

// UnmarshalJSON implements json.Unmarshaler.
func (f *flag) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	*f = text == "1" || text == "true"
	return nil
}

// machine is a virtual machine of ours, finished or not.
type machine struct {
	VMID int    `json:"vmid"`
	Node string `json:"node"`
	Type string `json:"type"`
	Tags string `json:"tags"`
	config
	record
}

// config of a machine, as far as it is used.
type config struct {
	Name     string `json:"name"`
	Notes    string `json:"description"`
	Lock     string `json:"lock"`
	Template flag   `json:"template"`
	Disk     string `json:"scsi0"`
	Card     string `json:"net0"`
	Drive    string `json:"ide2"`
	// BIOS is empty where nobody has chosen one.
	BIOS Firmware `json:"bios"`
	// Digest names this state of the configuration.
	Digest string `json:"digest"`
}

func (m machine) id() string       { return strconv.Itoa(m.VMID) }
func (m machine) family() string   { return m.Audit[upload.LabelName] }
func (m machine) version() string  { return m.Audit[upload.LabelVersion] }
func (m machine) disk() string     { return strings.TrimPrefix(m.Audit[upload.LabelDigest], "sha256:") }
func (m machine) finished() bool   { return bool(m.Template) && m.Lock == "" }
func (m machine) path() string     { return "/nodes/" + url.PathEscape(m.Node) + "/qemu/" + m.id() }
func (m machine) stableName() bool { return m.Name == m.family() }

// machines reads all that are ours, by their VMIDs.
func (t *Target) machines(ctx context.Context) ([]machine, error) {
	var all []machine
	if err := t.get(ctx, "/cluster/resources", url.Values{"type": {"vm"}}, &all); err != nil {
		return nil, err
	}
	var out []machine
	for _, m := range all {
		tags := strings.FieldsFunc(m.Tags, func(r rune) bool { return r == ';' || r == ',' || r == ' ' })
		if m.Type != "qemu" || !slices.Contains(tags, tag) {
			continue
		}
		is, err := t.read(ctx, &m)
		if err != nil {
			return nil, err
		}
		if is {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b machine) int { return cmp.Compare(a.VMID, b.VMID) })
	return out, nil
}

// read reads a machine's configuration, and whether it is ours. One that is gone is
// not.
func (t *Target) read(ctx context.Context, m *machine) (ours bool, err error) {
	m.config = config{}
	err = t.get(ctx, m.path()+"/config", nil, &m.config)
	if errors.Is(err, upload.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var found bool
	m.record, found = readNotes(m.Notes)
	return found && m.record.VMID == m.VMID && m.family() != "", nil
}

// find looks for the machine of an image: the finished one, or else one whose disk is
// filled and which only has to become a template.
func find(all []machine, img upload.Image) (*machine, error) {
	var hit *machine
	for i, m := range all {
		if m.family() != img.Name {
			continue
		}
		switch {
		case m.disk() == img.Digest:
			if hit == nil || m.finished() && !hit.finished() {
				hit = &all[i]
			}
		case m.version() == img.Version:
			return nil, fmt.Errorf("looking for %s: %w: VM %d is it with the digest %s, and this disk has %s; a version never changes", versionName(img.Name, img.Version), upload.ErrTaken, m.VMID, m.disk(), img.Digest)
		}
	}
	return hit, nil
}

// current is the one of a family that was promoted last, and previous the one before.
func current(all []machine, family string) (now, before *machine) {
	var promoted []*machine
	for i, m := range all {
		if m.family() == family && m.finished() && m.Turn > 0 {
			promoted = append(promoted, &all[i])
		}
	}
	slices.SortFunc(promoted, func(a, b *machine) int {
		return cmp.Or(cmp.Compare(b.Turn, a.Turn), cmp.Compare(b.VMID, a.VMID))
	})
	promoted = append(promoted, nil, nil)
	return promoted[0], promoted[1]
}

// halfLimit is how long an upload may take to make a template of a full disk.
const halfLimit = 24 * time.Hour

// objects are the versions of a family, or of all, oldest first, and what nobody has
// finished for a day.
func objects(all []machine, name string, now time.Time) []upload.Object {
	var out []upload.Object
	for i, m := range all {
		if name != "" && m.family() != name || !m.finished() && now.Sub(m.Uploaded) < halfLimit {
			continue
		}
		at, before := current(all, m.family())
		state := "template"
		if !m.finished() {
			state = cmp.Or(m.Lock, "no template")
		}
		out = append(out, upload.Object{
			ID: m.id(), Name: m.family(), Version: m.version(), Digest: m.disk(), Created: m.Uploaded, State: state + " on " + m.Node,
			Current: at == &all[i], Previous: before == &all[i], Broken: !m.finished(),
		})
	}
	slices.SortFunc(out, func(a, b upload.Object) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(len(a.ID), len(b.ID)), strings.Compare(a.ID, b.ID))
	})
	return out
}

// byID finds a machine of ours.
func byID(all []machine, id string) (*machine, error) {
	for i, m := range all {
		if m.id() == id {
			return &all[i], nil
		}
	}
	return nil, fmt.Errorf("looking for VM %s: %w", id, upload.ErrNotFound)
}
