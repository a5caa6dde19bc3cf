//go:build upload

package libvirt

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

// empty forgets all domains and deletes all volumes.
func empty(t *testing.T, s *libvirt.Libvirt) {
	t.Helper()
	domains, _, err := s.ConnectListAllDomains(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range domains {
		if err := s.DomainUndefine(d); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range volumes(t, s) {
		if err := s.StorageVolDelete(v, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConformanceOfARealDaemon(t *testing.T) {
	c := started(t)
	s := c.admin(t)
	uploadtest.Run(t, func(t *testing.T) uploadtest.Platform {
		empty(t, s)
		p := uploadtest.Platform{
			Target: func(f *uploadtest.Faults) upload.Target {
				faulty := c
				faulty.Dial = broken(c, f)
				return made(t, faulty)
			},
			Leftovers: func() ([]string, error) {
				var left []string
				for _, v := range volumes(t, s) {
					if v.Name != "others.qcow2" && v.Name != "clone.qcow2" {
						left = append(left, v.Name)
					}
				}
				domains, _, err := s.ConnectListAllDomains(1, 0)
				for _, d := range domains {
					if strings.HasPrefix(d.Name, "prod-worker_") && !slices.ContainsFunc(left, func(v string) bool { return strings.HasPrefix(v, d.Name+".") }) {
						left = append(left, "domain "+d.Name)
					}
				}
				return left, err
			},
			Plant: func() func() error { return plant(t, s) },
			Later: func(f *uploadtest.Faults) upload.Target {
				late := c
				late.Dial = broken(c, f)
				late.Now = func() time.Time { return time.Now().Add(25 * time.Hour) }
				return made(t, late)
			},
			Changed: func(f *uploadtest.Faults) upload.Target {
				other := c
				other.Dial = broken(c, f)
				other.Node, other.Memory, other.CPUs, other.Firmware = `{"cluster": "demo", "ca": "new"}`, 8192, 4, UEFI
				return made(t, other)
			},
			Template: func() (string, error) {
				d, err := s.DomainLookupByName("prod-worker")
				if err != nil {
					return "", err
				}
				return s.DomainGetXMLDesc(d, libvirt.DomainXMLInactive)
			},
			Options: []string{base64.StdEncoding.EncodeToString([]byte(`{"cluster": "demo", "ca": "new"}`)), "<memory unit='KiB'>8388608</memory>", "<vcpu placement='static'>4</vcpu>", "firmware='efi'"},
			Use:     func(o upload.Object) error { return use(t, c, s, o) },
			Absent: map[uploadtest.Case]string{
				uploadtest.Quota:     "libvirt has no quotas of its own; that of a file system is the same refusal as a full one",
				uploadtest.Storm:     "libvirt does not speak HTTP",
				uploadtest.CalledOff: "nothing is imported: the volume is written by this process, and a half one is deleted",
			},
		}
		if os.Getuid() != 0 {
			p.Absent[uploadtest.Credentials] = "only root can be another user, whom the socket is closed to"
			p.Absent[uploadtest.Full] = "only root can mount a file system that is too small; TestKindsOfFailures reads libvirt's words for it"
			return p
		}
		p.Fill = func() { small(t, s, 1<<20) }
		p.Stranger = func() upload.Target {
			theirs := c
			theirs.Dial = func(ctx context.Context) (net.Conn, error) { return dialAs(ctx, stranger, c.Dial) }
			return made(t, theirs)
		}
		return p
	})
}

// broken dials with connections whose calls fail.
func broken(c Config, f *uploadtest.Faults) func(ctx context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var conn net.Conn
		err := f.Call(ctx, func() (err error) {
			conn, err = c.Dial(ctx)
			return err
		})
		if err != nil {
			if conn != nil {
				conn.Close()
			}
			return nil, err
		}
		return &wire{Conn: f.Conn(conn), f: f, ctx: ctx, got: make(chan struct{}, 1)}, nil
	}
}

// stranger is a user that no file belongs to.
const stranger = 65533

// dialAs connects as another user would: the kernel looks at the thread's user for
// files when it decides who may open a socket (setfsuid(2)).
func dialAs(ctx context.Context, uid int, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := syscall.Setfsuid(uid); err != nil {
		return nil, err
	}
	conn, err := dial(ctx)
	if back := syscall.Setfsuid(0); back != nil {
		// The thread is somebody else's now: nobody may have it.
		panic(back)
	}
	return conn, err
}

// plant makes a domain and a volume of others.
func plant(t *testing.T, s *libvirt.Libvirt) func() error {
	t.Helper()
	p, err := s.StoragePoolLookupByName(pool)
	if err != nil {
		t.Fatal(err)
	}
	text, err := volume("others.qcow2", store.QCOW2, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.StorageVolCreateXML(p, text, 0); err != nil {
		t.Fatal(err)
	}
	d, err := s.DomainDefineXML(`<domain type='qemu'><name>others</name><memory>65536</memory><os><type>hvm</type></os>
  <metadata><app:thing xmlns:app="urn:others">prod-worker</app:thing></metadata></domain>`)
	if err != nil {
		t.Fatal(err)
	}
	before, err := s.DomainGetXMLDesc(d, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func() error {
		if _, err := s.StorageVolLookupByName(p, "others.qcow2"); err != nil {
			return err
		}
		after, err := s.DomainGetXMLDesc(d, 0)
		if err == nil && after != before {
			err = fmt.Errorf("the domain was %s and is %s", before, after)
		}
		return err
	}
}

// use makes an overlay over a version's volume, as a clone has it.
func use(t *testing.T, c Config, s *libvirt.Libvirt, o upload.Object) error {
	t.Helper()
	ses, done, err := made(t, c).open(t.Context())
	if err != nil {
		return err
	}
	defer done()
	k, err := ses.find(o.ID, kindVersion)
	if err != nil {
		return err
	}
	base, err := s.StorageVolLookupByName(ses.pool, k.Volume)
	if err != nil {
		return err
	}
	path, err := s.StorageVolGetPath(base)
	if err != nil {
		return err
	}
	v := libvirtxml.StorageVolume{
		Name: "clone.qcow2", Capacity: &libvirtxml.StorageVolumeSize{Unit: "bytes", Value: 16 << 20},
		Target:       &libvirtxml.StorageVolumeTarget{Format: &libvirtxml.StorageVolumeTargetFormat{Type: "qcow2"}},
		BackingStore: &libvirtxml.StorageVolumeBackingStore{Path: path, Format: &libvirtxml.StorageVolumeTargetFormat{Type: "qcow2"}},
	}
	text, err := v.Marshal()
	if err != nil {
		return err
	}
	_, err = s.StorageVolCreateXML(ses.pool, text, 0)
	return err
}

// wire lets libvirt's calls fail. A call is a packet of type 0 in its protocol; the
// packets of streams are not counted.
type wire struct {
	net.Conn
	f   *uploadtest.Faults
	ctx context.Context
	// packet is what has been written of one.
	packet []byte
	// verdict is held while it is decided whether an answer may arrive.
	verdict sync.Mutex
	got     chan struct{}
	dead    bool
}

const (
	headerSize = 28
	typeAt     = 16
)

// Write collects whole packets.
func (w *wire) Write(p []byte) (int, error) {
	w.packet = append(w.packet, p...)
	for len(w.packet) >= headerSize {
		size := int(binary.BigEndian.Uint32(w.packet))
		if len(w.packet) < size {
			break
		}
		one := w.packet[:size]
		if err := w.send(one, binary.BigEndian.Uint32(one[typeAt:]) == 0); err != nil {
			return 0, err
		}
		w.packet = slices.Clone(w.packet[size:])
	}
	return len(p), nil
}

func (w *wire) send(packet []byte, call bool) error {
	if !call {
		_, err := w.Conn.Write(packet)
		return err
	}
	w.verdict.Lock()
	defer w.verdict.Unlock()
	sent := false
	err := w.f.Call(w.ctx, func() error {
		sent = true
		_, err := w.Conn.Write(packet)
		return err
	})
	if err != nil {
		if sent {
			// The daemon does it, and its answer is lost.
			select {
			case <-w.got:
			case <-time.After(time.Minute):
			}
		}
		w.dead = true
		w.Conn.Close()
	}
	return err
}

// Read delivers an answer unless it is to be lost.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	select {
	case w.got <- struct{}{}:
	default:
	}
	w.verdict.Lock()
	defer w.verdict.Unlock()
	if w.dead {
		return 0, io.EOF
	}
	// What arrived before the next call is no answer to it.
	select {
	case <-w.got:
	default:
	}
	return n, err
}

// A raw image has holes, which are not sent, and is the same when it is read back.
func TestHolesDoNotTravel(t *testing.T) {
	c := started(t)
	to := made(t, c)
	img := uploadtest.Image(t, store.Raw, "prod-worker", 7)
	const size = 1 << 30
	if err := img.File.Truncate(size); err != nil {
		t.Fatal(err)
	}
	h := sum(t, img.File, size)
	img.Size, img.RawSize, img.SHA256, img.Digest = size, size, h, h
	var last upload.Event
	state, err := upload.OpenJournal(t.TempDir(), upload.Key{Target: "lv", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	o, err := to.Upload(t.Context(), img, state, func(e upload.Event) { last = e })
	if err != nil {
		t.Fatal(err)
	}
	if last.Total > 4<<20 || last.Done != last.Total {
		t.Errorf("%d of %d bytes were sent; the file has 3 MiB and a hole", last.Done, last.Total)
	}
	checks, err := to.Verify(t.Context(), o, img)
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range checks {
		if check.Result != upload.Good {
			t.Errorf("%s: %s: %s", check.Name, check.Result, check.Detail)
		}
	}
}

// A family lives in one pool: another target of the same host does not take its
// version apart.
func TestAVersionInAnotherPoolStays(t *testing.T) {
	c := started(t)
	s := c.admin(t)
	p, err := s.StoragePoolLookupByName(pool)
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.StoragePoolGetXMLDesc(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	var x libvirtxml.StoragePool
	if err := x.Unmarshal(text); err != nil {
		t.Fatal(err)
	}
	// A directory of the daemon's user.
	const other = `<pool type='dir'><name>other</name><target><path>%s/../other</path></target></pool>`
	if _, err := s.StoragePoolCreateXML(fmt.Sprintf(other, x.Target.Path), libvirt.StoragePoolCreateWithBuild); err != nil {
		t.Fatal(err)
	}
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	state, err := upload.OpenJournal(t.TempDir(), upload.Key{Target: "lv", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	here := made(t, c)
	o, err := here.Upload(t.Context(), img, state, func(upload.Event) {})
	if err != nil {
		t.Fatal(err)
	}
	c.Pool = "other"
	if _, err := made(t, c).Upload(t.Context(), img, state, func(upload.Event) {}); !errors.Is(err, upload.ErrTaken) || !strings.Contains(err.Error(), "its volume is in the pool templates, and the pool other is wanted") {
		t.Errorf("Upload = %v, want that the name is taken", err)
	}
	if all, err := here.List(t.Context(), ""); err != nil || len(all) != 1 || all[0].ID != o.ID {
		t.Errorf("List = %+v, %v, want %s", all, err, o.ID)
	}
}

// The firmware that libvirt chooses for a UEFI template has no Secure Boot.
func TestUEFIIsWithoutSecureBoot(t *testing.T) {
	c := started(t)
	c.Firmware = UEFI
	to := made(t, c)
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	state, err := upload.OpenJournal(t.TempDir(), upload.Key{Target: "lv", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	o, err := to.Upload(t.Context(), img, state, func(upload.Event) {})
	if err != nil {
		t.Fatal(err)
	}
	s := c.admin(t)
	d, err := s.DomainLookupByName(o.ID)
	if err != nil {
		t.Fatal(err)
	}
	// Which firmware it is shows when QEMU runs.
	if _, err := s.DomainCreateWithFlags(d, uint32(libvirt.DomainStartPaused)); err != nil {
		t.Fatal(err)
	}
	text, err := s.DomainGetXMLDesc(d, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DomainDestroy(d); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "OVMF_CODE") || strings.Contains(text, "secboot") || strings.Contains(text, ".ms.fd") {
		t.Errorf("the machine runs as %s", text)
	}
	if !strings.Contains(text, "opt/org.imagectl/node") {
		t.Errorf("the machine runs without the node's configuration: %s", text)
	}
}

func TestASocketThatIsClosedToUs(t *testing.T) {
	dial, driver, err := Address("qemu:///session", Local{RuntimeDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	to := made(t, Config{Dial: dial, Driver: driver, Pool: pool, Random: rand.Reader, Now: time.Now})
	if _, err := to.List(t.Context(), ""); !errors.Is(err, upload.ErrServer) {
		t.Errorf("List = %v, want a failure of the server", err)
	}
}
