//go:build root && clock

package native

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/agent"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

const (
	day = 24 * time.Hour
	// stride is how far the clock leaps: less than any certificate has left when it is due.
	stride = 9 * day
	years  = 5
)

// Real etcd, real Kubernetes, real agents and the real server live through five years, nine days
// at a time (clock/overlay shifts the time of day of all of them). After each leap openssl says
// that every certificate of every file has as much of its life left as it should, and that what
// is shown on every port is good, and etcd, the API server, the controller manager and the
// scheduler do their work. Each year the server starts anew; in the third etcd's CA is replaced,
// and in the fourth imagectl's own.
func TestClockFiveYears(t *testing.T) {
	clock := newClock(t)
	r := darkRack(t, func(c *serverapi.Config) {
		c.Now = func() time.Time { return time.Now().Round(0) } // as the agents, it looks at times of day
	}, "cp1", "w1")
	r.power("cp1", 1)
	r.power("w1", 2)
	r.approve()
	r.ready(15*time.Minute, func(map[string]*api.MachineView) {})
	r.check()
	grace := r.person("grace")

	seen := &lives{serials: map[string]map[string]bool{}, least: map[string]time.Duration{}}
	start := clock.real()
	var slowest time.Duration
	for passed := stride; passed < years*365*day+stride; passed += stride {
		for _, c := range r.certificates() {
			seen.note(c, c.left()-stride)
		}
		before := clock.real()
		clock.leap(stride)
		when := fmt.Sprintf("day %d", passed/day)
		grace.renew()
		r.comesAndGoes(when)
		r.settled(when, passed)
		year := passed / (365 * day)
		if last := (passed - stride) / (365 * day); year != last {
			t.Logf("year %d is over: %s", year, seen)
			r.stop()
			r.up()
		}
		switch at := func(d time.Duration) bool { return passed <= d && d < passed+stride }; {
		case at(2*365*day + 100*day):
			r.rotateEtcd()
		case at(3*365*day + 100*day):
			r.roll(api.RollAuthorityRequest_STEP_PREPARE)
		case at(3*365*day + 120*day):
			r.roll(api.RollAuthorityRequest_STEP_ACTIVATE)
		case at(3*365*day + 170*day): // what the old one has signed for persons has ended
			r.roll(api.RollAuthorityRequest_STEP_FINISH)
		}
		slowest = max(slowest, clock.real().Sub(before))
	}
	tip, err := r.server.VerifyAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.2f years in %.0f minutes, %.0f s for %d days at most; the audit log has %d entries and is whole", clock.by.Hours()/24/365.25, clock.real().Sub(start).Minutes(), slowest.Seconds(), stride/day, tip.Seq)
	for _, what := range slices.Sorted(maps.Keys(seen.serials)) {
		t.Logf("%-60s %3d certificates, one after the other, with %.0f days left at least", what, len(seen.serials[what]), seen.least[what].Hours()/24)
		if len(seen.serials[what]) < years {
			t.Errorf("%s: %d certificates in %d years", what, len(seen.serials[what]), years)
		}
	}
	r.check()
}

// clock is the file that shifts everybody's time of day.
type clock struct {
	t    *testing.T
	file *os.File
	by   time.Duration
}

func newClock(t *testing.T) *clock {
	t.Helper()
	f, err := os.OpenFile(os.Getenv("IMAGECTL_TEST_CLOCK"), os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("%v (make native-years)", err)
	}
	c := &clock{t: t, file: f}
	before := time.Now().Round(0)
	c.leap(365 * day)
	if d := time.Now().Round(0).Sub(before); d < 364*day {
		t.Fatalf("this program's clock does not follow %s: it was built without clock/overlay", f.Name())
	}
	c.leap(-365 * day)
	t.Cleanup(func() { _ = f.Close() })
	return c
}

// leap moves everybody's time on.
func (c *clock) leap(d time.Duration) {
	c.t.Helper()
	c.by += d
	// Eight bytes of a page at once: whoever reads sees the old or the new.
	if _, err := c.file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(c.by/time.Second)), 0); err != nil {
		c.t.Fatal(err)
	}
}

// real is the machine's time.
func (c *clock) real() time.Time { return time.Now().Round(0).Add(-c.by) }

// a held is a certificate in a file of a node.
type held struct {
	what, serial string
	start, end   time.Time
	// due is how much is left when somebody should renew it; zero for a fifth of its life.
	due time.Duration
}

func (c held) left() time.Duration { return time.Until(c.end) }

// certificates are all that nodes have in files, and the one that the server shows, by openssl.
func (r *rack) certificates() []held {
	r.t.Helper()
	const leaf, own, kubeadms = 60 * day, 20 * day, 240 * day
	files := func(cp bool) map[string]time.Duration {
		all := map[string]time.Duration{agent.CertPath: own, kubeadm.Serving: leaf, kubeletConf: 0}
		if cp {
			maps.Copy(all, map[string]time.Duration{
				etcd.ServerPath: leaf, etcd.PeerPath: leaf, etcd.ClientPath: leaf, kubeadm.EtcdClient: leaf,
				"/etc/kubernetes/pki/apiserver.crt": kubeadms, "/etc/kubernetes/pki/apiserver-kubelet-client.crt": kubeadms,
				"/etc/kubernetes/pki/front-proxy-client.crt": kubeadms, "/etc/kubernetes/admin.conf": kubeadms,
				"/etc/kubernetes/controller-manager.conf": kubeadms, "/etc/kubernetes/scheduler.conf": kubeadms,
			})
		}
		return all
	}
	var out []held
	for _, name := range slices.Sorted(maps.Keys(r.nodes)) {
		m, all := r.nodes[name], files(strings.HasPrefix(name, "cp"))
		for _, path := range slices.Sorted(maps.Keys(all)) {
			due := all[path]
			// A kubeconfig has the certificate in it, or the path of one.
			script := "openssl x509 -in %[1]s"
			if strings.HasSuffix(path, ".conf") {
				script = `f=$(sed -n 's/.*client-certificate: //p' %[1]s); if [ "$f" ]; then cat "$f"; else sed -n 's/.*client-certificate-data: //p' %[1]s | base64 -d; fi | openssl x509`
			}
			text, err := m.on("sh", "-c", fmt.Sprintf(script, path)+" -noout -serial -startdate -enddate")
			if err != nil {
				r.t.Fatal(err)
			}
			out = append(out, r.parse(name+" "+path, text, due))
		}
	}
	return append(out, r.parse("server at "+serverURL, r.shows(r.nodes["cp1"], strings.TrimPrefix(serverURL, "https://")), own))
}

// shows is what openssl says of the certificate at an address, seen from a node.
func (r *rack) shows(m *machine, address string) string {
	r.t.Helper()
	out, err := m.on("sh", "-c", "openssl s_client -connect "+address+" </dev/null 2>/dev/null | openssl x509 -noout -serial -startdate -enddate")
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// parse reads what openssl says.
func (r *rack) parse(what, text string, due time.Duration) held {
	r.t.Helper()
	c := held{what: what, due: due}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		at, err := time.Parse("Jan _2 15:04:05 2006 MST", value)
		switch key {
		case "serial":
			c.serial = value
			continue
		case "notBefore":
			c.start = at
		case "notAfter":
			c.end = at
		}
		if err != nil {
			r.t.Fatalf("%s: %v: %s", what, err, text)
		}
	}
	if c.serial == "" || c.start.IsZero() || c.end.IsZero() {
		r.t.Fatalf("%s: openssl says %q", what, text)
	}
	if c.due == 0 {
		c.due = c.end.Sub(c.start) / 5
	}
	return c
}

// lives is what became of each certificate.
type lives struct {
	serials map[string]map[string]bool
	least   map[string]time.Duration
}

func (l *lives) note(c held, left time.Duration) {
	if l.serials[c.what] == nil {
		l.serials[c.what], l.least[c.what] = map[string]bool{}, left
	}
	l.serials[c.what][c.serial], l.least[c.what] = true, min(left, l.least[c.what])
}

func (l *lives) String() string {
	all := 0
	for _, s := range l.serials {
		all += len(s)
	}
	least := slices.SortedFunc(maps.Keys(l.least), func(a, b string) int { return int(l.least[a] - l.least[b]) })
	return fmt.Sprintf("%d certificates in %d files, with %.0f days left at least (%s)", all, len(l.serials), l.least[least[0]].Hours()/24, least[0])
}

// comesAndGoes lets a person in and out again. Nodes hear of that at once, and look at what they
// have; else they do so every 20 seconds.
func (r *rack) comesAndGoes(when string) {
	r.t.Helper()
	if _, err := r.op.AddOperator(r.t.Context(), connect.NewRequest(&api.AddOperatorRequest{Name: "guest", Role: string(pki.RoleReader), CsrDer: r.csr(r.key())})); err != nil {
		r.t.Fatalf("%s: %v", when, err)
	}
	resp, err := r.op.RevokeOperators(r.t.Context(), connect.NewRequest(&api.RevokeOperatorsRequest{Names: []string{"guest"}, Reason: when}))
	if err != nil || !resp.Msg.GetOutcomes()[0].GetOk() {
		r.t.Fatalf("%s: %v %v", when, err, resp)
	}
}

func (r *rack) key() crypto.Signer {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	return key
}

func (r *rack) csr(key crypto.Signer) []byte {
	r.t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		r.t.Fatal(err)
	}
	return csr
}

// settled waits until all is as it should be again after a leap, and tries what works then.
func (r *rack) settled(when string, passed time.Duration) {
	r.t.Helper()
	leapt := time.Now().Round(0)
	r.wait(15*time.Minute, when, func() (bool, string) {
		resp, err := r.op.Status(r.t.Context(), connect.NewRequest(&api.StatusRequest{}))
		if err != nil {
			return false, err.Error()
		}
		for _, m := range resp.Msg.GetMachines() {
			if at := m.GetLastSeen().AsTime(); at.Before(leapt) {
				return false, m.GetName() + " has not called yet"
			}
			if left := time.Until(m.GetCertificateNotAfter().AsTime()); left < 20*day {
				return false, fmt.Sprintf("the server has heard of %s's certificate that it is good for %.0f days", m.GetName(), left.Hours()/24)
			}
		}
		if !resp.Msg.GetReady() {
			return false, resp.Msg.GetSummary()
		}
		for _, c := range r.certificates() {
			if c.left() < c.due {
				return false, fmt.Sprintf("%s is good for %.0f days", c.what, c.left().Hours()/24)
			}
		}
		for _, n := range resp.Msg.GetNotes() {
			rolling := strings.HasPrefix(n, "CA imagectl: ") // what comes next is said, too
			if !rolling && strings.Contains(n, "certificate") || strings.Contains(n, "alarm") {
				return false, n
			}
		}
		return true, ""
	})
	for name, m := range r.nodes {
		at := []string{m.address + ":50500"}
		if strings.HasPrefix(name, "cp") {
			at = append(at, m.address+":6443", m.address+":"+etcd.ClientPort, m.address+":"+etcd.PeerPort, "127.0.0.1:10257", "127.0.0.1:10259")
		}
		for _, at := range at {
			shown := r.parse(name+" at "+at, r.shows(m, at), 0)
			if shown.left() < stride {
				r.t.Errorf("%s: what %s shows is good for %.0f days", when, shown.what, shown.left().Hours()/24)
			}
		}
	}
	r.works(fmt.Sprintf("day-%d", passed/day))
}

// works has a write to etcd, and one to Kubernetes by which the controller manager and the
// scheduler do something: a namespace's ConfigMap of the CA, and the word on a pod that there is no
// room for it, as the kubelet of these tests offers none.
func (r *rack) works(name string) {
	r.t.Helper()
	cp := r.nodes["cp1"]
	pod := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":%q},"spec":{"automountServiceAccountToken":false,"tolerations":[{"operator":"Exists"}],"containers":[{"name":"c","image":"registry.k8s.io/pause:3.10.1","securityContext":{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]},"runAsNonRoot":true,"seccompProfile":{"type":"RuntimeDefault"}}}]}}`, name)
	k := func(args ...string) (string, error) {
		return cp.on(append([]string{"kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf"}, args...)...)
	}
	made := false
	r.wait(5*time.Minute, name+" at work", func() (bool, string) {
		if !made {
			if out, err := k("create", "namespace", name); err != nil {
				return false, err.Error() + out
			}
			made = true
		}
		_, err := k("-n", name, "get", "configmap", "kube-root-ca.crt", "-o", "name")
		return err == nil, "the controller manager has not come by"
	})
	asked := false
	r.wait(5*time.Minute, name+"'s pod", func() (bool, string) {
		if !asked {
			if out, err := cp.on("sh", "-c", "printf %s '"+pod+"' | kubectl --kubeconfig /etc/kubernetes/admin.conf create -f -"); err != nil {
				return false, err.Error() + out
			}
			asked = true
		}
		out, err := k("-n", name, "get", "pod", "p", "-o", `jsonpath={.status.conditions[?(@.type=="PodScheduled")].reason}`)
		if err != nil {
			return false, err.Error()
		}
		return out == "Unschedulable", "the scheduler says nothing"
	})
	if out, err := k("delete", "namespace", name, "--wait=false"); err != nil {
		r.t.Errorf("%v %s", err, out)
	}
	if out, err := cp.on("etcdctl", "--endpoints", "https://"+cp.address+":"+etcd.ClientPort, "--cacert", etcd.CAPath, "--cert", etcd.ClientPath, "--key", etcd.ClientPath, "put", "years", name); err != nil {
		r.t.Errorf("%s: %v %s", name, err, out)
	}
}

// rotateEtcd has etcd's CA replaced.
func (r *rack) rotateEtcd() {
	r.t.Helper()
	old := r.authorities("cp1")
	if resp, err := r.op.RotateAuthority(r.t.Context(), connect.NewRequest(&api.RotateAuthorityRequest{Ca: "etcd"})); err != nil || !resp.Msg.GetChanged() {
		r.t.Fatalf("%v %v", err, resp)
	}
	r.wait(30*time.Minute, "etcd's CA", func() (bool, string) {
		now, err := r.op.ShowAuthority(r.t.Context(), connect.NewRequest(&api.ShowAuthorityRequest{}))
		if err != nil {
			return false, err.Error()
		}
		v := now.Msg.GetAuthority().GetRotations()[0]
		return v.GetStage() == "settled", v.GetStage() + ": " + strings.Join(v.GetWaits(), "; ")
	})
	if now := r.authorities("cp1"); len(now) != 1 || now[0].Equal(old[0]) {
		r.t.Fatalf("etcd trusts %d CAs, or the one of before", len(now))
	}
}

// roll goes one step in replacing imagectl's own CA, as soon as nothing is in the way.
func (r *rack) roll(step api.RollAuthorityRequest_Step) {
	r.t.Helper()
	r.wait(15*time.Minute, step.String(), func() (bool, string) {
		resp, err := r.op.RollAuthority(r.t.Context(), connect.NewRequest(&api.RollAuthorityRequest{Step: step}))
		if err != nil {
			return false, err.Error()
		}
		return resp.Msg.GetChanged(), resp.Msg.GetMessage()
	})
}

// person is an admin with a key of her own, whose certificates live for hours.
type person struct {
	r   *rack
	key crypto.Signer
	ca  []*x509.Certificate
}

// person lets somebody in, who makes all of r's calls from now on.
func (r *rack) person(name string) *person {
	r.t.Helper()
	key := r.key()
	resp, err := r.op.AddOperator(r.t.Context(), connect.NewRequest(&api.AddOperatorRequest{Name: name, Role: string(pki.RoleAdmin), CsrDer: r.csr(key)}))
	if err != nil {
		r.t.Fatal(err)
	}
	p := &person{r: r, key: key}
	p.has(resp.Msg.GetCertificatePem(), resp.Msg.GetCaPem())
	return p
}

// has is called with a new certificate, and with the CAs that the server says to trust.
func (p *person) has(certificate, ca string) {
	t := p.r.t
	t.Helper()
	if ca != "" {
		var err error
		if p.ca, err = pki.ParseCertificatesPEM([]byte(ca)); err != nil {
			t.Fatal(err)
		}
	}
	chain, err := pki.ParseCertificatesPEM([]byte(certificate))
	if err != nil {
		t.Fatal(err)
	}
	pair := tls.Certificate{PrivateKey: p.key, Leaf: chain[0]}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	conf := p.trusts()
	conf.Certificates = []tls.Certificate{pair}
	p.r.http.CloseIdleConnections()
	p.r.http = &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}}
	p.r.op = apiconnect.NewOperatorServiceClient(p.r.http, serverURL)
}

func (p *person) trusts() *tls.Config {
	pool := x509.NewCertPool()
	for _, c := range p.ca {
		pool.AddCert(c)
	}
	return &tls.Config{RootCAs: pool}
}

// renew is what imagectl does before a call when the certificate is old: the key alone lets
// her have another one.
func (p *person) renew() {
	r := p.r
	r.t.Helper()
	r.wait(5*time.Minute, "a certificate for a person", func() (bool, string) {
		client, on, err := serverapi.OneConnection(r.t.Context(), serverURL, p.trusts())
		if err != nil {
			return false, err.Error()
		}
		defer client.CloseIdleConnections()
		csr, err := pki.RenewalRequest(p.key, on, rand.Reader)
		if err != nil {
			r.t.Fatal(err)
		}
		resp, err := apiconnect.NewEnrolServiceClient(client, serverURL).RenewOperator(r.t.Context(), connect.NewRequest(&api.RenewOperatorRequest{CsrDer: csr}))
		if err != nil {
			return false, err.Error()
		}
		p.has(resp.Msg.GetCertificatePem(), resp.Msg.GetCaPem())
		return true, ""
	})
}
