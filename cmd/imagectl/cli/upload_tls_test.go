package cli

import (
	"encoding/pem"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"testing"
)

// oned stands behind a TLS proxy: its certificate is trusted when option ca says
// so, and not otherwise.
func TestUploadTrustsTheProxyThatItWasTold(t *testing.T) {
	s := newUploadSite(t)
	s.build(1)
	one, err := url.Parse(s.one.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: one.Scheme, Host: one.Host}))
	t.Cleanup(proxy.Close)
	b, err := os.ReadFile(s.path("cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), s.one.URL, proxy.URL+"/RPC2", 1)
	s.write("cluster.yaml", text)
	if code, out, errs := s.upload(); code != exitServer || !strings.Contains(errs, "certificate") {
		t.Errorf("without ca: %d\n%s%s", code, out, errs)
	}
	s.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxy.Certificate().Raw})))
	s.write("cluster.yaml", strings.Replace(text, "options: {", "options: {ca: ca.pem, ", 1))
	if code, out, errs := s.upload(); code != exitDone || !strings.Contains(out, "is current now") {
		t.Errorf("with ca: %d\n%s%s", code, out, errs)
	}
}
