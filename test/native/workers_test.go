//go:build root

package native

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// What can happen to a worker, while others write to etcd and to Kubernetes: nobody else
// notices, it comes back by itself, and a fresh machine takes its place.
func TestDrillsOfAWorker(t *testing.T) {
	// A machine that sleeps for minutes has to wake up with a certificate that has ended.
	r := darkRack(t, func(c *serverapi.Config) { c.Lifetimes.Agent = 2 * time.Minute }, "cp1", "w1")
	r.power("cp1", 1)
	r.power("w1", 2)
	r.approve()
	r.ready(30*time.Minute, func(map[string]*api.MachineView) {})

	d := &workerDrills{drills{rack: r, writer: r.write(), etcd: r.nodes["cp1"].certificate(t), veth: 100}}
	d.writer.more(50)
	d.run("no power", func(m *machine) time.Time {
		m.off(t)
		d.notReady()
		return d.on(m.Name)
	})
	d.run("cut off from the network", func(m *machine) time.Time {
		const rules = `table inet drill {
 chain in { type filter hook input priority -500; iifname "eth0" drop; }
 chain out { type filter hook output priority -500; oifname "eth0" drop; }
}`
		if _, err := m.on("nft", rules); err != nil {
			t.Fatal(err)
		}
		d.notReady()
		if _, err := m.on("nft", "delete", "table", "inet", "drill"); err != nil {
			t.Fatal(err)
		}
		return time.Now()
	})
	d.run("stopped until its certificate had ended", func(m *machine) time.Time {
		m.signal(t, syscall.SIGSTOP)
		end := m.agentCertificate(t).NotAfter
		d.notReady()
		d.wait(10*time.Minute, "the end of its certificate", func() (bool, string) { return time.Now().After(end.Add(time.Second)), end.Format(time.TimeOnly) })
		m.signal(t, syscall.SIGCONT)
		woken := time.Now()
		d.wait(10*time.Minute, "its new certificate", func() (bool, string) {
			now := m.agentCertificate(t).NotAfter
			return now.After(time.Now()), now.Format(time.TimeOnly)
		})
		return woken
	})
	d.run("disk full", func(m *machine) time.Time {
		const fill = `mkdir /var/lib/drill && i=0
for s in 512M 128M 32M 8M 2M 512K 64K 4K; do
 while fallocate -l $s /var/lib/drill/$i 2>/dev/null; do i=$((i+1)); done
 i=$((i+1))
done
stat -f -c 'free blocks: %f' /var/lib`
		out, err := m.on("sh", "-c", fill)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s", out)
		// Its agent is started anew where it can write nothing.
		if err := m.kill(); err != nil {
			t.Fatal(err)
		}
		d.writer.more(500)
		if out, err := m.on("rm", "-r", "/var/lib/drill"); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		return time.Now()
	})
	r.stop()
	d.run("no power, and no server at all", func(m *machine) time.Time {
		m.off(t)
		d.notReady()
		return d.on(m.Name)
	})
	r.up()
	r.ready(15*time.Minute, func(map[string]*api.MachineView) {})

	d.run("replaced by a fresh machine", func(m *machine) time.Time {
		m.off(t)
		began := time.Now()
		resp, err := r.op.ReplaceMachine(t.Context(), connect.NewRequest(&api.ReplaceMachineRequest{Machine: m.Name, Reason: "its board died"}))
		if err != nil || !resp.Msg.GetOutcome().GetOk() {
			t.Fatalf("replacing %s: %v %v", m.Name, err, resp)
		}
		r.nodeGone(m.Name, began, 1)
		if o := r.armAgain(m.Name); !o.GetOk() {
			t.Fatal(o)
		}
		r.anew(m.Name, 99)
		return time.Now()
	})
	r.ready(15*time.Minute, func(map[string]*api.MachineView) {})
	r.check()
	d.print()
}

// workerDrills are drills of w1 beside cp1.
type workerDrills struct{ drills }

// run does something to w1, which f takes back; f returns when that was.
func (d *workerDrills) run(what string, f func(*machine) time.Time) {
	d.t.Helper()
	d.t.Logf("== w1: %s", what)
	kubernetes := d.create("cp1", fmt.Sprintf("w%d", len(d.rows)))
	before := d.writer.count()
	d.writer.since(before) // what was before does not count
	healed := f(d.nodes["w1"])
	d.wait(15*time.Minute, "w1", func() (bool, string) {
		ready, said := d.heartbeat()
		return ready && said.After(healed), fmt.Sprintf("Ready %v, said at %s", ready, said.Format(time.TimeOnly))
	})
	kubernetes.stop()
	r := row{what: what, victim: "w1", recovery: time.Since(healed)}
	r.acked, r.etcd = d.writer.since(before)
	n, gap := kubernetes.since(0)
	r.acked, r.api = r.acked+n, gap
	r.lost = d.writer.gone() + lost(kubernetes.soFar(), d.created(d.t, "cp1"))
	d.rows = append(d.rows, r)
	d.t.Logf("%s", r)
	if r.lost > 0 {
		d.t.Errorf("%s: %d acknowledged writes are lost", what, r.lost)
	}
	if r.api > apiGap {
		d.t.Errorf("%s: Kubernetes did not answer for %.1f s, and a worker is no part of it", what, r.api.Seconds())
	}
}

// heartbeat is what w1's kubelet said of it last, and what Kubernetes makes of it.
func (d *workerDrills) heartbeat() (ready bool, said time.Time) {
	out, err := d.nodes["cp1"].on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "get", "node", "w1", "-o",
		`jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}`)
	if err != nil {
		return false, time.Time{} // whoever waits asks again
	}
	var status, at string
	if _, err := fmt.Sscan(out, &status, &at); err != nil {
		return false, time.Time{}
	}
	said, err = time.Parse(time.RFC3339, at)
	if err != nil {
		d.t.Errorf("w1's heartbeat is %q: %v", at, err)
	}
	return status == "True", said
}

// notReady waits until Kubernetes has noticed.
func (d *workerDrills) notReady() {
	d.t.Helper()
	d.wait(10*time.Minute, "Kubernetes to notice", func() (bool, string) {
		ready, said := d.heartbeat()
		return !ready, "Ready, said at " + said.Format(time.TimeOnly)
	})
}
