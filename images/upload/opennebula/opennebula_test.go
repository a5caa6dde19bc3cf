package opennebula_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/opennebula"
	"github.com/imagectl/imagectl/images/upload/opennebula/onedtest"
	"github.com/imagectl/imagectl/images/upload/staging"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
)

func run(t *testing.T, tg upload.Target, img upload.Image) (upload.Outcome, error) {
	t.Helper()
	j, err := upload.OpenJournal(t.TempDir(), upload.Key{Target: "one", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	out, err := upload.Run(t.Context(), tg, img, j, func(upload.Event) {}, true)
	if left := j.Left(); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return out, err
}

// qemu-img judges the bytes that the front-end has.
func TestBothFormatsArriveWhole(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		format      store.Format
		gets, heads int
	}{{store.QCOW2, 7, 0}, {store.Raw, 8, 1}} {
		t.Run(string(tt.format), func(t *testing.T) {
			t.Parallel()
			one := onedtest.Start(t)
			img := uploadtest.Image(t, tt.format, "prod-worker", 5)
			out, err := run(t, opennebula.New(config(t, one)), img)
			if err != nil {
				t.Fatal(err)
			}
			if gets, heads := one.Reads(); gets != tt.gets || heads != tt.heads {
				t.Errorf("%d GETs and %d HEADs, want %d and %d", gets, heads, tt.gets, tt.heads)
			}
			cmd := exec.Command("qemu-img", "compare", "-f", string(tt.format), "-F", string(tt.format), one.File(out.Object.ID), img.File.Name())
			if b, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("qemu-img compare: %v\n%s", err, b)
			}
		})
	}
}

func TestTemplateHasWhatAMachineNeeds(t *testing.T) {
	t.Parallel()
	one := onedtest.Start(t)
	conf := config(t, one)
	conf.Machine.DiskMB, conf.Machine.Firmware = 20480, "/usr/share/OVMF/OVMF_CODE_4M.fd"
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	out, err := run(t, opennebula.New(conf), img)
	if err != nil {
		t.Fatal(err)
	}
	got := one.Template(onedtest.Session, "prod-worker")
	for _, want := range []string{
		"<DISK><IMAGE_ID>" + out.Object.ID + "</IMAGE_ID><DEV_PREFIX>sd</DEV_PREFIX><CACHE>none</CACHE><DISCARD>unmap</DISCARD><IO>native</IO><SIZE>20480</SIZE></DISK>",
		"<MACHINE>q35</MACHINE><FIRMWARE>/usr/share/OVMF/OVMF_CODE_4M.fd</FIRMWARE><FIRMWARE_SECURE>NO</FIRMWARE_SECURE>",
		"<VIRTIO_SCSI_QUEUES>auto</VIRTIO_SCSI_QUEUES>", "<MEMORY>4096</MEMORY>", "<VCPU>2</VCPU>",
		"<NIC><NETWORK>rack</NETWORK><MODEL>virtio</MODEL></NIC>",
		// oned puts the cards' addresses and the machine's name there. base64 of {"cluster":"prod"}
		"<CONTEXT><NETWORK>YES</NETWORK><SET_HOSTNAME>$NAME</SET_HOSTNAME><IMAGECTL_NODE>eyJjbHVzdGVyIjoicHJvZCJ9</IMAGECTL_NODE></CONTEXT>",
		"<IMAGECTL_DIGEST>" + img.Digest + "</IMAGECTL_DIGEST>",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the template lacks %s:\n%s", want, got)
		}
	}
	// Other settings reach it without another image, and rollback keeps its aim.
	second, err := run(t, opennebula.New(conf), uploadtest.Image(t, store.QCOW2, "prod-worker", 6))
	if err != nil {
		t.Fatal(err)
	}
	conf.Machine.MemoryMB = 8192
	if err := opennebula.New(conf).Promote(t.Context(), second.Object); err != nil {
		t.Fatal(err)
	}
	got = one.Template(onedtest.Session, "prod-worker")
	for _, want := range []string{"<MEMORY>8192</MEMORY>", "<IMAGECTL_PREVIOUS>" + out.Object.ID + "<", "<IMAGE_ID>" + second.Object.ID + "<"} {
		if !strings.Contains(got, want) {
			t.Errorf("the template lacks %s:\n%s", want, got)
		}
	}
}

// damaged is a source that gives the front-end other bytes than were hashed.
type damaged struct {
	upload.Source
	other upload.Image
}

func (d damaged) Stage(ctx context.Context, w upload.Wanted, j upload.Journal, ev upload.Events) (string, func(), error) {
	w.Image = d.other
	return d.Source.Stage(ctx, w, j, ev)
}

// The front-end says why, the dead image does not keep its name, and the next
// upload is not hindered.
func TestFailedImportSaysWhyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	unsafe := t.TempDir()
	b, err := os.ReadFile(img.File.Name())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(unsafe, "prod-worker-"+img.Version+".qcow2"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		source func(good upload.Source) upload.Source
		want   string
	}{
		{"bytes that are not those that were hashed", func(good upload.Source) upload.Source {
			return damaged{good, uploadtest.Image(t, store.QCOW2, "prod-worker", 6)}
		}, "Hash does not match"},
		{"a directory that is not safe", func(upload.Source) upload.Source { return staging.Direct(unsafe) }, "Not allowed to copy image"},
		{"a file that is not there", func(upload.Source) upload.Source { return staging.Direct("/var/tmp/nowhere") }, "(Permission denied)"},
	} {
		one := onedtest.Start(t)
		conf := config(t, one)
		good := conf.Source
		conf.Source = tt.source(good)
		if _, err := run(t, opennebula.New(conf), img); !errors.Is(err, upload.ErrServer) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want ErrServer with %q", tt.name, err, tt.want)
		}
		if left := one.Images(onedtest.Session); len(left) > 0 {
			t.Errorf("%s: left is %v", tt.name, left)
		}
		conf.Source = good
		if _, err := run(t, opennebula.New(conf), img); err != nil {
			t.Errorf("%s: afterwards: %v", tt.name, err)
		}
	}
}

func TestFrontEndThatHasNotLookedAtItsDatastoreYet(t *testing.T) {
	t.Parallel()
	one := onedtest.Start(t)
	one.Restart()
	tg := opennebula.New(config(t, one))
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	if _, err := run(t, tg, img); !errors.Is(err, upload.ErrSpace) || !strings.Contains(err.Error(), "try again in a few minutes") {
		t.Errorf("got %v", err)
	}
	one.Monitor()
	if _, err := run(t, tg, img); err != nil {
		t.Error(err)
	}
}

// What the real front-end refuses is refused by the one of these tests too, with
// the same codes; this is what stands in for the real one here.
func TestFrontEndRefuses(t *testing.T) {
	t.Parallel()
	one := onedtest.Start(t)
	path := stagedHeads(t)
	const session = onedtest.Session
	for _, tt := range []struct {
		name, session, method, text string
		code                        int
		want                        string
	}{
		{"a stranger", "ops:wrong", "one.image.allocate", "", 256, "authenticated"},
		{"SOURCE of an image", session, "one.image.allocate", `NAME="a" SOURCE="/dev/sda"`, 512, "restricted attribute"},
		{"RAW of a template", session, "one.template.allocate", `NAME="a" RAW=[ TYPE="kvm", DATA="x" ]`, 512, "restricted attribute"},
		{"a raw image that is packed by gzip", session, "one.image.allocate", `NAME="a" PATH="` + path("disk.raw.gz") + `"`, 8192, "Unsupported remote image format"},
		{"by xz", session, "one.image.allocate", `NAME="a" PATH="` + path("disk.raw.xz") + `"`, 8192, "Unsupported remote image format"},
		{"by bzip2", session, "one.image.allocate", `NAME="a" PATH="` + path("disk.raw.bz2") + `"`, 8192, "Unsupported remote image format"},
		{"a template", session, "one.template.allocate", `NAME="t" CPU="1"`, 0, "<i4>0</i4>"},
		{"its name again", session, "one.template.allocate", `NAME="t" CPU="1"`, 16384, "NAME is already taken by TEMPLATE 0."},
		{"an image", session, "one.image.allocate", `NAME="i" PATH="` + path("disk.qcow2") + `"`, 0, "<i4>1</i4>"},
		{"its name again", session, "one.image.allocate", `NAME="i" PATH="` + path("disk.qcow2") + `"`, 16384, "NAME is already taken by IMAGE 1."},
		{"an image that is larger than the datastore", session, "one.image.allocate", `NAME="b" PATH="` + path("big.qcow2") + `"`, 2048, "Not enough space in datastore"},
		{"a URL with nothing behind it", session, "one.image.allocate", `NAME="a" PATH="` + path("nothing") + `"`, 8192, "(Permission denied)"},
	} {
		body := fmt.Sprintf(`<?xml version="1.0"?><methodCall><methodName>%s</methodName><params><param><value><string>%s</string></value></param><param><value><string>%s</string></value></param><param><value><int>1</int></value></param><param><value><boolean>0</boolean></value></param></params></methodCall>`, tt.method, tt.session, tt.text)
		resp, err := http.Post(one.URL, "text/xml", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := resp.Write(&b); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := b.String(); !strings.Contains(got, tt.want) || !strings.Contains(got, fmt.Sprintf("<i4>%d</i4>", tt.code)) {
			t.Errorf("%s: %s", tt.name, got)
		}
	}
}

// stagedHeads serves the beginnings of files.
func stagedHeads(t *testing.T) func(name string) string {
	t.Helper()
	qcow2 := func(size uint64) string {
		return "QFI\xfb" + string(make([]byte, 20)) + string(binary.BigEndian.AppendUint64(nil, size)) + string(make([]byte, 40))
	}
	heads := map[string]string{
		"/disk.raw.gz": "\x1f\x8b\x08\x00", "/disk.raw.xz": "\xfd7zXZ\x00\x00\x04", "/disk.raw.bz2": "BZh91AY&SY",
		"/disk.qcow2": qcow2(1 << 20), "/big.qcow2": qcow2(1 << 50),
	}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head, is := heads[r.URL.Path]
		if !is {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, head)
	}))
	t.Cleanup(h.Close)
	return func(name string) string { return h.URL + "/" + name }
}

// Somebody has put the file where the front-end reads: in a directory that is safe, or
// at a URL.
func TestFileThatIsThereAlready(t *testing.T) {
	t.Parallel()
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	want, err := os.ReadFile(img.File.Name())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "prod-worker-"+img.Version+".qcow2"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	mirror := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(mirror.Close)
	for _, at := range []string{dir, dir + "/", mirror.URL, mirror.URL + "/"} {
		one := onedtest.Start(t)
		one.Safe(dir)
		conf := config(t, one)
		conf.Source = staging.Direct(at)
		tg := opennebula.New(conf)
		out, err := run(t, tg, img)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		if got, err := os.ReadFile(one.File(out.Object.ID)); err != nil || !bytes.Equal(got, want) || !out.Object.Current {
			t.Errorf("%s: the image has %d bytes, want %d; %v, %+v", at, len(got), len(want), err, out)
		}
		if _, err := os.Stat(filepath.Join(dir, "prod-worker-"+img.Version+".qcow2")); err != nil {
			t.Errorf("%s: the file is not ours to remove: %v", at, err)
		}
	}
}

// Nobody knows how much space there is when the front-end begins to read.
func TestSpaceThatGoesMeanwhile(t *testing.T) {
	t.Parallel()
	img := uploadtest.Image(t, store.QCOW2, "prod-worker", 5)
	for _, tt := range []struct {
		name string
		// goes is called when the image is asked for.
		goes func(*onedtest.Server)
		want string
	}{
		{"refused", func(one *onedtest.Server) { one.Fill(0) }, "calling one.image.allocate: OpenNebula says (2048): [one.image.allocate] Not enough space in datastore"},
		{"found by the driver", func(one *onedtest.Server) { one.Spoil("write error: No space left on device") }, "no space: OpenNebula says: Error copying image in the datastore: write error: No space left on device; image 0 was deleted"},
	} {
		one := onedtest.Start(t)
		conf := config(t, one)
		conf.Client.Transport = before{"one.image.allocate", func() { tt.goes(one) }}
		if _, err := run(t, opennebula.New(conf), img); !errors.Is(err, upload.ErrSpace) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want ErrSpace with %q", tt.name, err, tt.want)
		}
		if left := one.Images(onedtest.Session); len(left) > 0 {
			t.Errorf("%s: left is %v", tt.name, left)
		}
	}
}

// before calls a function before each call of a method.
type before struct {
	method string
	do     func()
}

// RoundTrip implements http.RoundTripper.
func (b before) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := r.GetBody()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(text), "<methodName>"+b.method+"<") {
		b.do()
	}
	return http.DefaultTransport.RoundTrip(r)
}

// What somebody has locked stays, and is no failure of prune.
func TestAnImageThatIsLockedIsInUse(t *testing.T) {
	t.Parallel()
	one := onedtest.Start(t)
	tg := opennebula.New(config(t, one))
	var ids []string
	for seed := range uint64(3) {
		out, err := run(t, tg, uploadtest.Image(t, store.QCOW2, "prod-worker", seed))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, out.Object.ID)
	}
	if err := one.Lock(ids[0]); err != nil {
		t.Fatal(err)
	}
	got, err := upload.Prune(t.Context(), tg, "prod-worker", 1, false, nil)
	if err != nil || len(got) != 3 || got[0].Deleted || !strings.Contains(got[0].Reason, "OpenNebula says (512): [one.image.delete] User [2] : IMAGE is locked. ["+ids[0]+"].") {
		t.Errorf("got %+v, %v", got, err)
	}
}

// An image that a template names is not deleted, even one that no machine uses and
// whatever the template.
func TestImageInATemplateIsInUse(t *testing.T) {
	t.Parallel()
	one := onedtest.Start(t)
	tg := opennebula.New(config(t, one))
	out, err := run(t, tg, uploadtest.Image(t, store.QCOW2, "prod-worker", 5))
	if err != nil {
		t.Fatal(err)
	}
	if err := tg.Delete(t.Context(), out.Object); !errors.Is(err, upload.ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	if err := tg.Delete(t.Context(), upload.Object{ID: "99"}); !errors.Is(err, upload.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

func TestAnswersThatAreNoneAreServerErrors(t *testing.T) {
	t.Parallel()
	for _, answer := range []string{
		"", "<html>hello</html>", "<methodResponse></methodResponse>",
		"<methodResponse><params><param><value><array><data></data></array></value></param></params></methodResponse>",
		"<methodResponse><fault><value><struct><member><name>faultString</name><value>no such method</value></member></struct></value></fault></methodResponse>",
	} {
		h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(answer)) }))
		tg := opennebula.New(opennebula.Config{Endpoint: h.URL, Session: "a:b", Client: h.Client(), Wait: wait})
		if _, err := tg.List(t.Context(), ""); !errors.Is(err, upload.ErrServer) {
			t.Errorf("%q: got %v, want ErrServer", answer, err)
		}
		h.Close()
	}
}

// A proxy that gives up while the front-end looks at the file hides that the image
// was made: it is found by its mark, and the upload goes on.
func TestLostAnswerOfAllocateIsNoFailure(t *testing.T) {
	t.Parallel()
	one := onedtest.Start(t)
	conf := config(t, one)
	conf.Client = &http.Client{Transport: &losesAllocate{}}
	if _, err := run(t, opennebula.New(conf), uploadtest.Image(t, store.QCOW2, "prod-worker", 5)); err != nil {
		t.Error(err)
	}
	if left := one.Images(onedtest.Session); len(left) != 1 {
		t.Errorf("there is %v", left)
	}
}

// losesAllocate lets the first call with a PATH get no answer.
type losesAllocate struct{ once sync.Once }

func (l *losesAllocate) RoundTrip(r *http.Request) (*http.Response, error) {
	b, err := r.GetBody()
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	if err := r.Write(&text); err != nil {
		return nil, err
	}
	r.Body = b
	resp, err := http.DefaultTransport.RoundTrip(r)
	if strings.Contains(text.String(), "one.image.allocate") {
		l.once.Do(func() {
			resp.Body.Close()
			resp, err = nil, errors.New("504 from a proxy")
		})
	}
	return resp, err
}
