// Package libvirt makes templates on a libvirt host with QEMU.
//
// A version is a volume and a domain, NAME_VERSION, that is shut off and has the
// audit record in its metadata. The domain NAME is the template that people clone:
// Promote makes it like that of a version. Both have the volume read-only, so that
// a template that somebody starts by mistake cannot spoil the disk that clones lie
// on.
//
// Each upload has a volume of its own. That a domain's name can be defined only
// once makes one of two uploads at once the winner; the other takes that one and
// removes its volume. libvirt keeps no digest: Verify reads the volume back.
package libvirt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// Firmware of the template.
type Firmware string

// The firmwares. UEFI is without Secure Boot: what libvirt chooses by itself has
// Microsoft's keys on Debian, which nothing of ours is signed with.
const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// Config is where the images go and what the template looks like. Dial, Driver,
// Pool, Random and Now are needed.
type Config struct {
	// Dial connects to the daemon, Driver is what it is asked for: see Address.
	Dial   func(ctx context.Context) (net.Conn, error)
	Driver string
	// Pool is a storage pool that is active.
	Pool string
	// Network or Bridge of the template's card; with neither it has QEMU's own, which
	// reaches out and cannot be reached.
	Network, Bridge string
	// CPUs and Memory, in MiB; 0 for 2 and 4096.
	CPUs, Memory int
	// Firmware; empty for BIOS, which every host has.
	Firmware Firmware
	// Emulate makes the template for hosts without KVM.
	Emulate bool
	// Node is what "imagectl machines config" says, for clones to find their server;
	// empty when each clone is told in another way. It stands in the domain itself, so
	// that the host needs no file.
	Node string
	// Random makes names that nobody else uses.
	Random io.Reader
	Now    func() time.Time
}

// Target is a storage pool of a host. It may be used by several goroutines; each
// call has a connection of its own.
type Target struct{ Config }

// New connects to nothing yet.
func New(c Config) (*Target, error) {
	switch {
	case c.Pool == "":
		return nil, errors.New("reading the storage pool: there is none")
	case c.Network != "" && c.Bridge != "":
		return nil, fmt.Errorf("reading the template's card: network %s and bridge %s; want one of them", c.Network, c.Bridge)
	case c.Firmware != "" && c.Firmware != BIOS && c.Firmware != UEFI:
		return nil, fmt.Errorf("reading the firmware %q: want %s or %s", c.Firmware, BIOS, UEFI)
	}
	c.Firmware = cmp.Or(c.Firmware, BIOS)
	c.CPUs, c.Memory = cmp.Or(c.CPUs, 2), cmp.Or(c.Memory, 4096)
	return &Target{c}, nil
}

// Address reads a libvirt URI: qemu:///system, qemu:///session (whose socket is
// below the user's runtime directory), qemu+ssh://user@host/system, or
// qemu+tls://host/system. Over SSH the user's known_hosts, keys and agent count.
func Address(uri string, l Local) (dial func(context.Context) (net.Conn, error), driver string, err error) {
	u, err := url.Parse(uri)
	if err != nil || u.Path != "/system" && u.Path != "/session" {
		return nil, "", fmt.Errorf("reading the libvirt URI: want qemu:///system, qemu:///session, qemu+ssh://USER@HOST/system or qemu+tls://HOST/system")
	}
	if _, set := u.User.Password(); set {
		return nil, "", errors.New("reading the libvirt URI: it must not carry a password; ssh reads keys and the agent")
	}
	for name := range u.Query() {
		if can := parameters(u.Scheme); !slices.Contains(can, name) {
			return nil, "", fmt.Errorf("reading the libvirt URI %q: parameter %s is none of %s", uri, name, strings.Join(can, ", "))
		}
	}
	driver = "qemu://" + u.Path
	switch {
	case u.Scheme == "qemu" && u.Host == "":
		path := systemSocket
		if u.Path == "/session" {
			path = l.RuntimeDir + "/libvirt/libvirt-sock"
		}
		if given := u.Query().Get("socket"); given != "" {
			path = given
		}
		return func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}, driver, nil
	case u.Scheme == "qemu+ssh" && u.Host != "":
		dial, err = overSSH(u, l)
		return dial, driver, err
	case u.Scheme == "qemu+tls" && u.Host != "":
		return overTLS(u, l), driver, nil
	}
	return nil, "", fmt.Errorf("reading the libvirt URI %q: want qemu, qemu+ssh or qemu+tls; others are not encrypted or not QEMU", uri)
}

// Formats that QEMU runs from and libvirt takes as they are.
func (t *Target) Formats() []store.Format { return []store.Format{store.QCOW2, store.Raw} }

// nameForm is what is plain in a domain's name, a volume's name and a path.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func checkNames(img upload.Image) error {
	if !nameForm.MatchString(img.Name) || !nameForm.MatchString(img.Version) {
		return fmt.Errorf("naming %q, version %q, in libvirt: want letters, digits, dots and hyphens", img.Name, img.Version)
	}
	return nil
}

func versionName(name, version string) string { return name + "_" + version }

// session is one connection, for one call.
type session struct {
	*libvirt.Libvirt
	ctx  context.Context
	pool libvirt.StoragePool
}

// open connects and finds the pool. The end of the context ends whatever is going
// on. The caller calls the returned function.
func (t *Target) open(ctx context.Context) (*session, func(), error) {
	conn, err := t.Dial(ctx)
	if err != nil {
		return nil, nil, failed(ctx, "connecting to libvirt", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	s := &session{libvirt.NewWithDialer(dialers.NewAlreadyConnected(inOrder(conn))), ctx, libvirt.StoragePool{}}
	if err := s.ConnectToURI(libvirt.ConnectURI(t.Driver)); err != nil {
		stop()
		conn.Close()
		return nil, nil, failed(ctx, "opening "+t.Driver, err)
	}
	done := func() {
		if stop() {
			// It says what is over anyway.
			_ = s.Disconnect()
		}
		conn.Close()
	}
	if s.pool, err = s.StoragePoolLookupByName(t.Pool); err != nil {
		done()
		return nil, nil, failed(ctx, "looking for the storage pool "+t.Pool, err)
	}
	return s, done, nil
}

// failed says what was being done, which kind of failure it was, and what libvirt
// said.
func failed(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	var answer libvirt.Error
	switch {
	case ctx.Err() != nil:
		// The connection was cut because of it.
		return fmt.Errorf("%s: %w", doing, upload.CallError(ctx, fmt.Errorf("%w: %w", context.Cause(ctx), err)))
	case !errors.As(err, &answer):
		if errors.Is(err, upload.ErrAuth) {
			return fmt.Errorf("%s: %w", doing, err)
		}
		if errors.Is(err, fs.ErrPermission) || strings.Contains(err.Error(), "unable to authenticate") {
			return fmt.Errorf("%s: %w: %w", doing, upload.ErrAuth, err)
		}
		return fmt.Errorf("%s: %w", doing, upload.CallError(ctx, err))
	}
	kind := upload.ErrServer
	switch libvirt.ErrorNumber(answer.Code) {
	case libvirt.ErrAuthFailed, libvirt.ErrAuthCancelled, libvirt.ErrAuthUnavailable, libvirt.ErrOperationDenied, libvirt.ErrAccessDenied:
		kind = upload.ErrAuth
	case libvirt.ErrNoDomain, libvirt.ErrNoStoragePool, libvirt.ErrNoStorageVol:
		kind = upload.ErrNotFound
	}
	if text := strings.ToLower(answer.Message); strings.Contains(text, "no space left") || strings.Contains(text, "quota exceeded") {
		kind = upload.ErrSpace
	}
	return fmt.Errorf("%s: %w: %s", doing, kind, answer.Message)
}

// none: libvirt has no such thing.
func none(err error, code libvirt.ErrorNumber) bool {
	var answer libvirt.Error
	return errors.As(err, &answer) && answer.Code == uint32(code)
}
