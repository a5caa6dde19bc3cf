package serverapi

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// Who asks.
const (
	fuzzNobody   = iota // shows no certificate
	fuzzPlain           // comes without TLS
	fuzzUnproven        // shows a certificate of ours that TLS did not verify
	fuzzForeign         // shows one of our CA for another cluster
	fuzzExpired
	fuzzNode   // is a machine that the server has no record of
	fuzzBackup // is an operator who may fetch backups and nothing else
	fuzzCallers
)

// fuzzTLS is what TLS says of each of them; nil for plain HTTP.
func fuzzTLS(f *testing.F, s *Server) [fuzzCallers]*tls.ConnectionState {
	f.Helper()
	certificate := func(profile pki.Profile, err error, at time.Time) *tls.ConnectionState {
		f.Helper()
		if err != nil {
			f.Fatal(err)
		}
		key, err := pki.NewKey(rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		public, err := pki.OwnKey(key)
		if err != nil {
			f.Fatal(err)
		}
		issued, err := s.signer().Sign(profile, public, at, rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		chain := []*x509.Certificate{issued.Certificate, s.signer().Certificate()}
		return &tls.ConnectionState{PeerCertificates: chain[:1], VerifiedChains: [][]*x509.Certificate{chain}}
	}
	operator := func(cluster string, role pki.Role, at time.Time) *tls.ConnectionState {
		profile, err := pki.Operator(cluster, "ada", role, pki.Lifetimes{})
		return certificate(profile, err, at)
	}
	now := s.cfg.Now()
	unproven := operator("demo", pki.RoleAdmin, now)
	unproven.VerifiedChains = nil
	node, err := pki.Node(pki.Machine{Cluster: "demo", Name: "cp1"}, pki.Lifetimes{})
	return [fuzzCallers]*tls.ConnectionState{
		fuzzNobody: {}, fuzzUnproven: unproven, fuzzForeign: operator("other", pki.RoleAdmin, now), fuzzExpired: operator("demo", pki.RoleAdmin, now.AddDate(0, 0, -2)),
		fuzzNode: certificate(node, err, now), fuzzBackup: operator("demo", pki.RoleBackup, now),
	}
}

// Whatever is asked on the https port, a call gets past authenticate only when its exact path
// is open to who asks; all else gets a refusal; and what strangers get of what is open to
// them has no certificate, no page of operators and no word of a node.
func FuzzHandler(f *testing.F) {
	st, err := store.Open(f.Context(), store.Config{Dir: f.TempDir(), Cluster: "demo", Log: os.Stderr, Volatile: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { st.Close() })
	const inventory = "what only operators read"
	page := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })
	}
	cfg := config(cp1(), w1())
	cfg.Store, cfg.Pages = st, []Page{{Path: "/", Handler: page("the page"), Open: true}, {Path: "/metrics", Handler: page(inventory)}}
	s, err := New(f.Context(), cfg)
	if err != nil {
		f.Fatal(err)
	}
	s.nodePort = "1" // nobody is there
	h := s.Handler()
	callers := fuzzTLS(f, s)
	open := []string{"/", ReadyPath, CoordinatesPath, apiconnect.EnrolServiceEnrolProcedure, apiconnect.EnrolServiceRenewOperatorProcedure}
	backups := []string{apiconnect.OperatorServiceBackupServerProcedure, apiconnect.OperatorServiceListEtcdSnapshotsProcedure, apiconnect.NodeServiceVersionProcedure}

	const http11 = " HTTP/1.1\r\nHost: x\r\n"
	json := func(path, body string) string {
		return fmt.Sprintf("POST %s%sContent-Type: application/json\r\nContent-Length: %d\r\nImagectl-Node: cp1\r\n\r\n%s", path, http11, len(body), body)
	}
	for i := range fuzzCallers {
		for _, path := range append(procedures(), open...) {
			f.Add(byte(i), []byte(json(path, "{}")))
		}
		for _, raw := range []string{
			"GET /" + http11 + "\r\n", "GET /metrics" + http11 + "X-Forwarded-For: 127.0.0.1\r\n\r\n", "GET //metrics" + http11 + "\r\n", "GET //readyz" + http11 + "\r\n", "GET /readyz/" + http11 + "\r\n", "GET /x/../readyz" + http11 + "\r\n", "GET /x/../metrics" + http11 + "\r\n",
			"GET /metrics/" + http11 + "\r\n", "GET /%6detrics" + http11 + "\r\n", "CONNECT /metrics" + http11 + "\r\n", "GET http://x/metrics" + http11 + "\r\n", "OPTIONS *" + http11 + "\r\n",
			"GET " + apiconnect.OperatorServiceListMachinesProcedure + "?connect=v1&encoding=json&message=%7B%7D" + http11 + "\r\n",
			"POST " + apiconnect.OperatorServiceWatchMachinesProcedure + http11 + "Content-Type: application/connect+json\r\nContent-Length: 7\r\n\r\n\x00\x00\x00\x00\x02{}",
			"POST " + apiconnect.OperatorServiceIssueKubeconfigProcedure + http11 + "Content-Type: application/grpc\r\nContent-Length: 5\r\n\r\n\x00\x00\x00\x00\x00",
			"POST " + apiconnect.NodeServiceUnitsProcedure + http11 + "Content-Type: application/grpc-web+proto\r\nImagectl-Node: 127.0.0.1:1\r\nContent-Length: 5\r\n\r\n\x00\x00\x00\x00\x00",
			json(apiconnect.EnrolServiceEnrolProcedure, `{"mode":"MODE_NODE","token":"w1.x","facts":{"interfaces":[{"mac":"52:54:00:00:00:01"}]},"csrDer":"MAA="}`),
		} {
			f.Add(byte(i), []byte(raw))
		}
	}
	f.Fuzz(func(t *testing.T, who byte, raw []byte) {
		who %= fuzzCallers
		request := func() *http.Request {
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
			if err != nil {
				return nil
			}
			r.RemoteAddr, r.TLS = "192.0.2.9:1234", callers[who]
			return r.WithContext(t.Context())
		}
		r := request()
		if r == nil {
			return
		}
		may := slices.Contains(open, r.URL.Path) || who == fuzzBackup && slices.Contains(backups, r.URL.Path)
		if who == fuzzPlain || who == fuzzUnproven || who == fuzzForeign || who == fuzzExpired {
			may = false
		}
		passed := false
		w := httptest.NewRecorder()
		s.authenticate(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed = true })).ServeHTTP(w, r)
		if passed != may {
			t.Fatalf("caller %d with %q gets past the door: %v, want %v", who, raw, passed, may)
		}
		if said := refusalOf(w); !passed && said != "unauthenticated" && said != "permission_denied" {
			t.Errorf("caller %d with %q is not refused: %q", who, raw, w.Body)
		}
		w = httptest.NewRecorder()
		h.ServeHTTP(w, request())
		got := fmt.Sprint(w.Header(), w.Body)
		for _, secret := range []string{inventory, "PRIVATE KEY", "BEGIN CERTIFICATE", "52:54:00"} {
			if strings.Contains(got, secret) {
				t.Errorf("caller %d with %q gets %q", who, raw, got)
			}
		}
		if strings.Contains(got, "the server calls") && who != fuzzBackup {
			t.Errorf("for caller %d with %q a node is called: %q", who, raw, got)
		}
		if !may && (w.Code < 300 || w.Code == http.StatusServiceUnavailable) && refusalOf(w) == "" {
			t.Errorf("caller %d with %q gets %d %q", who, raw, w.Code, w.Body)
		}
	})
}

// refusalOf is the code of a refusal in each of the forms that Connect has for one: a status
// with JSON, the end of a stream, gRPC's trailers. It is empty for anything else.
func refusalOf(w *httptest.ResponseRecorder) string {
	codes := map[string]string{"16": "unauthenticated", "7": "permission_denied"}
	if code := w.Header().Get("Grpc-Status"); code != "" {
		return codes[code]
	}
	for _, code := range codes {
		if strings.Contains(w.Body.String(), `"code":"`+code+`"`) {
			return code
		}
	}
	return ""
}
