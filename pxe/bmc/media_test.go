package bmc

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const installer = "http://10.0.0.1:8080/files/00ff/demo-installer.iso"

// rackOf is one machine whose BMC starts it from virtual media.
func rackOf(t *testing.T, f *fake) *Rack {
	t.Helper()
	target := f.start(t)
	password := target.Password
	return NewRack(map[string]Member{"w1": {Target: target, Device: CD, Media: installer, Secret: func() (Password, error) { return password, nil }}}, noPause)
}

// did is what happened to media, boot and power.
func did(f *fake) []string {
	var out []string
	for _, l := range f.happened("") {
		if l == "eject" || strings.HasPrefix(l, "insert ") || strings.HasPrefix(l, "reset ") {
			out = append(out, l)
		}
	}
	return out
}

func TestAMachineIsStartedFromVirtualMediaOnce(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.power = "On"
	r := rackOf(t, f)
	var told []string
	if err := r.Boot(t.Context(), "w1", always, func(s string) { told = append(told, s) }); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"inserting demo-installer.iso", "asking for a boot from cd", "switching it off", "switching it on"}, told); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"insert " + installer, "reset ForceOff", "reset On"}, did(f)); d != "" {
		t.Error(d)
	}
	if !r.Media("w1") || r.Media("nobody") {
		t.Error("who is started from media is not known")
	}
	if err := r.Eject(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	if err := r.Cycle(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"Cd", "own order"}, f.starts()); d != "" {
		t.Error(d)
	}
	if got := did(f); got[3] != "eject" {
		t.Errorf("got %v", got)
	}
}

// What was put in for a start that did not come about is taken out again, and the
// machine keeps its power.
func TestMediaDoNotStayInForNothing(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.power = "On"
	gone := errors.New("disarmed meanwhile")
	err := rackOf(t, f).Boot(t.Context(), "w1", func() error { return gone }, func(string) {})
	if d := cmp.Diff([]string{"insert " + installer, "eject"}, did(f)); !errors.Is(err, gone) || d != "" || f.state() != "On" {
		t.Errorf("got %v, power %s, %s", err, f.state(), d)
	}
}
