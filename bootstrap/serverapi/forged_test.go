package serverapi

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// While a machine writes its disk, others report in its name, with everything that
// they could have but its key. Its record stays as it is, and it goes on.
func TestForgedReportsChangeNothing(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	victim := r.approvedMachine("cp1", "52:54:00:00:00:01")
	r.arm("cp1", false)
	install := victim.sync(installer()).GetInstall()
	if install == nil {
		t.Fatal("it is not told to install")
	}
	record := func() string {
		t.Helper()
		m, _ := r.store.Machine("cp1")
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := record()
	foreign, err := pki.NewCA("imagectl demo", 60*24*time.Hour, 0, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	neighbour := r.approvedMachine("w1", "52:54:00:00:00:02")
	profile, err := pki.Node(pki.Machine{Cluster: "demo", Name: "cp1"}, pki.Lifetimes{})
	if err != nil {
		t.Fatal(err)
	}
	public, err := pki.OwnKey(neighbour.key)
	if err != nil {
		t.Fatal(err)
	}
	self, err := foreign.Sign(profile, public, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// What the server would have signed for a key that it does not know.
	other, err := r.signer().Sign(profile, public, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, cert := range map[string]*tls.Certificate{
		"nobody":                        nil,
		"another CA's cp1":              {Certificate: [][]byte{self.Certificate.Raw}, PrivateKey: neighbour.key},
		"our CA's cp1 with another key": {Certificate: [][]byte{other.Certificate.Raw}, PrivateKey: neighbour.key},
		"its certificate, not its key":  {Certificate: victim.cert.Certificate, PrivateKey: neighbour.key},
		"another machine":               neighbour.cert,
		"an operator":                   signed(t, r.signer(), pki.RoleAdmin),
	} {
		client := r.client(cert)
		client.Transport = dressed{client.Transport, http.Header{"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Client-Cert": {"URI=imagectl://demo/node/cp1"}, "X-Ssl-Client-Verify": {"SUCCESS"}}}
		agent := apiconnect.NewAgentServiceClient(client, r.url)
		done := installer()
		done.Installed = true
		for _, sync := range []*api.SyncRequest{done, {Mode: api.Mode_MODE_NODE}, {Mode: api.Mode_MODE_INSTALLER, Failure: "its disk is full"}} {
			resp, err := agent.Sync(t.Context(), connect.NewRequest(sync))
			if err == nil && name != "another machine" {
				t.Errorf("%s: got %v", name, resp)
			}
		}
		_, err := agent.ReportInstall(t.Context(), connect.NewRequest(&api.ReportInstallRequest{ArmingId: install.GetArmingId(), BytesDone: 1, BytesTotal: 1}))
		if shown := r.shown("cp1").GetInstallBytesDone(); shown != 0 || err == nil && name != "another machine" {
			t.Errorf("%s reports for cp1's arming: %d bytes, %v", name, shown, err)
		}
		if after := record(); after != before {
			t.Errorf("%s changes the record\nfrom %s\nto   %s", name, before, after)
		}
	}
	// Anybody may ask to be cp1: that is an alarm, and otherwise nothing.
	if got := r.machine("52:54:00:00:00:01").enrol(); got.GetStatus() == api.EnrolResponse_STATUS_APPROVED || len(got.GetCertificatePem()) > 0 {
		t.Errorf("a second key: %v", got)
	}
	if m, _ := r.store.Machine("cp1"); m.State != machine.Installing || m.Arming.Fingerprint != fingerprint(victim.cert.Leaf) || len(m.Pending) != 1 {
		t.Errorf("after a second key: %+v", m)
	}
	victim.install()
	if m, _ := r.store.Machine("cp1"); m.State != machine.Installed {
		t.Errorf("in the end it is %s", m.State)
	}
}

// dressed adds headers.
type dressed struct {
	http.RoundTripper
	with http.Header
}

func (d dressed) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for k, v := range d.with {
		r.Header[k] = v
	}
	return d.RoundTripper.RoundTrip(r)
}

// A header that is longer than any of ours is refused before all of it has come.
func TestLongHeadersAreRefused(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	for name, header := range map[string]string{"one": "X: " + strings.Repeat("x", 40<<10), "many": strings.Repeat("X: y\r\n", 8<<10) + "X: y"} {
		conn, err := tls.Dial("tcp4", strings.TrimPrefix(r.url, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go io.WriteString(conn, "GET /readyz HTTP/1.1\r\nHost: x\r\n"+header+"\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s: got %v, %v", name, resp, err)
		}
	}
}

// Who begins a handshake or a request and does not go on is gone after a while, however
// busy it looks.
func TestSlowClientsAreCutOff(t *testing.T) {
	t.Parallel()
	r := &rig{t: t, dir: t.TempDir(), headers: 100 * time.Millisecond}
	r.up(config(w1()))
	t.Cleanup(func() { r.stop() })
	address := strings.TrimPrefix(r.url, "https://")
	for name, dial := range map[string]func() (net.Conn, error){
		"a handshake": func() (net.Conn, error) { return net.Dial("tcp4", address) },
		// On a busy machine the handshake itself may be too slow, which is the same.
		"a header": func() (net.Conn, error) {
			return tls.Dial("tcp4", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := dial()
			if err != nil {
				return
			}
			defer conn.Close()
			go func() {
				// A handshake record of 16 KiB, or a header line of any length.
				for _, b := range []byte("\x16\x03\x01\x3f\xff" + strings.Repeat("x", 6000)) {
					if _, err := conn.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			}()
			if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a minute later it is still connected")
			}
		})
	}
}
