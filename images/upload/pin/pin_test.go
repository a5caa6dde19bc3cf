package pin_test

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/upload/pin"
)

func TestTransportTrustsThePinnedCertificateAlone(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	raw := server.Certificate().Raw
	long, short := sha256.Sum256(raw), sha1.Sum(raw)
	host := server.Listener.Addr().String()
	right, err := pin.Parse(strings.ToUpper(colons(long[:])))
	if err != nil {
		t.Fatal(err)
	}
	wrong := make(pin.Digest, sha256.Size)
	for _, tt := range []struct {
		name string
		set  func(*pin.Transport) error
		ok   bool
		want error
	}{
		{"no pin", func(*pin.Transport) error { return nil }, false, nil},
		{"the right one", func(t *pin.Transport) error { t.Pin(host, right); return nil }, true, nil},
		{"another one", func(t *pin.Transport) error { t.Pin(host, wrong); return nil }, false, pin.ErrMismatch},
		{"that of another server", func(t *pin.Transport) error { t.Pin("other.example.org", right); return nil }, false, nil},
		{"all ports of the host", func(t *pin.Transport) error { t.PinAll("127.0.0.1", right); return nil }, true, nil},
		{"all ports of the host, and another certificate", func(t *pin.Transport) error { t.PinAll("127.0.0.1", wrong); return nil }, false, pin.ErrMismatch},
		{"all ports of another host", func(t *pin.Transport) error { t.PinAll("127.0.0.2", right); return nil }, false, nil},
		{"SHA-1 that vCenter names", func(t *pin.Transport) error { return t.Name(host, colons(short[:])) }, true, nil},
		{"vCenter does not overrule a person", func(t *pin.Transport) error {
			t.Pin(host, wrong)
			return t.Name(host, colons(short[:]))
		}, false, pin.ErrMismatch},
	} {
		transport := pin.New(&http.Transport{DisableKeepAlives: true})
		if err := tt.set(transport); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		resp, err := (&http.Client{Transport: transport}).Get(server.URL)
		if err == nil {
			resp.Body.Close()
		}
		if (err == nil) != tt.ok || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v", tt.name, err)
		}
		if err != nil && !pin.Untrusted(err) {
			t.Errorf("%s: that is because of the certificate: %v", tt.name, err)
		}
	}
}

func TestOtherFailuresAreNotTheCertificates(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	for _, url := range []string{"https://" + plain.Listener.Addr().String(), "https://127.0.0.1:1"} {
		resp, err := (&http.Client{Transport: pin.New(&http.Transport{})}).Get(url)
		if err == nil {
			resp.Body.Close()
		}
		if err == nil || pin.Untrusted(err) {
			t.Errorf("%s: got %v", url, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "AA:BB", strings.Repeat("g", 64), strings.Repeat("a", 40)} {
		if d, err := pin.Parse(text); err == nil {
			t.Errorf("%q is read as %x", text, []byte(d))
		}
	}
	if err := pin.New(&http.Transport{}).Name("esx1", "AA:BB"); err == nil {
		t.Error("a thumbprint of two bytes is read")
	}
}

func colons(b []byte) string {
	var parts []string
	for _, c := range b {
		parts = append(parts, hex.EncodeToString([]byte{c}))
	}
	return strings.Join(parts, ":")
}
