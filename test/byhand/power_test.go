//go:build e2e

package byhand

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

// powerLoss takes the power of the control plane that ran kubeadm init, while ConfigMaps are
// written through another one's API server, and gives it back a minute later. It prints for
// how long nothing was acknowledged and how long after power-on the node was well; a
// cluster of fewer than three control planes is left alone.
func powerLoss(t *testing.T, ctx context.Context, rack *lab.Lab, k *kubernetes, whose string, config func(lab.Machine) vm.Config) {
	t.Helper()
	var planes []lab.Machine
	for _, m := range rack.Machines {
		if m.Role != "worker" {
			planes = append(planes, m)
		}
	}
	if len(planes) < 3 {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Minute, errors.New("the power drill's 20 minutes are over"))
	defer cancel()
	victim, via := planes[0], k.at(planes[1])
	w := via.write(ctx, "power")
	time.Sleep(10 * time.Second) // what is written before counts as well
	rack.Guests[victim.Name].Stop()
	rack.Log("%s: %s has no power", whose, victim.Name)
	select {
	case <-time.After(time.Minute):
	case <-ctx.Done():
		t.Fatal(context.Cause(ctx))
	}
	if err := rack.Start(config(victim)); err != nil {
		t.Fatal(err)
	}
	on := time.Now()
	said := ""
	if err := lab.Until(ctx, func() (bool, string, error) {
		reason := via.unwell(ctx, victim, on)
		if reason != said && reason != "" {
			rack.Log("%s: %s has power again: %s", whose, victim.Name, reason)
			said = reason
		}
		return reason == "", reason, nil
	}); err != nil {
		t.Fatal(err)
	}
	well := time.Since(on)
	acked, gap := w.stop()
	lost, err := via.lost(ctx, acked)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\n| cluster | without power | longest time without an acknowledged write | acknowledged | lost | Ready after power-on |\n|---|---|---|---|---|---|\n| %s | %s | %.1f s | %d | %d | %.1f s |\n",
		whose, victim.Name, gap.Seconds(), len(acked), lost, well.Seconds())
	if lost > 0 || len(acked) == 0 {
		t.Errorf("%s without %s: %d of %d acknowledged writes are lost", whose, victim.Name, lost, len(acked))
	}
}
