//go:build drill

package serverapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/agent"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

const day = 24 * time.Hour

// lived is a real agent on a host that is a directory, whose clock is the test's.
type lived struct {
	name string
	node *hosttest.Node
	log  *journal
	// address is of its API.
	address string
	stop    func()
}

// journal keeps what an agent says.
type journal struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.all.Write(b)
}

func (j *journal) count(what string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.all.String(), what)
}

// live starts an agent of an installed machine and has its key approved.
func (r *rig) live(c *clock, name, mac string) *lived {
	r.t.Helper()
	l := &lived{name: name, node: hosttest.New(r.t), log: &journal{}}
	for _, m := range r.cfg.Machines {
		if m.Name != name {
			continue
		}
		for file, text := range map[string]string{"/dev/console": "", "/proc/sys/kernel/random/boot_id": "boot\n", "/sys/class/dmi/id/product_serial": m.Serial + "\n"} {
			if err := l.node.WriteFile(file, []byte(text), 0o600); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	a := r.agent(l.node, string(r.CAPEM()))
	a.Config.Mode, a.Now, a.Log = nodeconf.Node, c.Now, slog.New(slog.NewTextHandler(l.log, nil))
	l.address = serveAPI(r.t, a)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	l.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("%s: %v", name, err)
		}
	})
	r.t.Cleanup(l.stop)
	code := line(r.t, l.node, `CODE +(\S+)`)
	r.soon(name+"'s key", func() bool { m, _ := r.store.Machine(name); return len(m.Pending) == 1 })
	if o := r.approve(name, code, false); !o.GetOk() {
		r.t.Fatal(o)
	}
	r.soon(name+"'s report", func() bool { _, ok := r.board.get(name); return ok })
	return l
}

func (r *rig) soon(what string, good func() bool) {
	r.t.Helper()
	for end := time.Now().Add(3 * time.Minute); !good(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("waiting for %s", what)
		}
	}
}

// certificate is what the agent has on its disk, with its key.
func (l *lived) certificate(t *testing.T) *tls.Certificate {
	t.Helper()
	cert, err1 := l.node.ReadFile(agent.CertPath)
	key, err2 := l.node.ReadFile(agent.KeyPath)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

// left is for how long a certificate is good still.
func (l *lived) left(t *testing.T, c *clock) time.Duration {
	t.Helper()
	return l.certificate(t).Leaf.NotAfter.Sub(c.Now())
}

func agedRig(t *testing.T) (*rig, *clock, *kept) {
	t.Helper()
	c := newClock()
	cp, w := cp1(), w1()
	cp.Serial, w.Serial = "CP1-SERIAL", "W1-SERIAL"
	w2 := w1()
	w2.Name, w2.Serial, w2.MACs = "w2", "W2-SERIAL", []string{"52:54:00:00:00:03"}
	cfg := config(cp, w, w2)
	cfg.Now = c.Now
	r := &rig{t: t, dir: t.TempDir(), hold: 20 * time.Millisecond}
	k := r.keepCopies(c.Now)
	r.up(cfg)
	t.Cleanup(func() { r.stop() })
	return r, c, k
}

// leaves are the certificates of etcd that a control plane renews from a third of their
// life on.
func leaves() []api.CertificateProfile {
	return []api.CertificateProfile{
		api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_SERVER, api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER,
		api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_AGENT_CLIENT, api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_APISERVER_CLIENT,
	}
}

// asAgent makes calls with an agent's own certificate.
func (r *rig) asAgent(l *lived) *fake { return &fake{rig: r, cert: l.certificate(r.t)} }

// The server is away for thirty days, at the worst moment: the day before certificates
// would have been renewed. Then its disk is destroyed too, with the backups on it, and it
// comes back out of the copy that a control plane keeps, fetched by an operator whose
// certificate ended as long ago.
func TestThirtyDaysWithoutTheServer(t *testing.T) {
	r, c, k := agedRig(t)
	nodes := []*lived{r.live(c, "cp1", cp1MAC), r.live(c, "w1", w1MAC), r.live(c, "w2", "52:54:00:00:00:03")}
	if _, err := r.asAgent(nodes[0]).issue(leaves()...); err != nil {
		t.Fatal(err)
	}
	c.pass(10*day - time.Hour)
	newest, err := k.Save(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.soon("the copy on cp1", func() bool { ks := r.keepers(); return len(ks) == 1 && ks[0].newest.Name == newest.Name })
	ada := r.source(pki.RoleAdmin, c.Now)
	held, err := r.held(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lost := c.Now()
	first := time.Time{}
	for who, all := range held {
		for _, cert := range all {
			if cert.Profile == profileOperator || superseded(cert, all) {
				continue // hours by design
			}
			if first.IsZero() || cert.NotAfter.Before(first) {
				first = cert.NotAfter
			}
			if left := cert.NotAfter.Sub(lost); left < 20*day {
				t.Errorf("%s of %s is good for %v only", cert.Profile, who, left)
			}
		}
	}
	t.Logf("the server is lost when the first certificate that something runs on is good for %.1f days", first.Sub(lost).Hours()/24)
	r.stop()
	r.stop = func() {}

	const warning = "renewing our certificate failed; it stays good for now"
	broke := 0
	last := 0
	for _, d := range []int{1, 5, 10, 15, 20, 21, 30} { // agents call a server that is away every 15 s
		before := map[string]int{} // once told the new time they may be quicker than we are
		for _, l := range nodes {
			before[l.name] = l.log.count(warning)
		}
		c.pass(time.Duration(d-last) * day)
		last = d
		for _, l := range nodes {
			left := l.left(t, c)
			switch {
			case left > 0:
				// It tries again, and says so; nothing else happens.
				r.soon(fmt.Sprintf("the warning of %s on day %d", l.name, d), func() bool { return l.log.count(warning) > before[l.name] })
			case d <= 20:
				t.Errorf("day %d: the certificate of %s has ended", d, l.name)
			default:
				broke++
				r.soon(l.name+" to enrol again", func() bool { return l.log.count("our certificate has expired; enrolling again") > 0 })
			}
			t.Logf("day %2d without the server: %s has warned %d times, its certificate is good for %.1f days", d, l.name, l.log.count(warning), left.Hours()/24)
		}
	}
	if broke == 0 {
		t.Error("after 30 days every certificate is still good: they live longer than they should")
	}

	// Its disk is destroyed. One command, imagectl server restore --from-node, makes a new
	// state directory.
	if err := errors.Join(os.RemoveAll(r.dir), os.RemoveAll(k.dir)); err != nil {
		t.Fatal(err)
	}
	r.keeps = nil
	began := time.Now()
	got, err := ada.Fetch(t.Context(), []string{nodes[0].address}, t.TempDir(), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	fetched := time.Since(began)
	r.restore(r.cfg, saved{got.Path, k.key}, c.Now())
	restored := time.Since(began)
	at := c.Now()
	for _, l := range nodes {
		r.soon(l.name+" to report", func() bool { b, ok := r.board.get(l.name); return ok && !b.at.Before(at) })
		if left := l.left(t, c); left < 29*day {
			t.Errorf("%s is back with a certificate for %v", l.name, left)
		}
	}
	t.Logf("fetched %d bytes from %s after %.2f s;", got.File.Size, got.Node, fetched.Seconds())
	t.Logf("restored and serving after %.2f s; all %d nodes reported %.1f s after the restore began, without a touch", restored.Seconds(), len(nodes), time.Since(began).Seconds())
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

// Five years, a day at a time: every certificate is renewed in time, the server starts
// anew each year. Then on until something ends that nothing renews.
func TestFiveYears(t *testing.T) {
	r, c, k := agedRig(t)
	began := c.Now()
	nodes := []*lived{r.live(c, "cp1", cp1MAC), r.live(c, "w1", w1MAC)}
	first := map[string]string{}
	for _, l := range nodes {
		first[l.name] = pki.Serial(l.certificate(t).Leaf)
	}
	renewed, least := map[string]int{}, map[string]time.Duration{}
	note := func(what string, left time.Duration) {
		renewed[what]++
		if old, ok := least[what]; !ok || left < old {
			least[what] = left
		}
	}
	var leaf time.Time // the end of etcd's certificates
	lifetimes := r.lifetimes
	today := func() int { return int(c.Now().Sub(began) / day) }
	// oneDay returns what could not be done any more.
	const failed = "renewing our certificate failed"
	oneDay := func() error {
		old, before := map[string]*x509.Certificate{}, map[string]int{}
		for _, l := range nodes {
			old[l.name], before[l.name] = l.certificate(t).Leaf, l.log.count(failed)
		}
		c.pass(day)
		for _, l := range nodes {
			old, before := old[l.name], before[l.name]
			if c.Now().Before(old.NotAfter.Add(pki.RenewAfter(lifetimes.Agent) - lifetimes.Agent)) {
				continue
			}
			r.soon(l.name+" to renew", func() bool {
				return pki.Serial(l.certificate(t).Leaf) != pki.Serial(old) || l.log.count(failed) > before
			})
			if pki.Serial(l.certificate(t).Leaf) == pki.Serial(old) {
				return fmt.Errorf("the certificate of %s is not renewed any more; it is good for %.0f days", l.name, l.left(t, c).Hours()/24)
			}
			note("node", old.NotAfter.Sub(c.Now()))
		}
		if leaf.IsZero() || c.Now().After(leaf.Add(pki.RenewAfter(lifetimes.Leaf)-lifetimes.Leaf)) {
			got, err := r.asAgent(nodes[0]).issue(leaves()...)
			if err != nil {
				return fmt.Errorf("etcd's certificates, which are good for %.0f days: %w", leaf.Sub(c.Now()).Hours()/24, err)
			}
			one, err := pki.ParseCertificatePEM([]byte(got.GetItems()[0].GetCertificatePem()))
			if err != nil {
				return err
			}
			if !leaf.IsZero() {
				note("etcd", leaf.Sub(c.Now()))
			}
			leaf = one.NotAfter
		}
		if _, _, _, err := r.Operator(t.Context(), "ada", pki.RoleReader); err != nil {
			return err
		}
		note("operator", 0)
		return nil
	}
	for year := range 5 {
		for range 365 {
			if err := oneDay(); err != nil {
				t.Fatalf("day %d: %v", today(), err)
			}
		}
		status, err := r.operator(pki.RoleReader).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range status.Msg.GetNotes() {
			if strings.Contains(n, "alarm") || strings.Contains(n, "certificate") {
				t.Errorf("year %d: %s", year+1, n)
			}
		}
		// A year of backups to fetch, and then there is a new one.
		last, err := k.Save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.soon("the copy on cp1", func() bool { ks := r.keepers(); return len(ks) == 1 && ks[0].newest.Name == last.Name })
		r.restart(r.cfg)
	}
	for _, l := range nodes {
		if got := pki.Serial(l.certificate(t).Leaf); got == first[l.name] || l.left(t, c) < 19*day {
			t.Errorf("%s has certificate %s, good for %v", l.name, got, l.left(t, c))
		}
	}
	tip, err := r.VerifyAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	disk, used, _ := r.store.Size()
	t.Logf("five years: %d certificates of nodes renewed (with %.0f days left at least), %d times those of etcd (%.0f days), %d of operators; the audit log has %d entries and is whole; the database has %.1f MB, %.1f of them used",
		renewed["node"], least["node"].Hours()/24, renewed["etcd"], least["etcd"].Hours()/24, renewed["operator"], tip.Seq, float64(disk)/1e6, float64(used)/1e6)

	for today() < 11*365 {
		if err := oneDay(); err != nil {
			t.Logf("on day %d (%.2f years): %v", today(), float64(today())/365.25, err)
			return
		}
	}
	t.Error("nothing ended in eleven years, though no CA is ever made anew")
}
