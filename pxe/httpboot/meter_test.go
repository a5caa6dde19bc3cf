package httpboot

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/pxe/boot"
)

// tally is a meter that remembers.
type tally struct {
	mu   sync.Mutex
	seen []string
}

func (c *tally) Begun(string) {}
func (c *tally) Ended(route string, status int, sent int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, fmt.Sprintf("%s %d %d", route, status, sent))
}

func TestRequestsAreCountedByRoute(t *testing.T) {
	t.Parallel()
	meter := &tally{}
	h := New(Config{Source: answers(), Open: open, Server: at, Meter: meter})
	file := "/files/" + kernel.SHA256 + "/" + kernel.Name
	for _, r := range []struct{ method, target string }{
		{"GET", "/ignition?serial=install"}, {"GET", "/ignition?serial=exit"}, {"GET", file}, {"HEAD", file}, {"POST", file},
		{"GET", "/files/x/y"}, {"GET", "/boot/x/y.efi"}, {"GET", "/healthz"}, {"GET", "/" + url.PathEscape("<script>")},
	} {
		get(h, r.method, r.target)
	}
	want := []string{"ignition 200 32", "ignition 403 27", "file 200 10", "file 200 0", "other 405 19",
		"file 404 48", "http-boot 404 56", "healthz 200 3", "other 404 19"}
	if diff := cmp.Diff(want, meter.seen); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// readerFrom notes whether a whole file was handed down, as sendfile needs it.
type readerFrom struct {
	http.ResponseWriter
	file bool
}

func (w *readerFrom) ReadFrom(r io.Reader) (int64, error) {
	if l, ok := r.(*io.LimitedReader); ok {
		_, w.file = l.R.(*os.File)
	}
	return io.Copy(w.ResponseWriter, r)
}

func TestCountingKeepsSendfile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, []byte("the kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := New(Config{Source: answers(), Server: at, Meter: &tally{}, Open: func(string) (io.ReadSeekCloser, error) { return os.Open(path) }})
	w := &readerFrom{ResponseWriter: httptest.NewRecorder()}
	h.ServeHTTP(w, httptest.NewRequest("GET", "/files/"+kernel.SHA256+"/"+kernel.Name, nil))
	if !w.file {
		t.Error("the file does not reach the connection as a file")
	}
}

// eventLog is a boot.Recorder.
type eventLog struct{ events []boot.Event }

func (l *eventLog) Record(e boot.Event) { l.events = append(l.events, e) }

func TestEveryRefusalHasItsReason(t *testing.T) {
	t.Parallel()
	log := &eventLog{}
	h := New(Config{Source: answers(), Open: open, Server: at, Recorder: log})
	const who = "&mac=52:54:00:00:00:01"
	stage := func(b boot.Blob, stage string) string {
		return "/files/" + b.SHA256 + "/" + b.Name + "?serial=install&stage=" + stage + who
	}
	for _, target := range []string{
		"/boot.ipxe?serial=install" + who, "/boot.ipxe?serial=none" + who, "/ignition?serial=none" + who, "/ignition?serial=broken" + who,
		stage(kernel, "kernel"), stage(initrd, "initrd"),
	} {
		get(h, "GET", target)
	}
	var got []string
	for _, e := range log.events {
		got = append(got, fmt.Sprintf("%s %s %s %q", e.Stage, e.Name, e.Action, e.Refusal.Code))
		if (e.Refusal.Code == "") != (e.Refusal.Reason == "") {
			t.Errorf("%+v", e)
		}
	}
	want := []string{
		`script cp1 install ""`, `script  none "conflict"`, `ignition   "conflict"`, `ignition cp1  "no-config"`, `kernel cp1  ""`, `initrd cp1  "file-missing"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
