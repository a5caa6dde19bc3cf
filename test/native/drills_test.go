//go:build root

package native

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/agent"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// apiGap is for how long Kubernetes may not answer through the balancer of a node that
// has lost nothing itself.
const apiGap = 5 * time.Second

// What can happen to one of three control planes, while others write to etcd and to
// Kubernetes. Each loss of one third of the nodes is tried, and what is hard for etcd is
// done to its leader. Every acknowledged write is looked for after each drill.
func TestDrills(t *testing.T) {
	// A machine that sleeps for minutes has to wake up with a certificate that has ended.
	r := darkRack(t, func(c *serverapi.Config) { c.Lifetimes.Agent = 2 * time.Minute }, "cp1", "cp2", "cp3")
	for i, name := range []string{"cp1", "cp2", "cp3"} {
		r.power(name, i+1)
	}
	r.approve()
	r.ready(30*time.Minute, func(map[string]*api.MachineView) {})
	r.voters(3)
	r.threeAPIServers()

	d := &drills{rack: r, host: newProbe(t), writer: r.write(), etcd: r.nodes["cp1"].certificate(t), veth: 100}
	d.writer.more(50)
	for _, name := range []string{"cp1", "cp2", "cp3"} {
		d.run("no power", name, func(m *machine) time.Time {
			m.off(t)
			d.writer.more(300)
			return d.on(name)
		})
	}
	d.run("cut off from the network (etcd's leader)", d.leader(), d.cutOff)
	d.run("stopped until its certificate had ended (etcd's leader)", d.leader(), d.sleeps)
	d.run("disk full (etcd's leader)", d.leader(), d.diskFull)
	r.stop()
	d.run("no power, and no server at all", d.leader(), func(m *machine) time.Time {
		m.off(t)
		d.writer.more(300)
		return d.on(m.Name)
	})
	began := time.Now()
	r.up()
	r.ready(15*time.Minute, func(map[string]*api.MachineView) {})
	t.Logf("all reported to the server again %.1f s after it came back", time.Since(began).Seconds())
	d.print()
}

// drills are rows of a table.
type drills struct {
	*rack
	host   *probe
	writer *writer
	etcd   *tls.Config
	rows   []row
	// veth is the number of the last cable.
	veth int
}

type row struct {
	what, victim        string
	api, etcd, recovery time.Duration
	acked, lost         int
}

// run does something to a control plane, which f takes back; f returns when that was.
func (d *drills) run(what, victim string, f func(*machine) time.Time) {
	d.t.Helper()
	d.t.Logf("== %s: %s", victim, what)
	began := time.Now()
	var others []*creator
	for name := range d.nodes {
		if name != victim {
			others = append(others, d.createOn(victim, name, fmt.Sprintf("d%d", len(d.rows))))
		}
	}
	before := d.writer.count()
	d.writer.since(before) // what was before does not count
	healed := f(d.nodes[victim])
	d.recovered(victim)
	r := row{what: what, victim: victim, recovery: time.Since(healed)}
	for _, c := range others {
		c.stop()
	}
	r.acked, r.etcd = d.writer.since(before)
	r.lost = d.writer.gone()
	have := d.created(d.t, others[0].via)
	for _, c := range others {
		n, gap := c.since(0)
		r.acked += n
		r.api = max(r.api, gap)
		d.t.Logf("%s, in the longest time without an answer of Kubernetes:\n%s", c.via, c.said())
		r.lost += lost(c.soFar(), have)
		if n == 0 {
			d.t.Errorf("%s of %s: nothing was written to Kubernetes through %s", what, victim, c.via)
		}
	}
	d.rows = append(d.rows, r)
	d.t.Logf("%s", r)
	if r.lost > 0 {
		d.t.Errorf("%s of %s: %d acknowledged writes are lost", what, victim, r.lost)
	}
	d.balancersSaid(victim, began)
	d.host.meets(d.t, fmt.Sprintf("%s of %s: longest time without an answer of Kubernetes", what, victim), r.api, apiGap, began)
}

// balancersSaid prints what the balancers of the others wrote about API servers.
func (d *drills) balancersSaid(victim string, since time.Time) {
	d.t.Helper()
	for name, m := range d.nodes {
		log, err := os.ReadFile(m.Dir + "/bootstrapd.service.log")
		if err != nil {
			d.t.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			when, rest, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "time="), " ")
			at, err := time.Parse(time.RFC3339, when)
			if name != victim && err == nil && at.After(since) && strings.Contains(rest, "API server") {
				d.t.Logf("%6.2f s %s: %s", at.Sub(since).Seconds(), name, rest)
			}
		}
	}
}

func (r row) String() string {
	return fmt.Sprintf("%-56s %-4s  API gap %5.2f s  etcd gap %5.2f s  %5d writes acknowledged, %d lost  recovered after %6.1f s",
		r.what, r.victim, r.api.Seconds(), r.etcd.Seconds(), r.acked, r.lost, r.recovery.Seconds())
}

func (d *drills) print() {
	for _, r := range d.rows {
		d.t.Logf("%s", r)
	}
}

// recovered waits until a control plane's etcd member and API server are well.
func (d *drills) recovered(name string) {
	d.t.Helper()
	address := d.nodes[name].address
	probe := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	d.wait(15*time.Minute, name, func() (bool, string) {
		ctx, cancel := context.WithTimeout(d.t.Context(), 2*time.Second)
		defer cancel()
		s, err := etcd.Ask(ctx, "https://"+address+":2379", d.etcd)
		if err != nil || !s.Healthy || s.Learner {
			return false, fmt.Sprintf("its etcd member is not well: %v %s", err, s.Reason)
		}
		resp, err := probe.Get("https://" + address + ":6443/readyz")
		if err != nil {
			return false, "its API server does not answer"
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK, "its API server says " + resp.Status
	})
}

// leader is the name of etcd's leader.
func (d *drills) leader() string {
	d.t.Helper()
	found := ""
	d.wait(5*time.Minute, "etcd's leader", func() (bool, string) {
		for name, m := range d.nodes {
			ctx, cancel := context.WithTimeout(d.t.Context(), 5*time.Second)
			s, err := d.writer.client.Status(ctx, "https://"+m.address+":2379")
			cancel()
			if err == nil && s.Leader == s.Header.MemberId {
				found = name
			}
		}
		return found != "", found
	})
	return found
}

// on switches an installed machine on.
func (d *drills) on(name string) time.Time {
	d.t.Helper()
	d.nodes[name].Installed = true
	d.veth++
	d.power(name, d.veth)
	return time.Now()
}

// cutOff drops everything that comes and goes by the network card.
func (d *drills) cutOff(m *machine) time.Time {
	d.t.Helper()
	const rules = `table inet drill {
 chain in { type filter hook input priority -500; iifname "eth0" drop; }
 chain out { type filter hook output priority -500; oifname "eth0" drop; }
}`
	if _, err := m.on("nft", rules); err != nil {
		d.t.Fatal(err)
	}
	d.writer.more(500)
	if _, err := m.on("nft", "delete", "table", "inet", "drill"); err != nil {
		d.t.Fatal(err)
	}
	return time.Now()
}

// sleeps stops all of a node's processes, until the certificate of its agent has ended.
func (d *drills) sleeps(m *machine) time.Time {
	d.t.Helper()
	m.signal(d.t, syscall.SIGSTOP)
	end := m.agentCertificate(d.t).NotAfter
	d.writer.more(500)
	d.wait(10*time.Minute, "the end of "+m.Name+"'s certificate", func() (bool, string) { return time.Now().After(end.Add(time.Second)), end.Format(time.TimeOnly) })
	if now := m.agentCertificate(d.t).NotAfter; !now.Equal(end) {
		d.t.Fatalf("%s renewed its certificate while it was stopped", m.Name)
	}
	m.signal(d.t, syscall.SIGCONT)
	woken := time.Now()
	d.wait(10*time.Minute, m.Name+"'s new certificate", func() (bool, string) {
		now := m.agentCertificate(d.t).NotAfter
		return now.After(time.Now()), now.Format(time.TimeOnly)
	})
	d.wait(10*time.Minute, m.Name+"'s report", func() (bool, string) {
		v := d.views()[m.Name]
		return v.GetLastSeen().AsTime().After(woken), v.GetState()
	})
	// It had an answer of before in its hands, with the server's time of before.
	if log, err := os.ReadFile(m.Dir + "/bootstrapd.service.log"); err != nil || bytes.Contains(log, []byte("our clock is wrong")) {
		d.t.Errorf("%s set its clock by an old answer (%v)", m.Name, err)
	}
	return woken
}

func (m *machine) agentCertificate(t *testing.T) *x509.Certificate {
	t.Helper()
	pem, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", m.pid, agent.CertPath))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.ParseCertificatePEM(pem)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// signal sends a signal to every process of a node. What starts meanwhile gets it in
// the next round.
func (m *machine) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", m.pid))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		all, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range all {
			if ns, err := os.Readlink(dir + "/ns/pid"); err != nil || ns != own {
				continue // another's, or gone
			}
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil {
				t.Fatal(err)
			}
			_ = syscall.Kill(pid, s) // it may have ended
		}
	}
}

// diskFull leaves no room for etcd, and takes its room back when etcd has noticed.
func (d *drills) diskFull(m *machine) time.Time {
	d.t.Helper()
	const fill = `mkdir /var/lib/drill && i=0
for s in 512M 128M 32M 8M 2M 512K 64K 4K; do
 while fallocate -l $s /var/lib/drill/$i 2>/dev/null; do i=$((i+1)); done
 i=$((i+1))
done
stat -f -c 'free blocks: %f' /var/lib`
	out, err := m.on("sh", "-c", fill)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Logf("%s", strings.TrimSpace(out))
	d.writer.pad(64 << 10)
	d.wait(10*time.Minute, "etcd on "+m.Name+" to notice", func() (bool, string) {
		ctx, cancel := context.WithTimeout(d.t.Context(), 2*time.Second)
		defer cancel()
		s, err := etcd.Ask(ctx, "https://"+m.address+":2379", d.etcd)
		return err != nil || !s.Healthy, fmt.Sprintf("%v %v", err, s.Reason)
	})
	d.writer.pad(0)
	d.writer.more(1000) // ten seconds: nobody comes to free a disk within the goal
	if out, err := m.on("rm", "-r", "/var/lib/drill"); err != nil {
		d.t.Fatalf("%v %s", err, out)
	}
	return time.Now()
}
