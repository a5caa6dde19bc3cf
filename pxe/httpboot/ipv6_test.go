package httpboot

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// A machine goes on by the kind of address that it came by.
func TestScriptNamesTheAddressThatTheClientReached(t *testing.T) {
	h := New(Config{Source: answers(), Open: open, Server: at, Server6: netip.MustParseAddrPort("[fd00::1]:8080")})
	for _, c := range []struct{ local, want, other string }{
		{"10.0.0.1:8080", "http://10.0.0.1:8080/", "[fd00::1]"},
		{"[fd00::1]:8080", "http://[fd00::1]:8080/", "10.0.0.1"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/boot.ipxe?serial=install", nil)
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.local))))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		body := w.Body.String()
		for _, want := range []string{"kernel --name vmlinuz " + c.want, "ignition.config.url=" + c.want} {
			if !strings.Contains(body, want) || strings.Contains(body, c.other) {
				t.Errorf("by %s: no %q, or %s, in:\n%s", c.local, want, c.other, body)
			}
		}
	}
}
