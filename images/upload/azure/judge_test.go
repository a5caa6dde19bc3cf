//go:build upload

package azure

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"flag"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/upload/rest"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
	"github.com/imagectl/imagectl/test/daemon"
)

var azurite = flag.String("azurite", "", "the program azurite-blob, Microsoft's stand-in for storage")

// The account that Azurite always has; Microsoft's documentation prints its key.
const (
	azuriteAccount = "devstoreaccount1"
	azuriteKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// storageAt runs Azurite until the test ends, and returns its address with the
// account, and a permission for everything.
func storageAt(t *testing.T) (at, permission string) {
	t.Helper()
	if *azurite == "" {
		t.Fatal("-azurite is not set; run this through make upload-test")
	}
	address := daemon.Address(t)
	_, port, _ := strings.Cut(address, ":")
	cmd := exec.Command(*azurite, "--blobHost", "127.0.0.1", "--blobPort", port, "--location", t.TempDir(), "--silent", "--disableTelemetry", "--skipApiVersionCheck")
	daemon.Start(t, cmd, "make upload-test installs it", func() error {
		resp, err := http.Get("http://" + address + "/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	const version = "2019-12-12"
	expiry := time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05Z")
	key, err := base64.StdEncoding.DecodeString(azuriteKey)
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(strings.Join([]string{azuriteAccount, "rwdlac", "b", "sco", "", expiry, "", "https,http", version, ""}, "\n")))
	q := url.Values{"sv": {version}, "ss": {"b"}, "srt": {"sco"}, "sp": {"rwdlac"}, "se": {expiry}, "spr": {"https,http"}, "sig": {base64.StdEncoding.EncodeToString(mac.Sum(nil))}}
	return "http://" + address + "/" + azuriteAccount, q.Encode()
}

func must(t *testing.T, method, at string, h http.Header) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = h
	r.Header.Set("X-Ms-Version", storageVersion)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode >= 300 {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s: %s", method, r.URL.Path, resp.Status, b)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// oneAtATime makes one call after the other: a call that fails would call off those that are
// under way.
type oneAtATime struct {
	mu   sync.Mutex
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (o *oneAtATime) RoundTrip(r *http.Request) (*http.Response, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.next.RoundTrip(r)
}

// What a managed disk's address is on Azure is a page blob of Azurite's here: pages
// go there in ranges, some do not get there, and the second run sends those alone.
func TestMicrosoftsStorageHasThePagesAndNoOthers(t *testing.T) {
	at, permission := storageAt(t)
	img := large(t)
	must(t, http.MethodPut, at+"/disks?restype=container&"+permission, http.Header{})
	blob := at + "/disks/one?" + permission
	must(t, http.MethodPut, blob, http.Header{"X-Ms-Blob-Type": {"PageBlob"}, "X-Ms-Blob-Content-Length": {strconv.FormatInt(img.Size, 10)}})

	faults := &uploadtest.Faults{}
	p := pages{rest.API{Transport: &oneAtATime{next: faults.Transport(http.DefaultTransport)}, Refusal: refusal, Again: again, Tries: 1, Wait: wait}}
	faults.Fail(3, uploadtest.Refused, true)
	if err := p.send(t.Context(), img, blob, quiet); err == nil {
		t.Fatal("the cut was not noticed")
	}
	faults.Heal()
	before, err := p.there(t.Context(), blob)
	if err != nil || len(before) == 0 {
		t.Fatalf("after the cut there are %v, %v; want some", before, err)
	}
	faults.Heal()
	if err := p.send(t.Context(), img, blob, quiet); err != nil {
		t.Fatal(err)
	}
	if n := faults.Calls(); n != 3 {
		t.Errorf("the second run made %d calls, want a list and 2 ranges", n)
	}
	after, err := p.there(t.Context(), blob)
	if err != nil {
		t.Fatal(err)
	}
	if !covered(after, 0, 4<<20) || !covered(after, 8<<20, 4<<20) || !covered(after, 20<<20, 512) || covered(after, 4<<20, 512) || covered(after, 16<<20, 512) {
		t.Errorf("there are %v", after)
	}
	got, err := io.ReadAll(must(t, http.MethodGet, blob, http.Header{}).Body)
	if err != nil {
		t.Fatal(err)
	}
	want, err := io.ReadAll(io.NewSectionReader(img.File, 0, img.Size))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the blob has other bytes, %d of %d; %v", len(got), len(want), err)
	}
	stranger := at + "/disks/one?" + strings.Replace(permission, "sig=", "sig=A", 1)
	var no *refused
	if err := p.send(t.Context(), img, stranger, quiet); !errors.As(err, &no) || no.status != http.StatusForbidden || strings.Contains(err.Error(), "sig=") {
		t.Errorf("with a wrong permission: %v", err)
	}
}
