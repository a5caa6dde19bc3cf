//go:build e2e

package byhand

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/lab"
)

// clockPort is where the drill says by how many seconds a clock is to jump.
const clockPort = "clock"

// clockButane lets the drill set the clock of a machine that nobody can log in to.
const clockButane = `variant: flatcar
version: 1.1.0
systemd:
  units:
    - name: drill-clock.service
      enabled: true
      contents: |
        [Service]
        Restart=always
        RestartSec=10
        ExecStart=/bin/sh -c 'until [ -e /dev/virtio-ports/clock ]; do sleep 10; done; while read -r by; do date --set=@$$(($$(date +%%s) + $$by)) && echo "drill: this clock jumped by $$by s" > /dev/console; done < /dev/virtio-ports/clock'
        [Install]
        WantedBy=multi-user.target
`

// settled is for how long a machine must have been well. Kubernetes takes a node for lost
// once when its lease was of tomorrow: it counts no renewal that is not later
// (node_lifecycle_controller.go), for 50 seconds.
const settled = 75 * time.Second

// corrected is what the agent says on the console when it finds its clock wrong.
var corrected = regexp.MustCompile(`our clock is wrong; taking the server's time`)

// clockJumps sets the clock of a worker and of the control plane that ran kubeadm init
// a day ahead and a day back, while ConfigMaps are written through another API server.
func clockJumps(t *testing.T, ctx context.Context, rack *lab.Lab, k *kubernetes) {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Minute, errors.New("the clock drills' 30 minutes are over"))
	defer cancel()
	victims := map[string]lab.Machine{}
	var via lab.Machine
	for _, m := range rack.Machines {
		if _, known := victims[m.Role]; !known {
			victims[m.Role] = m
		}
		if m.Role != "worker" {
			via = m
		}
	}
	fmt.Println("\n| clock | right after | Ready for good after | writes acknowledged | lost | longest time without one |\n|---|---|---|---|---|---|")
	for _, role := range []string{"worker", "control-plane"} {
		m, exists := victims[role]
		if !exists {
			continue
		}
		for _, by := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
			w := k.at(via).write(ctx, fmt.Sprintf("clock-%s-%s", m.Name, map[bool]string{true: "ahead", false: "back"}[by > 0]))
			back, well := clockJump(t, ctx, rack, k.at(via), m, by)
			acked, gap := w.stop()
			lost, err := k.at(via).lost(ctx, acked)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("| %s by %+.0f h | %.1f s | %.1f s | %d | %d | %.1f s |\n", m.Name, by.Hours(), back.Seconds(), well.Seconds(), len(acked), lost, gap.Seconds())
			if lost > 0 || len(acked) == 0 {
				t.Errorf("%s by %s: %d of %d acknowledged writes are lost", m.Name, by, lost, len(acked))
			}
		}
	}
}

// clockJump returns how long after the jump the machine's clock was right again, and how
// long until its kubelet had reported with that clock and the node was Ready for good.
func clockJump(t *testing.T, ctx context.Context, rack *lab.Lab, k *kubernetes, m lab.Machine, by time.Duration) (back, well time.Duration) {
	t.Helper()
	g := rack.Guests[m.Name]
	from := g.Console.Len()
	if _, err := fmt.Fprintf(g.Port(clockPort), "%d\n", int(by.Seconds())); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Console.Wait(ctx, from, regexp.MustCompile(fmt.Sprintf(`drill: this clock jumped by %d s`, int(by.Seconds())))); err != nil {
		t.Fatal(err)
	}
	jumped := time.Now()
	if _, err := g.Console.Wait(ctx, from, corrected); err != nil {
		t.Fatal(err)
	}
	back = time.Since(jumped)
	right := time.Now()
	said := ""
	var since time.Time
	if err := lab.Until(ctx, func() (bool, string, error) {
		if bad := g.Console.Bad(); len(bad) > 0 {
			return false, "", fmt.Errorf("the console of %s shows: %s", m.Name, bad)
		}
		reason := k.notWell(ctx, rack, m, right)
		if reason != said && reason != "" {
			rack.Log("%s, its clock set by %+.0f h: %s", m.Name, by.Hours(), reason)
			said = reason
		}
		if reason != "" {
			since = time.Time{}
			return false, reason, nil
		}
		if since.IsZero() {
			since = time.Now()
		}
		return time.Since(since) > settled, "looking whether it stays Ready", nil
	}); err != nil {
		t.Fatal(err)
	}
	return back, since.Sub(jumped)
}

// notWell says what a machine lacks; empty when its kubelet reported by the right clock
// after a moment, Kubernetes finds it Ready, its API server answers, and so does the server.
func (k *kubernetes) notWell(ctx context.Context, rack *lab.Lab, m lab.Machine, after time.Time) string {
	if reason := k.unwell(ctx, m, after); reason != "" {
		return reason
	}
	views, err := rack.Views(ctx)
	if err != nil {
		return err.Error()
	}
	if v := views[m.Name]; v.State != "ready" {
		return "it is " + v.State + " " + v.Reason
	}
	return ""
}

// unwell is notWell without what the server says.
func (k *kubernetes) unwell(ctx context.Context, m lab.Machine, after time.Time) string {
	var lease struct {
		Spec struct{ RenewTime time.Time }
	}
	if err := k.call(ctx, http.MethodGet, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"+m.Name, nil, &lease); err != nil {
		return err.Error()
	}
	if at := lease.Spec.RenewTime; at.Before(after) || time.Until(at) > time.Minute {
		return "kubelet's lease is of " + at.UTC().Format(time.DateTime)
	}
	yes, reason, err := k.ready(ctx)
	if err != nil {
		return err.Error()
	}
	if !yes[m.Name] {
		return "Kubernetes does not find it Ready: " + reason
	}
	if m.Role == "worker" {
		return ""
	}
	if _, _, err := k.at(m).ready(ctx); err != nil {
		return "its API server: " + err.Error()
	}
	return ""
}
