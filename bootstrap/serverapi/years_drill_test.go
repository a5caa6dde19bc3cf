//go:build drill

package serverapi

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

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
	r.source(pki.RoleAdmin, c.Now) // an admin is on record from the server's first start on
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
// anew each year, and in the third its CA is replaced. Then on until something ends that
// nothing renews, and past the end of the CA that the cluster began with.
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
	began10 := r.signer().Certificate()
	for year := range 5 {
		for d := range 365 {
			if err := oneDay(); err != nil {
				t.Fatalf("day %d: %v", today(), err)
			}
			if year != 2 {
				continue
			}
			switch d {
			case 100: // nodes that are up say within a call that they trust it
				r.step(rollPrepare)
			case 102:
				r.restart(r.cfg) // what they said is forgotten, and said again
				r.may(rollActivate)
				r.step(rollActivate)
				for _, l := range nodes {
					r.soon(l.name+"'s certificate of the new CA", func() bool { return r.trust.Load().signs(l.certificate(t).Leaf) })
				}
			case 110: // operators' certificates of the old one have ended
				if _, err := k.Save(t.Context()); err != nil {
					t.Fatal(err)
				}
				r.may(rollFinish)
				r.step(rollFinish)
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

	for _, l := range nodes {
		for _, bad := range []string{"enrolling again", "of no use", "not remembered"} {
			if n := l.log.count(bad); n > 0 {
				t.Errorf("%s says %d times: %s", l.name, n, bad)
			}
		}
	}
	if r.signer().Certificate().Equal(began10) {
		t.Error("the CA is the one that the cluster began with")
	}

	ended := false // etcd's
	for today() < 3653+60 {
		err := oneDay()
		switch {
		case err == nil:
		case !ended && strings.HasPrefix(err.Error(), "etcd's certificates"):
			t.Logf("on day %d (%.2f years): %v", today(), float64(today())/365.25, err)
			ended, leaf = true, c.Now().Add(100*365*day) // asks no more
		default:
			t.Fatalf("day %d: %v", today(), err)
		}
	}
	if !ended {
		t.Error("etcd's CA has not ended, though nothing makes another")
	}
	if !c.Now().After(began10.NotAfter) {
		t.Errorf("it is %v, and the first CA is good until %v", c.Now(), began10.NotAfter)
	}
	t.Logf("on day %d (%.2f years), %.0f days after the end of the CA that the cluster began with, nodes renew their certificates: %d until now", today(), float64(today())/365.25, c.Now().Sub(began10.NotAfter).Hours()/24, renewed["node"])
}
