//go:build root && clock

package native

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
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
