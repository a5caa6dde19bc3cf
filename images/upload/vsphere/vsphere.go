// Package vsphere makes templates in the inventory of a vCenter, and items in its content
// libraries (Library), which other vCenters subscribe to.
//
// A version is a template FAMILY_VERSION in one folder; the current one is called
// FAMILY, so that people and programs find it by one name. Promote renames. The
// audit record is in the template's advanced settings, guestinfo.imagectl.*, from
// the moment that the machine exists; machines that are cloned from it inherit it.
//
// The disk travels as it lies on the disk, a streamOptimized VMDK, to the ESXi host
// that vCenter names (an NFC lease). Each upload imports under a name of its own and
// is renamed when all is there: that a name exists once in a folder makes one of two
// uploads at once the winner. A lease that nobody keeps alive ends after five
// minutes, and vCenter removes what it made.
package vsphere

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// Firmware of the template.
type Firmware string

// The firmwares; UEFI is without Secure Boot.
const (
	BIOS Firmware = "bios"
	UEFI Firmware = "efi"
)

// Config is where the images go and what the template looks like. CPUs, MemoryMB,
// Folder, Host, Firmware, Node and Trust may be left out.
type Config struct {
	// Endpoint is https://VCENTER/sdk; the path may be missing.
	Endpoint, Username, Password string
	// Datacenter has all that is named below.
	Datacenter string
	// Pool is a cluster, or CLUSTER/Resources/POOL: what the import runs in.
	Pool string
	// Host is CLUSTER/HOST; a cluster without DRS cannot choose one by itself.
	Host string
	// Datastore and Network are names, or paths where they lie in folders.
	Datastore, Network string
	// Folder of virtual machines; empty for the datacenter's own.
	Folder string
	// CPUs and MemoryMB; 0 for 2 and 4096.
	CPUs, MemoryMB int
	// Firmware; empty for UEFI.
	Firmware Firmware
	// Node is node.json, the default of the property that clones read it from.
	Node []byte
	// Transport sends everything. Trust tells it which certificate the host of an
	// URL has, when vCenter says so.
	Transport http.RoundTripper
	Trust     func(host, thumbprint string) error
	// Random makes names that nobody else uses.
	Random io.Reader
	Now    func() time.Time
	// Wait passes the time between two questions about the same thing, Beat that
	// between two signs of life while a disk is sent.
	Wait, Beat func(ctx context.Context) error
}

// Target is an upload.Target. It logs in when it is first used; Close ends that. It
// may be used by several goroutines.
type Target struct {
	Config

	mu sync.Mutex
	in *session
}

// New connects to nothing yet.
func New(c Config) (*Target, error) {
	for _, must := range []struct{ name, value string }{
		{"datacenter", c.Datacenter}, {"pool", c.Pool}, {"datastore", c.Datastore}, {"network", c.Network},
	} {
		if must.value == "" {
			return nil, fmt.Errorf("reading the %s: there is none", must.name)
		}
	}
	if c.Firmware != "" && c.Firmware != BIOS && c.Firmware != UEFI {
		return nil, fmt.Errorf("reading the firmware %q: want %s or %s", c.Firmware, BIOS, UEFI)
	}
	if c.MemoryMB%4 != 0 {
		return nil, fmt.Errorf("reading the memory, %d MB: vSphere takes multiples of 4", c.MemoryMB)
	}
	c.Firmware = cmp.Or(c.Firmware, UEFI)
	c.CPUs, c.MemoryMB = cmp.Or(c.CPUs, 2), cmp.Or(c.MemoryMB, 4096)
	return &Target{Config: c}, nil
}

// Formats implements upload.Target. The disk is the same in both.
func (t *Target) Formats() []store.Format { return []store.Format{store.VMDK, store.OVA} }

// nameForm is what is plain in an inventory path and a datastore's directory.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]*$`)

// maxName is vCenter's.
const maxName = 80

func checkNames(img upload.Image) error {
	if !nameForm.MatchString(img.Name) || !nameForm.MatchString(img.Version) {
		return fmt.Errorf("naming %q, version %q, in vCenter: want letters, digits, dots and hyphens", img.Name, img.Version)
	}
	if n := len(versionName(img.Name, img.Version)) + 1 + 2*markSize; n > maxName {
		return fmt.Errorf("naming %q, version %q, in vCenter: the import's name would have %d characters, and vCenter takes %d", img.Name, img.Version, n, maxName)
	}
	return nil
}

func versionName(name, version string) string { return name + "_" + version }

// session is a login, with what the configuration names.
type session struct {
	*vim25.Client
	folder, pool, datastore, network types.ManagedObjectReference
	host                             *types.ManagedObjectReference
}

// open logs in, or uses the login that there is.
func (t *Target) open(ctx context.Context) (*session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.in != nil {
		return t.in, nil
	}
	u, err := soap.ParseURL(t.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("reading the endpoint: %w", err)
	}
	c := soap.NewClient(u, false)
	c.Client.Transport = t.Transport
	s := &session{}
	if s.Client, err = vim25.NewClient(ctx, c); err != nil {
		return nil, failed(ctx, "asking "+u.Host+" what it is", err)
	}
	if !s.IsVC() {
		return nil, fmt.Errorf("looking at %s: %w: it is a %s, which has no templates; want a vCenter", u.Host, upload.ErrServer, s.ServiceContent.About.FullName)
	}
	_, err = methods.Login(ctx, s, &types.Login{This: *s.ServiceContent.SessionManager, UserName: t.Username, Password: t.Password})
	if err != nil {
		return nil, failed(ctx, "logging in at "+u.Host+" as "+t.Username, err)
	}
	if err := t.locate(ctx, s); err != nil {
		t.logout(ctx, s)
		return nil, err
	}
	t.in = s
	return s, nil
}

// Close logs out. What goes wrong with that does not matter: sessions end by
// themselves.
func (t *Target) Close(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.in != nil {
		t.logout(ctx, t.in)
		t.in = nil
	}
}

func (t *Target) logout(ctx context.Context, s *session) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyLimit)
	defer cancel()
	_, _ = methods.Logout(ctx, s, &types.Logout{This: *s.ServiceContent.SessionManager})
}

// tidyLimit is how long is spent on what need not succeed.
const tidyLimit = 10 * time.Second

// locate finds what the configuration names.
func (t *Target) locate(ctx context.Context, s *session) error {
	pool := t.Pool
	if !strings.Contains(pool, "/Resources") {
		pool += "/Resources"
	}
	for _, o := range []struct {
		what, path string
		into       *types.ManagedObjectReference
	}{
		{"folder", "vm/" + t.Folder, &s.folder}, {"pool", "host/" + pool, &s.pool},
		{"datastore", "datastore/" + t.Datastore, &s.datastore}, {"network", "network/" + t.Network, &s.network},
	} {
		if err := t.locateOne(ctx, s, o.what, o.path, o.into); err != nil {
			return err
		}
	}
	if t.Host == "" {
		return nil
	}
	s.host = &types.ManagedObjectReference{}
	return t.locateOne(ctx, s, "host", "host/"+t.Host, s.host)
}

func (t *Target) locateOne(ctx context.Context, s *session, what, path string, into *types.ManagedObjectReference) error {
	path = strings.TrimRight(t.Datacenter+"/"+path, "/")
	found, err := methods.FindByInventoryPath(ctx, s, &types.FindByInventoryPath{This: *s.ServiceContent.SearchIndex, InventoryPath: path})
	if err != nil {
		return failed(ctx, "looking for the "+what+" "+path, err)
	}
	if found.Returnval == nil {
		return fmt.Errorf("looking for the %s %s: %w, or %s may not see it", what, path, upload.ErrNotFound, t.Username)
	}
	*into = *found.Returnval
	return nil
}
