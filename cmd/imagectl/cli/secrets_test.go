package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"debug/pe"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
	statestore "github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/listen"
)

// Secrets are planted wherever imagectl serve has one, and everything that it listens
// on is asked in every way that a stranger can: no answer has a piece of one, the log
// neither, and nothing that the server knows of its machines is changed by asking.
func TestNoStrangerGetsASecret(t *testing.T) {
	r := serveRack(t, "authoritative")
	before := r.machines()
	for _, d := range r.doors() {
		walk(t, d, r.found)
	}
	r.walkTFTP()
	r.walkDHCP()
	r.walkDHCP6()
	if after := r.machines(); after != before {
		t.Errorf("the walk changed what is known of the machines\nfrom %s\nto   %s", before, after)
	}
	secrets := r.searched()
	// What is searched for can be found.
	for name, secret := range secrets {
		for form, text := range forms(secret) {
			f := finds{}
			f.add("a canary", append([]byte("HTTP/1.1 200 OK\r\n\r\n{"), text...))
			if len(f.search(map[string][]byte{name: secret})) == 0 {
				t.Errorf("%s would not be found as %s", name, form)
			}
		}
	}
}

// Beside another DHCP server the answers are made elsewhere.
func TestNoStrangerGetsASecretFromTheProxy(t *testing.T) {
	r := serveRack(t, "proxy")
	before := r.machines()
	r.walkProxy()
	if after := r.machines(); after != before {
		t.Errorf("the walk changed what is known of the machines\nfrom %s\nto   %s", before, after)
	}
	r.searched()
}

// searched stops the server and looks for its secrets in all that was found.
func (r *rack) searched() map[string][]byte {
	r.Helper()
	r.stop()
	secrets := r.secrets()
	r.found.add("the log", r.log.Bytes())
	for _, leak := range r.found.search(secrets) {
		r.Error(leak)
	}
	return secrets
}

// rack is a whole imagectl serve on loopback.
type rack struct {
	*testing.T
	dir   string
	log   *lockedBuffer
	stop  func()
	found finds
	on    opened
	tftp  net.Addr
	// proxy says that another server gives out the addresses; then there is bootServer.
	proxy            bool
	dhcp, bootServer *dhcpWire
	dhcp6            *dhcp6Wire
	// routes are what its HTTP servers say that they serve.
	routes *routeList
	// issued are secrets that were handed out while it ran.
	issued map[string][]byte
}

// serveRack starts it and gives it something to know: a machine that is armed, one
// that waits for its code to be compared, and a token. mode is boot.dhcp.
func serveRack(t *testing.T, mode string) *rack {
	t.Helper()
	at := dhcpv4.WithClientIP(net.IPv4(192, 0, 2, 99))
	r := &rack{T: t, log: &lockedBuffer{}, found: finds{}, issued: map[string][]byte{}, proxy: mode == "proxy",
		dhcp:  newDHCPWire(dhcpv4.WithMessageType(dhcpv4.MessageTypeInform), at),
		dhcp6: &dhcp6Wire{link: newLink(&net.UDPAddr{IP: net.ParseIP("fe80::1"), Port: 546})},
	}
	subnets, nbp := `  subnets: [{cidr: 192.0.2.0/24, range: {first: 192.0.2.100, last: 192.0.2.120}}, {cidr: 127.0.0.0/24, router: 127.0.0.254}]
`, "firmware: {nbp: grub},"
	if r.proxy {
		r.dhcp = newDHCPWire(append(pxe4(0), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))...)
		r.bootServer = newDHCPWire(append(pxe4(0), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), at)...)
		subnets, nbp = "", "" // GRUB asks the server that gave the address
	}
	password, variable := randomText(t), randomText(t)
	r.issued["the BMC's password"], r.issued["the other BMC's password"] = password, variable
	t.Setenv("W2_BMC", string(variable))
	proxy, mirror := randomText(t), randomText(t)
	r.issued["the proxy's password"], r.issued["the mirror's password"] = proxy, mirror
	t.Setenv("W1_PROXY", string(proxy))
	t.Setenv("W1_MIRROR", string(mirror))
	canaries := map[string]string{"secrets/w1-bmc": string(password) + "\n", "ipxe/undionly.kpxe": "no PE header", "ipxe/snponly.efi": efiProgram(t), "ipxe/arm64.efi": efiArm64(t), "ipxe/shim.efi": efiProgram(t), "ipxe/grub.efi": efiProgram(t)}
	for _, name := range []string{"out/notes.txt", "state/notes.txt", "notes.txt", "cache/notes.txt"} {
		text := randomText(t)
		canaries[name], r.issued["the file "+name] = string(text), text
	}
	r.dir = siteWith(t, `server: {address: 192.0.2.1}
boot:
  interface: lo
  dhcp: `+mode+`
`+subnets+`  dhcp6: {address: "fd00::1", subnets: [{cidr: "fd00::/64", range: {first: "fd00::1000", last: "fd00::1fff"}}]}
  ipxe: {bios: ipxe/undionly.kpxe, uefi: ipxe/snponly.efi, arm64: ipxe/arm64.efi}
  grub: {shim: ipxe/shim.efi, grub: ipxe/grub.efi}
identity: {policy: token}
machines:
  - {name: cp1, role: control-plane, match: {mac: ["52:54:00:00:00:00"]}, address: 127.0.0.1, disk: {path: /dev/vda}}
  - {name: w1, role: worker, match: {mac: ["52:54:00:00:00:01"]}, address: 192.0.2.11, disk: {path: /dev/vda},
     bmc: {kind: redfish, address: 127.0.0.1:1, username: imagectl, password: {file: secrets/w1-bmc}, tls: {insecure: nobody is asked here}},
     network: {proxy: {https: "https://proxy.example.org:3128", username: nodes, password: {env: W1_PROXY}},
       registryMirrors: [{name: docker.io, endpoints: ["https://mirror.example.org"], username: reader, password: {env: W1_MIRROR}}]}}
  - {name: w2, role: worker, match: {mac: ["52:54:00:00:00:02"]}, address: 192.0.2.12, disk: {path: /dev/vda}, `+nbp+`
     bmc: {kind: redfish, address: 127.0.0.1:1, username: imagectl, password: {env: W2_BMC}, tls: {insecure: nobody is asked here}}}
`, canaries)

	var out lineWaiter
	g := &globals{stdio: Stdio{In: strings.NewReader(""), Out: &out, Err: r.log}, file: filepath.Join(r.dir, "cluster.yaml")}
	p, err := g.plan()
	if err != nil {
		t.Fatal(err, r.log)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	if r.on.site, err = g.loadSite(ctx, p, sources{out: filepath.Join(r.dir, "out"), cache: filepath.Join(r.dir, "cache")}); err != nil {
		t.Fatal(err)
	}
	certificate, key := bootCertificate(t, "192.0.2.1", time.Now())
	r.issued["the key of HTTPS boot"] = privateOf(t, key)
	if r.on.bootTLS, err = httpboot.TLS(certificate, key, p.Server.Address, time.Now()); err != nil {
		t.Fatal(err)
	}
	tcp := func() net.Listener {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	said, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.tftp, r.on.metrics = udp.LocalAddr(), tcp()
	r.on.sockets = listen.Sockets{DHCP: r.dhcp, DHCP6: r.dhcp6, Routers: noRouters{newLink(nil)}, Syslog: said, TFTP: udp, HTTP: tcp(), HTTPS: tcp(), BootTLS: tcp(), MTU: 1500}
	if r.proxy {
		r.on.sockets.BootServer = r.bootServer
	}
	r.nothingLeftOut()
	r.routes = &routeList{Handler: slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}), patterns: map[string][]string{}}

	ended := make(chan error, 1)
	out.wait = make(chan struct{})
	go func() {
		ended <- g.serveOn(ctx, p, serveFlags{state: filepath.Join(r.dir, "state"), dashboard: dashboardOpen, operator: "ada"}, r.on, slog.New(r.routes))
	}()
	select {
	case <-out.wait:
	case err := <-ended:
		t.Fatalf("serve ended: %v\n%s", err, r.log)
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(r.stop)
	r.occupy()
	return r
}

// occupy makes the server know something.
func (r *rack) occupy() {
	r.Helper()
	c := r.operator()
	if _, err := c.ArmMachine(r.Context(), connect.NewRequest(&api.ArmMachineRequest{Selection: &api.Selection{Names: []string{"w1", "w2"}}})); err != nil {
		r.Fatal(err)
	}
	token, err := c.IssueToken(r.Context(), connect.NewRequest(&api.IssueTokenRequest{Machine: "w2"}))
	if err != nil {
		r.Fatal(err)
	}
	r.issued["a token"] = []byte(strings.TrimPrefix(token.Msg.GetToken(), "w2."))
	ctx, err := (&globals{}).readContext()
	if err != nil {
		r.Fatal(err)
	}
	r.issued["the operator's key"] = privateOf(r.T, []byte(ctx.Key))
	code, err := rackOnLoopback{url: "https://" + r.on.sockets.HTTPS.Addr().String(), ca: []byte(ctx.CA)}.ask("52:54:00:00:00:01")
	if err != nil {
		r.Fatal(err)
	}
	r.issued["an enrolment code"] = []byte(code)
	r.say()
}

// say has cp1 say something by syslog, which operators see: nobody knows what it is.
func (r *rack) say() {
	r.Helper()
	text := randomText(r.T)
	r.issued["what a machine said"] = text
	conn, err := net.Dial("udp4", r.on.sockets.Syslog.LocalAddr().String())
	if err != nil {
		r.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "<6>cp1 ipxe: the password is %s", text); err != nil {
		r.Fatal(err)
	}
	for {
		why, err := r.operator().Why(r.Context(), connect.NewRequest(&api.WhyRequest{Machine: "cp1"}))
		if err != nil {
			r.Fatal(err)
		}
		if said := why.Msg.GetConsole(); len(said) == 1 && said[0].GetStage() == "ipxe" && said[0].GetDetail() == "the password is "+string(text) {
			r.pageShows(`"stage":"ipxe","detail":"the password is ` + string(text) + `"}]`)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// pageShows wants something in the console of cp1 on an operator's page.
func (r *rack) pageShows(want string) {
	r.Helper()
	remote, err := (&globals{}).dial()
	if err != nil {
		r.Fatal(err)
	}
	resp, err := remote.client("").Get("https://" + r.on.sockets.HTTPS.Addr().String() + "/events")
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	line := ""
	for err == nil && !strings.HasPrefix(line, "data: ") {
		line, err = in.ReadString('\n')
	}
	if _, console, _ := strings.Cut(line, `"console":[`); !strings.Contains(console, want) {
		r.Errorf("an operator's page has %s, %v, without %s", line, err, want)
	}
}

// operator calls the server, wherever the context file says that it is.
func (r *rack) operator() apiconnect.OperatorServiceClient {
	r.Helper()
	remote, err := (&globals{}).dial()
	if err != nil {
		r.Fatal(err)
	}
	remote.Server = "https://" + r.on.sockets.HTTPS.Addr().String()
	return remote.operator()
}

// machines is what the server knows and a stranger must not change. The stages of
// boots and the reasons that follow from them are what the boot path tells of itself.
func (r *rack) machines() string {
	r.Helper()
	resp, err := r.operator().ListMachines(r.Context(), connect.NewRequest(&api.ListMachinesRequest{}))
	if err != nil {
		r.Fatal(err)
	}
	var b strings.Builder
	for _, m := range resp.Msg.GetMachines() {
		fmt.Fprintf(&b, "%s %s %v code %q conflict %v facts %v certificate %q; ", m.GetName(), m.GetState(), m.GetKnown(), m.GetPendingCode(), m.GetKeyConflict(), m.GetFacts(), m.GetCertificateSerial())
	}
	return b.String()
}

// secrets are those of the stopped server's state and those that were handed out.
func (r *rack) secrets() map[string][]byte {
	r.Helper()
	out := r.issued
	identity, err := os.ReadFile(filepath.Join(r.dir, "state", "identity.age"))
	if err != nil {
		r.Fatal(err)
	}
	_, key, ok := bytes.Cut(bytes.TrimSpace(identity), []byte("AGE-SECRET-KEY-1"))
	if !ok {
		r.Fatal("identity.age has no key")
	}
	out["the identity"] = key
	st, err := statestore.Open(r.Context(), statestore.Config{Dir: filepath.Join(r.dir, "state"), Cluster: "demo", Log: r.log})
	if err != nil {
		r.Fatal(err)
	}
	defer st.Close()
	sealed, err := st.Values(r.Context(), "secrets/")
	if err != nil {
		r.Fatal(err)
	}
	for name, value := range sealed {
		var b []byte
		if err := json.Unmarshal(value, &b); err != nil {
			r.Fatal(err)
		}
		if b, err = st.Unseal(b); err != nil {
			r.Fatal(err)
		}
		var keys []struct{ Secret []byte }
		if json.Unmarshal(b, &keys) == nil { // those for Kubernetes' Secrets
			for i, k := range keys {
				out[fmt.Sprintf("the secret %s[%d]", name, i)] = k.Secret
			}
			continue
		}
		var ca struct{ Key string }
		if json.Unmarshal(b, &ca) == nil {
			b = []byte(ca.Key)
		}
		out["the secret "+name] = privateOf(r.T, b)
	}
	if len(sealed) < 6 {
		r.Errorf("only %d secrets in the state: %v", len(sealed), sealed)
	}
	return out
}

// door is something that listens for HTTP.
type door struct {
	name   string
	dial   func() (net.Conn, error)
	routes []string
}

// doors are all that serve listens on by TCP, with the routes that they have.
func (r *rack) doors() []door {
	plain := func(l net.Listener) func() (net.Conn, error) {
		return func() (net.Conn, error) { return net.Dial("tcp4", l.Addr().String()) }
	}
	secure := func(l net.Listener) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			return tls.Dial("tcp4", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		}
	}
	examples := r.examples()
	served := map[string][]string{}
	all := []string{"/", "*", "/debug/pprof/", "/debug/vars", "/v3/kv/range"}
	for _, name := range []string{"http", "https boot", "https", "metrics"} {
		patterns := r.routes.of(name)
		if len(patterns) == 0 {
			r.Errorf("%s does not say what it serves", name)
		}
		for _, pattern := range patterns {
			served[name] = append(served[name], r.paths(pattern, examples)...)
		}
		all = append(all, served[name]...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	s := r.on.sockets
	return []door{
		{"boot by HTTP", plain(s.HTTP), all},
		{"boot by HTTPS", secure(s.BootTLS), served["https boot"]}, // the same handler
		{"HTTPS", secure(s.HTTPS), all},
		{"metrics", plain(r.on.metrics), all},
	}
}

// walk asks every route with every method and every header that might open it, and
// then for the files around by every way to write "up".
func walk(t *testing.T, d door, found finds) {
	t.Helper()
	a := asker{door: d, found: found}
	defer a.hangUp()
	for _, path := range d.routes {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"} {
			for _, headers := range forged() {
				a.ask(method, path, headers)
			}
		}
	}
	up := []string{"../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%252e%252e%252f", "..\\", "..%5c", "..;/", "....//", "%c0%ae%c0%ae/", "./../", "..%00/"}
	for _, from := range []string{"/", "/files/", "/files/" + strings.Repeat("0", 64) + "/", "/boot/52:54:00:00:00:01/"} {
		for _, step := range up {
			for _, target := range []string{"notes.txt", "state/identity.age", "secrets/w1-bmc", "context.json"} {
				for _, path := range []string{from + step + target, from + strings.Repeat(step, 3) + target} {
					a.ask("GET", path, "")
				}
			}
		}
	}
	for _, path := range []string{"http://127.0.0.1/metrics", "file:///etc/passwd", "//etc/passwd", "/%00", "/\x7f", "/files//", "/?" + strings.Repeat("a", 4096)} {
		a.ask("GET", path, "")
	}
	if a.answered*10 < a.asked*9 {
		t.Errorf("%s answered only %d of %d requests", d.name, a.answered, a.asked)
	}
	t.Logf("%s: %d requests, %d answers", d.name, a.asked, a.answered)
}

// forged are headers of somebody who would like to be somebody else.
func forged() []string {
	const json = "Content-Type: application/json\r\nConnect-Protocol-Version: 1\r\n"
	return []string{
		"",
		json + "X-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\nForwarded: for=127.0.0.1;proto=https\r\nX-Forwarded-Proto: https\r\n",
		json + "X-Forwarded-Client-Cert: URI=imagectl://demo/operator/ada\r\nX-SSL-Client-Verify: SUCCESS\r\nX-SSL-Client-S-DN: O=imagectl:admin,CN=ada\r\nSSL-Client-Cert: x\r\n",
		"Range: bytes=0-\r\nIf-Range: \"x\"\r\nAuthorization: Bearer x\r\nCookie: operator=1\r\n",
		"Range: bytes=-1,0-0,5-\r\nOrigin: null\r\nX-HTTP-Method-Override: GET\r\nX-Original-URL: /metrics\r\nX-Rewrite-URL: /metrics\r\n",
	}
}

// asker asks over one connection for as long as the server keeps it open.
type asker struct {
	door
	found           finds
	conn            net.Conn
	in              *bufio.Reader
	seen            *bytes.Buffer
	asked, answered int
}

func (a *asker) hangUp() {
	if a.conn == nil {
		return
	}
	a.conn.Close()
	a.found.add(a.name, a.seen.Bytes())
	a.conn = nil
}

func (a *asker) ask(method, path, headers string) {
	a.asked++
	for range 2 { // the server may have closed the connection meanwhile
		fresh := a.conn == nil
		if a.tryOnce(method, path, headers) {
			a.answered++
			return
		}
		a.hangUp()
		if fresh {
			return
		}
	}
}

func (a *asker) tryOnce(method, path, headers string) bool {
	if a.conn == nil {
		conn, err := a.dial()
		if err != nil {
			return false
		}
		a.conn, a.seen = conn, &bytes.Buffer{}
		a.in = bufio.NewReader(io.TeeReader(conn, a.seen))
	}
	host, body := "localhost", ""
	if strings.Contains(headers, "json") {
		host, body = "192.0.2.1:8443", "{}"
	}
	if a.conn.SetDeadline(time.Now().Add(time.Minute)) != nil {
		return false
	}
	if _, err := fmt.Fprintf(a.conn, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n%s\r\n%s", method, path, host, len(body), headers, body); err != nil {
		return false
	}
	resp, err := http.ReadResponse(a.in, &http.Request{Method: method})
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") == "text/event-stream" && method == "GET" {
		// It goes on for ever: its first message will do.
		for line := ""; err == nil && line != "\n"; {
			line, err = a.in.ReadString('\n')
		}
		a.hangUp()
		return err == nil
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return false
	}
	if resp.Close || method == "CONNECT" {
		a.hangUp()
	}
	return true
}

// finds are what came back, by what it came from.
type finds map[string][][]byte

func (f finds) add(from string, b []byte) { f[from] = append(f[from], bytes.Clone(b)) }

// piece is how much of a secret is one: as much as nobody guesses.
const piece = 12

// search finds pieces of secrets in any of their forms.
func (f finds) search(secrets map[string][]byte) []string {
	pieces := map[string]string{}
	for name, secret := range secrets {
		for _, form := range forms(secret) {
			for i := 0; i+piece <= len(form); i++ {
				pieces[string(form[i:i+piece])] = name
			}
		}
	}
	leaks := map[string]bool{}
	for from, all := range f {
		for _, b := range all {
			for i := 0; i+piece <= len(b); i++ {
				if name, ok := pieces[string(b[i:i+piece])]; ok {
					leaks[fmt.Sprintf("%s has a piece of %s: …%q…", from, name, b[max(0, i-60):min(len(b), i+60)])] = true
				}
			}
		}
	}
	var out []string
	for leak := range leaks {
		out = append(out, leak)
	}
	return out
}

// forms are the ways in which a secret could be sent.
func forms(secret []byte) map[string][]byte {
	out := map[string][]byte{"itself": secret, "hexadecimal": fmt.Appendf(nil, "%x", secret), "HEXADECIMAL": fmt.Appendf(nil, "%X", secret)}
	for i := range 3 { // what comes before it shifts base64
		for name, e := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			shifted := []byte(e.EncodeToString(append(make([]byte, i), secret...)))
			out[fmt.Sprint(name, i)] = shifted[2*i : len(shifted)-2]
		}
	}
	return out
}

// privateOf is what is secret in a private key in PEM; its other parts are public.
func privateOf(t *testing.T, keyPEM []byte) []byte {
	t.Helper()
	key, err := pki.ParseKeyPEM(keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		b, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return b
	case *rsa.PrivateKey:
		return k.D.Bytes()
	}
	t.Fatalf("a key of type %T", key)
	return nil
}

func randomText(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return []byte(hex.EncodeToString(b))
}

// bootCertificate is one that UEFI would take, good for an hour from a time on.
func bootCertificate(t *testing.T, address string, from time.Time) (certificatePEM, keyPEM []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from.Add(-time.Minute), NotAfter: from.Add(time.Hour), IPAddresses: []net.IP{netip.MustParseAddr(address).AsSlice()}}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// efiProgram is the shortest program for UEFI on x86-64.
func efiProgram(t *testing.T) string {
	t.Helper()
	const application = 10
	b := make([]byte, 64, 512)
	copy(b, "MZ")
	b[0x3c] = 64
	out := bytes.NewBuffer(append(b, "PE\x00\x00"...))
	for _, part := range []any{
		pe.FileHeader{Machine: pe.IMAGE_FILE_MACHINE_AMD64, SizeOfOptionalHeader: uint16(binary.Size(pe.OptionalHeader64{}))},
		pe.OptionalHeader64{Magic: 0x20b, Subsystem: application, NumberOfRvaAndSizes: 16},
	} {
		if err := binary.Write(out, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

// efiArm64 is the same for arm64.
func efiArm64(t *testing.T) string {
	t.Helper()
	return strings.Replace(efiProgram(t), "PE\x00\x00\x64\x86", "PE\x00\x00\x64\xaa", 1)
}

// lockedBuffer is written by many.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

func (l *lockedBuffer) String() string { return string(l.Bytes()) }

// lineWaiter closes wait when something is written to it.
type lineWaiter struct {
	wait chan struct{}
	once sync.Once
}

func (l *lineWaiter) Write(p []byte) (int, error) {
	l.once.Do(func() { close(l.wait) })
	return len(p), nil
}
