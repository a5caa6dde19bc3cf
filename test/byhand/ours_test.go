//go:build e2e

package byhand

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

// ours takes empty machines to a Ready cluster as an operator does. Between writing the
// disks and starting them it waits for the last machine, so that both clusters begin
// with the same thing: all disks written, all machines off.
func ours(t *testing.T, forever context.Context, rack *lab.Lab, drills bool) *Race {
	ctx, cancel := context.WithTimeoutCause(forever, patience, fmt.Errorf("imagectl's cluster was not there after %s", patience))
	defer cancel()
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := rack.StopServe(); err != nil {
			t.Error(err)
		}
	}()
	before := install(t, ctx, rack)

	r := NewRace(before, rack.Log)
	withClock := func(m lab.Machine) vm.Config {
		c := rack.Config(m)
		c.Ports = []string{clockPort}
		return c
	}
	for _, m := range rack.Machines {
		if err := rack.Start(withClock(m)); err != nil {
			t.Fatal(err)
		}
	}
	if err := rack.Watch(ctx, r.look); err != nil {
		t.Fatal(err)
	}
	if _, err := rack.Imagectl(ctx, "kubeconfig", "--out", rack.Kubeconfig()); err != nil {
		t.Fatal(err)
	}
	k, err := open(rack.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if err := k.allReady(ctx, rack, func(string) {}); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%d of %d voters are healthy", *planes, *planes)
	if err := lab.Until(ctx, func() (bool, string, error) {
		members, err := rack.Imagectl(ctx, "etcd", "members")
		if err != nil {
			members = err.Error()
		}
		return strings.Contains(members, want), fmt.Sprintf("waiting for imagectl etcd members to say %q:\n%s", want, members), nil
	}); err != nil {
		t.Fatal(err)
	}
	if drills {
		powerLoss(t, forever, rack, k, "imagectl's", withClock)
		if *clocks {
			clockJumps(t, forever, rack, k)
		}
	}
	return r
}

// look notes what the server says of a machine.
func (r *Race) look(v lab.View) {
	switch v.State {
	case "enrolled", "member", "ready":
		r.Saw(Up, v.Name)
	}
	if v.Done("images") {
		r.Saw(Imported, v.Name)
	}
	for _, step := range []string{"kubeadm-init", "kubeadm-join", "kubeadm-done"} {
		if v.Done(step) {
			r.Saw(Joined, v.Name)
		}
	}
	if v.State == "ready" {
		r.Saw(Ready, v.Name)
	}
}

// install netboots empty machines until their disks are written, and returns how long
// that took from power-on. Each is off afterwards.
func install(t *testing.T, ctx context.Context, rack *lab.Lab) time.Duration {
	arm := []string{"machines", "arm"}
	for _, m := range rack.Machines {
		arm = append(arm, m.Name)
	}
	if _, err := rack.Imagectl(ctx, arm...); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for _, m := range rack.Machines {
		c := rack.Config(m)
		c.NoReboot = true
		if err := rack.Start(c); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range rack.Machines {
		if err := rack.Approve(ctx, m); err != nil {
			t.Fatal(err)
		}
		rack.Log("%s: approved by the code on its console", m.Name)
	}
	for _, m := range rack.Machines {
		select {
		case <-rack.Guests[m.Name].Done():
		case <-ctx.Done():
			t.Fatalf("%s does not come to the end of its installation: %v; its console ends with:\n%s",
				m.Name, context.Cause(ctx), strings.Join(rack.Guests[m.Name].Console.Tail(15), "\n"))
		}
		rack.Log("%s: its disk is written (%s after power-on)", m.Name, time.Since(began).Round(time.Second))
	}
	took := time.Since(began)
	for _, m := range rack.Machines {
		if err := rack.WaitState(ctx, m.Name, "installed"); err != nil {
			t.Fatal(err)
		}
		if bad := rack.Guests[m.Name].Console.Bad(); len(bad) > 0 {
			t.Fatalf("the console of %s shows: %s", m.Name, strings.Join(bad, "; "))
		}
	}
	return took
}
