//go:build root

package native

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// Three control planes from nothing, all switched on at once, their agents killed
// as every step begins and ends; then one loses power, and then its disk. All
// writes that etcd acknowledged are there in the end.
func TestHAThreeControlPlanes(t *testing.T) {
	r := newRack(t, "cp1", "cp2", "cp3")
	host, began := newProbe(t), time.Now()
	r.approve()
	k := &killer{done: map[string]bool{}}
	w := &watch{rack: r}
	r.ready(40*time.Minute, func(v map[string]*api.MachineView) {
		w.look()
		k.look(r, v)
	})
	t.Logf("three control planes Ready %.0f s after power-on, agents killed %d times", time.Since(began).Seconds(), len(k.done))
	r.voters(3)
	r.promotions(host, began)
	r.threeAPIServers()
	r.check()

	writes := r.write()
	lossesBegan, api := time.Now(), r.ask("cp1")
	writes.more(50)
	r.losePower("cp3", writes)
	r.loseDisk("cp2", writes)
	r.replace("cp3", writes)
	api.stop()
	r.retime(host, writes, serverapi.Etcd{Heartbeat: 250 * time.Millisecond, Election: 2500 * time.Millisecond})
	r.shrink(writes, 2)
	writes.stop()
	writes.verify()
	if api.answers < 100 {
		t.Errorf("the API was asked through cp1's balancer, and answered %d times only", api.answers)
	}
	host.meets(t, "longest time without an answer of the API through cp1's balancer", api.worst, apiGap, lossesBegan)
}

// shrink: three control planes become one. One of three is retired at once; of two,
// the one to go has to help. The log has so many entries then that cp3's Node was removed.
func (r *rack) shrink(w *writer, removed int) {
	r.t.Helper()
	retire := func(name, want string) {
		r.t.Helper()
		resp, err := r.op.RetireMachine(r.t.Context(), connect.NewRequest(&api.RetireMachineRequest{Selection: &api.Selection{Names: []string{name}}}))
		if err != nil {
			r.t.Fatal(err)
		}
		if o := resp.Msg.GetOutcomes()[0]; o.GetReasonCode() != want {
			r.t.Fatalf("retiring %s: %s, %s; want %s", name, o.GetReasonCode(), o.GetMessage(), want)
		}
	}
	hears := func(what string) {
		r.t.Helper()
		r.wait(5*time.Minute, "the server to hear of it", func() (bool, string) {
			resp, err := r.op.Status(r.t.Context(), connect.NewRequest(&api.StatusRequest{}))
			if err != nil {
				return false, err.Error()
			}
			return strings.HasPrefix(resp.Msg.GetEtcd().GetSummary(), what), resp.Msg.GetEtcd().GetSummary()
		})
	}
	// It may just have been started, or members may: it refuses what it has not heard is safe.
	hears("3 of 3 voters")
	began := time.Now()
	retire("cp3", "done")
	r.nodeGone("cp3", began, removed)
	r.voters(2)
	w.more(20)
	hears("2 of 2 voters")
	retire("cp2", "leaves-etcd")
	r.voters(1)
	w.more(20)
	retire("cp1", "would-lose-etcd")
	r.t.Logf("from three members to one in %.1f s", time.Since(began).Seconds())
}

// certificate is how etcd's clients on a node show themselves.
func (m *machine) certificate(t *testing.T) *tls.Config {
	t.Helper()
	read := func(path string) []byte {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", m.pid, path))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	bundle := read(etcd.ClientPath)
	pair, err := tls.X509KeyPair(bundle, bundle)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(read(etcd.CAPath))
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{pair}}
}

func (r *rack) endpoints() []string {
	var out []string
	for _, m := range r.nodes {
		out = append(out, "https://"+m.address+":2379")
	}
	slices.Sort(out)
	return out
}

// watch looks at the list of members while nodes join.
type watch struct {
	*rack
	cluster *etcd.Cluster
	said    string
	began   time.Time
}

func (w *watch) look() {
	w.t.Helper()
	if w.cluster == nil {
		// The list is a quorum's, whoever is asked.
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", w.nodes["cp1"].pid, etcd.ClientPath)); err != nil {
			return
		}
		c, err := etcd.Open(context.Background(), w.endpoints(), w.nodes["cp1"].certificate(w.t))
		if err != nil {
			w.t.Fatal(err)
		}
		w.cluster, w.began = c, time.Now()
		w.t.Cleanup(func() { _ = c.Close() })
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	members, err := w.cluster.Members(ctx)
	if err != nil {
		return // nobody answers yet
	}
	learners, now := 0, ""
	for _, m := range members {
		kind := "voter"
		if m.Learner {
			kind = "learner"
			learners++
		}
		now += fmt.Sprintf(" %s=%s", cmpOr(m.Name, "not-started"), kind)
	}
	if learners > 1 {
		w.t.Errorf("two machines join at once:%s", now)
	}
	if now != w.said {
		w.said = now
		w.t.Logf("%5.1fs members:%s", time.Since(w.began).Seconds(), now)
	}
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// voters waits until so many voters are well, and nobody else is on the list.
func (r *rack) voters(want int) {
	r.t.Helper()
	c, err := etcd.Open(context.Background(), r.endpoints(), r.nodes["cp1"].certificate(r.t))
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	r.wait(15*time.Minute, fmt.Sprintf("%d healthy voters", want), func() (bool, string) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		members, err := c.Members(ctx)
		if err != nil {
			return false, err.Error()
		}
		well, text := 0, ""
		for _, m := range members {
			if m.Healthy && !m.Learner {
				well++
			}
			text += fmt.Sprintf(" %s learner=%v healthy=%v", m.Name, m.Learner, m.Healthy)
		}
		return well == want && len(members) == want, text
	})
}

var (
	startedRE = regexp.MustCompile(`time=(\S+) .*msg=acting step=etcd-running`)
	voteRE    = regexp.MustCompile(`time=(\S+) .*msg="the etcd member has a vote".*asked_for=(\S+)`)
)

// promotionGoal is how long a learner that is in sync may wait for its vote. It is asked for from
// before it is in sync on, so what is measured is longer.
const promotionGoal = 5 * time.Second

// promotions judges how long learners waited for their votes. Two joined; an agent that was killed
// between the vote and its word, as kills at every step do once, says nothing of one.
func (r *rack) promotions(host *probe, began time.Time) {
	r.t.Helper()
	measured := 0
	for name, m := range r.nodes {
		text, err := os.ReadFile(m.Dir + "/bootstrapd.service.log")
		if err != nil {
			r.t.Fatal(err)
		}
		vote := voteRE.FindSubmatch(text)
		started := startedRE.FindAllSubmatch(text, -1)
		if vote == nil || started == nil {
			continue // the first member, or an agent killed between the vote and its word
		}
		measured++
		asked, err := time.ParseDuration(string(vote[2]))
		if err != nil {
			r.t.Fatalf("%s's log: %v", name, err)
		}
		host.meets(r.t, name+": from the first time that its vote was asked for to the vote", asked, promotionGoal, began)
		at := func(b []byte) time.Time {
			when, err := time.Parse(time.RFC3339Nano, string(b))
			if err != nil {
				r.t.Error(err)
			}
			return when
		}
		r.t.Logf("%s: a voter %.2f s after etcd's start, %s after it was asked for first", name, at(vote[1]).Sub(at(started[len(started)-1][1])).Seconds(), vote[2])
	}
	if measured == 0 {
		r.t.Error("no log of three control planes says how long a learner waited for its vote")
	}
}

// threeAPIServers: each serves, and Kubernetes and every balancer know all.
func (r *rack) threeAPIServers() {
	r.t.Helper()
	for name, m := range r.nodes {
		// A node is Ready before its API server has read who may do what.
		r.wait(5*time.Minute, name+"'s API server", func() (bool, string) {
			out, err := exec.Command("curl", "-sSk", "--max-time", "30", "-o", "/dev/null", "-w", "%{http_code}", "https://"+m.address+":6443/readyz").CombinedOutput()
			return err == nil && string(out) == "200", string(out)
		})
	}
	r.wait(5*time.Minute, "three API servers behind the service", func() (bool, string) {
		out, err := r.nodes["cp1"].on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "get", "endpointslices", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[0]}")
		return err == nil && len(strings.Fields(out)) == len(r.nodes), out
	})
	out, err := r.nodes["cp1"].on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "get", "nodes", "--selector", "node-role.kubernetes.io/control-plane", "-o", "jsonpath={.items[*].spec.taints[*].key}")
	if err != nil || strings.Count(out, "node-role.kubernetes.io/control-plane") != len(r.nodes) {
		r.t.Errorf("the control planes' taints: %v %s", err, out)
	}
}

// off takes a machine's power.
func (m *machine) off(t *testing.T) {
	t.Helper()
	p, err := os.FindProcess(m.pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil { // and with it everything in its PID namespace
		t.Fatal(err)
	}
	m.waited()
}

// losePower: a control plane is switched off while others write, and comes back by
// itself when it is switched on again.
func (r *rack) losePower(name string, w *writer) {
	r.t.Helper()
	m := r.nodes[name]
	m.off(r.t)
	began := time.Now()
	w.more(200)
	r.t.Logf("without %s: 200 writes acknowledged in %.1f s", name, time.Since(began).Seconds())
	m.Installed = true
	began = time.Now()
	r.power(name, 7)
	r.voters(3)
	r.t.Logf("%s is a healthy voter again %.1f s after power-on", name, time.Since(began).Seconds())
	r.ready(15*time.Minute, func(map[string]*api.MachineView) {})
}

// loseDisk: a control plane is installed anew; its former member is replaced.
func (r *rack) loseDisk(name string, w *writer) {
	r.t.Helper()
	m := r.nodes[name]
	id := func() string {
		for _, e := range r.memberList() {
			if e.Name == name {
				return fmt.Sprintf("%x", e.ID)
			}
		}
		return ""
	}
	var before string
	r.wait(10*time.Minute, name+"'s member", func() (bool, string) {
		before = id()
		return before != "", before
	})
	m.off(r.t)
	arm := r.armAgain
	// The server goes by what agents told it last, and the one that had no power may
	// not have told it yet that etcd is well again.
	r.wait(5*time.Minute, name+" to be armed", func() (bool, string) {
		o := arm(name)
		return o.GetOk(), o.GetMessage()
	})
	if o := arm("cp1"); o.GetReasonCode() != "would-lose-etcd" {
		r.t.Errorf("arming a second voter of three: %v", o)
	} else {
		r.t.Logf("cp1 cannot be armed now: %s", o.GetMessage())
	}
	began := time.Now()
	r.anew(name, 8)
	watch := &watch{rack: r}
	r.wait(20*time.Minute, name+"'s new member", func() (bool, string) {
		watch.look()
		now := id()
		return now != "" && now != before, now
	})
	r.voters(3)
	r.ready(20*time.Minute, func(map[string]*api.MachineView) {})
	w.more(20)
	r.t.Logf("%s is installed anew, a voter and Ready %.0f s after power-on", name, time.Since(began).Seconds())
}

// armAgain lets a machine be wiped.
func (r *rack) armAgain(name string) *api.Outcome {
	r.t.Helper()
	resp, err := r.op.ArmMachine(r.t.Context(), connect.NewRequest(&api.ArmMachineRequest{Selection: &api.Selection{Names: []string{name}}, Reinstall: true}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetOutcomes()[0]
}

// anew switches a machine on that has nothing on its disk, and approves its new key.
func (r *rack) anew(name string, veth int) {
	r.t.Helper()
	m := r.nodes[name]
	m.Installed = false
	if err := os.Truncate(m.Dir+"/console", 0); err != nil {
		r.t.Fatal(err)
	}
	r.power(name, veth)
	r.wait(10*time.Minute, name+"'s new key", func() (bool, string) {
		text, err := os.ReadFile(m.Dir + "/console")
		if err != nil {
			return false, err.Error()
		}
		found := codeRE.FindSubmatch(bytes.ReplaceAll(text, []byte{0}, nil))
		if found == nil {
			return false, "no code yet"
		}
		resp, err := r.op.ApproveMachine(r.t.Context(), connect.NewRequest(&api.ApproveMachineRequest{
			Selection: &api.Selection{Names: []string{name}}, Codes: map[string]string{name: string(found[1])}, ReplaceKey: true}))
		if err != nil {
			return false, err.Error()
		}
		return resp.Msg.GetOutcomes()[0].GetOk(), resp.Msg.GetOutcomes()[0].GetMessage()
	})
}

// replace: a control plane dies, and other hardware gets its name (and its network card, for
// this rack's cluster.yaml does not change).
func (r *rack) replace(name string, w *writer) {
	r.t.Helper()
	r.nodes[name].off(r.t)
	began := time.Now()
	// One command: the old hardware is out, and the new one may be installed.
	// The one that lost its disk may not have told the server yet that it is well.
	r.wait(5*time.Minute, name+" to be replaced", func() (bool, string) {
		resp, err := r.op.ReplaceMachine(r.t.Context(), connect.NewRequest(&api.ReplaceMachineRequest{Machine: name, Reason: "its board died", Arm: true}))
		if err != nil {
			return false, err.Error()
		}
		return resp.Msg.GetOutcome().GetOk(), resp.Msg.GetOutcome().GetMessage()
	})
	replaced := time.Now()
	r.nodeGone(name, replaced, 1)
	r.anew(name, 9)
	r.voters(3)
	r.ready(20*time.Minute, func(map[string]*api.MachineView) {})
	w.more(20)
	r.t.Logf("%s is replaced, a voter and Ready %.0f s after power was lost", name, time.Since(began).Seconds())
}

// nodeGone waits until Kubernetes does not know a node any more, and looks for so many entries
// of the audit log about that.
func (r *rack) nodeGone(name string, since time.Time, entries int) {
	r.t.Helper()
	r.wait(5*time.Minute, name+"'s Node object to be removed", func() (bool, string) {
		out, err := r.nodes["cp1"].on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "get", "nodes", "--output", "name")
		return err == nil && !strings.Contains(out, "node/"+name+"\n"), out
	})
	r.t.Logf("Kubernetes does not know %s any more after %.1f s", name, time.Since(since).Seconds())
	removed := func() (n int) {
		var tip audit.Tip
		for line, err := range r.store.AuditLines(r.t.Context()) {
			if err != nil {
				r.t.Fatal(err)
			}
			var e audit.Entry
			if e, tip, err = audit.Open(tip, line); err != nil {
				r.t.Fatal(err)
			}
			if e.Action == "node-removed" && e.Machine == name && strings.HasPrefix(e.Actor.Subject, "imagectl://native/node/cp") {
				n++
			}
		}
		return n
	}
	r.wait(time.Minute, "the audit log's word of it", func() (bool, string) {
		n := removed()
		return n == entries, fmt.Sprintf("%d entries", n)
	})
}

func (r *rack) memberList() []etcd.Peer {
	c, err := etcd.Open(context.Background(), r.endpoints(), r.nodes["cp1"].certificate(r.t))
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	members, err := c.Members(ctx)
	if err != nil {
		return nil // whoever waits asks again
	}
	return members
}
