// Package proxmox makes templates on Proxmox VE by its HTTP API, with an API token:
// no root, no shell on a node.
//
// A version is a template with a VMID that follows from the disk's digest; that a
// VMID exists once in a cluster makes one of two uploads at once the winner, and the
// other goes on with what that one began. The current version has the family's name,
// the others FAMILY-VERSION. The audit record is JSON in the notes, with the VMID in
// it: clones have the same notes, and another VMID.
//
// The file goes to a storage with content "import", which compares its SHA-256; the
// machine's disk is made of it there, and then the file is deleted. Calls and texts
// follow pve-storage 9 and qemu-server 9 as published; 8.4 is the first version that
// takes qcow2 and raw as "import".
package proxmox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// Firmware of the template.
type Firmware string

// The firmwares. UEFI has no keys, so no Secure Boot.
const (
	BIOS Firmware = "seabios"
	UEFI Firmware = "ovmf"
)

// Config is where the images go and what the template looks like. Endpoint, Token,
// Secret, Node, Datastore, Client, Random, Now and Wait are needed.
type Config struct {
	// Endpoint is https://NODE:8006.
	Endpoint string
	// Token is USER@REALM!ID, Secret what it was given.
	Token, Secret string
	// Node does the work; the template is on it, and its disk on Datastore.
	Node, Datastore string
	// Import is a storage of files with content "import"; empty for "local".
	Import string
	// FirstID is the first of 10,000 VMIDs that are ours to use; 0 for 90000.
	FirstID int
	// Bridge and VLAN of the template's card; without a bridge it has none.
	Bridge string
	VLAN   int
	// Cores and MemoryMB; 0 for 2 and 4096. CPU is what the guest sees, empty for
	// x86-64-v2-AES.
	Cores, MemoryMB int
	CPU             string
	// Firmware; empty for BIOS.
	Firmware Firmware
	// NodeJSON is what clones learn their server from: it goes to the import storage as
	// an ISO image, and into the template's CD drive. Empty for none.
	NodeJSON []byte
	// Medium is another volume for that drive, STORAGE:iso/NAME.iso.
	Medium string
	// Source gives Proxmox VE the file to download; nil to send it. The token then needs
	// Sys.AccessNetwork on the node besides.
	Source upload.Source
	// Client sends the calls. It has no time limit: an upload is one call.
	Client *http.Client
	// Random makes names that nobody else uses.
	Random io.Reader
	Now    func() time.Time
	// Wait passes the time between two questions about the same thing.
	Wait func(ctx context.Context) error
}

// Target is an upload.Target.
type Target struct{ Config }

// idRange is how many VMIDs are ours.
const idRange = 10_000

// What qemu-server takes in VMIDs, and what is plain in a path and an option.
const (
	minID = 100
	maxID = 999_999_999
)

var wordForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// New calls nobody.
func New(c Config) (*Target, error) {
	c.Import, c.FirstID, c.Firmware = cmp.Or(c.Import, "local"), cmp.Or(c.FirstID, 90_000), cmp.Or(c.Firmware, BIOS)
	c.Cores, c.MemoryMB, c.CPU = cmp.Or(c.Cores, 2), cmp.Or(c.MemoryMB, 4096), cmp.Or(c.CPU, "x86-64-v2-AES")
	for _, w := range []struct{ name, value string }{{"host", c.Node}, {"datastore", c.Datastore}, {"import storage", c.Import}, {"CPU", c.CPU}} {
		if !wordForm.MatchString(w.value) {
			return nil, fmt.Errorf("reading the %s %q: want letters, digits, dots and hyphens", w.name, w.value)
		}
	}
	switch {
	case c.Bridge != "" && !wordForm.MatchString(c.Bridge):
		return nil, fmt.Errorf("reading the bridge %q: want letters, digits, dots and hyphens", c.Bridge)
	case c.VLAN != 0 && c.Bridge == "" || c.VLAN < 0 || c.VLAN > 4094:
		return nil, fmt.Errorf("reading the VLAN %d: want 1 to 4094, and a bridge", c.VLAN)
	case c.FirstID < minID || c.FirstID > maxID-idRange:
		return nil, fmt.Errorf("reading the first VMID %d: want %d to %d", c.FirstID, minID, maxID-idRange)
	case c.Firmware != BIOS && c.Firmware != UEFI:
		return nil, fmt.Errorf("reading the firmware %q: want %s or %s", c.Firmware, BIOS, UEFI)
	case !strings.Contains(c.Token, "@") || !strings.Contains(c.Token, "!"):
		return nil, fmt.Errorf("reading the token's name %q: want USER@REALM!ID", c.Token)
	case c.Medium != "" && len(c.NodeJSON) > 0:
		return nil, fmt.Errorf("reading the medium %s: node.json is for the same drive; want one of them", c.Medium)
	case c.Medium != "" && (strings.ContainsAny(c.Medium, ", ") || !strings.Contains(c.Medium, ":iso/")):
		return nil, fmt.Errorf("reading the medium %q: want STORAGE:iso/NAME.iso", c.Medium)
	}
	c.Endpoint = strings.TrimRight(c.Endpoint, "/")
	return &Target{c}, nil
}

// Formats implements upload.Target.
func (t *Target) Formats() []store.Format { return []store.Format{store.QCOW2, store.Raw} }

// nameForm is a DNS name, as Proxmox VE wants it.
var nameForm = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?$`)

func checkNames(img upload.Image) error {
	if !nameForm.MatchString(img.Name) || !nameForm.MatchString(versionName(img.Name, img.Version)) {
		return fmt.Errorf("naming %q, version %q, in Proxmox VE: want a DNS name", img.Name, img.Version)
	}
	return nil
}

func versionName(name, version string) string { return name + "-" + version }

// storage is what a node says of one.
type storage struct {
	Content string `json:"content"`
	Active  int    `json:"active"`
	Avail   int64  `json:"avail"`
}

// room refuses a storage that does not take a content, or has too little room for
// what it gets at least.
func (t *Target) room(ctx context.Context, name, content string, bytes int64) error {
	var s storage
	if err := t.get(ctx, t.node("storage", name, "status"), nil, &s); err != nil {
		return fmt.Errorf("looking at the storage %s: %w", name, err)
	}
	has := false
	for _, c := range strings.Split(s.Content, ",") {
		has = has || c == content
	}
	switch {
	case s.Active == 0:
		return fmt.Errorf("looking at the storage %s: %w: it is not active on %s", name, upload.ErrServer, t.Node)
	case !has:
		return fmt.Errorf("looking at the storage %s: it has the contents %s, and %q is needed; pvesm set %s --content %s,%s", name, s.Content, content, name, s.Content, content)
	case s.Avail < bytes:
		return fmt.Errorf("looking at the storage %s: %w: it has %d bytes left, and the image has %d", name, upload.ErrSpace, s.Avail, bytes)
	}
	return nil
}

// Preflight implements upload.Target.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	if err := checkNames(img); err != nil {
		return upload.Plan{}, err
	}
	if err := t.get(ctx, "/version", nil, nil); err != nil {
		return upload.Plan{}, err
	}
	all, err := t.machines(ctx)
	if err != nil {
		return upload.Plan{}, err
	}
	m, err := find(all, img)
	if err != nil {
		return upload.Plan{}, err
	}
	switch {
	case m != nil && m.finished():
		for _, o := range objects(all, img.Name, t.Now()) {
			if o.ID == m.id() {
				return upload.Plan{Found: &o}, nil
			}
		}
	case m != nil:
		return upload.Plan{Bytes: img.Size, Steps: []string{fmt.Sprintf("make a template of VM %d, whose disk an earlier upload has filled", m.VMID)}}, nil
	}
	if err := errors.Join(t.room(ctx, t.Import, "import", img.Size), t.room(ctx, t.Datastore, "images", img.Size)); err != nil {
		return upload.Plan{}, err
	}
	if len(t.NodeJSON) > 0 {
		if err := t.room(ctx, t.Import, "iso", 0); err != nil {
			return upload.Plan{}, err
		}
	}
	how := "send %d bytes of %s to the storage %s on %s, which compares the SHA-256"
	if t.Source != nil {
		how = "have %[4]s download %[1]d bytes of %[2]s to the storage %[3]s, and compare the SHA-256"
	}
	return upload.Plan{Bytes: img.Size, Steps: []string{
		fmt.Sprintf(how, img.Size, img.Format, t.Import, t.Node),
		fmt.Sprintf("make VM %d, or the next that is free, with the disk on %s", t.idOf(img, 0), t.Datastore),
		"make it the template " + versionName(img.Name, img.Version), "delete the file",
	}}, nil
}
