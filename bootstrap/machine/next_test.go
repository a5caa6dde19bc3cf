package machine

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func update() bool { f := flag.Lookup("update"); return f != nil && f.Value.String() == "true" }

func TestMain(m *testing.M) {
	flag.Bool("update", false, "rewrite testdata")
	flag.Parse()
	os.Exit(m.Run())
}

// The golden file is the table a reviewer reads: every state × every event.
func TestNextIsTheReviewedTable(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for _, s := range States() {
		for _, e := range Events() {
			to, err := Next(s, e)
			var refused *RefusedError
			switch {
			case errors.As(err, &refused):
				if to != s {
					t.Errorf("%s refuses %s but moves to %s", s, e, to)
				}
				fmt.Fprintf(&b, "%-12s %-18s refused: %s\n", s, e, refused.Hint)
			case err != nil:
				t.Errorf("%s, %s: %v is no *RefusedError", s, e, err)
			case to == s:
				fmt.Fprintf(&b, "%-12s %-18s =\n", s, e)
			default:
				fmt.Fprintf(&b, "%-12s %-18s → %s\n", s, e, to)
			}
		}
	}
	const path = "testdata/transitions.txt"
	if update() {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("the table changed; if you mean it, run go test ./bootstrap/machine -update (-want +got):\n%s", diff)
	}
}

func TestNormalLife(t *testing.T) {
	t.Parallel()
	s := Discovered
	for _, step := range []struct {
		e    Event
		want State
	}{
		{Listed, Approved}, {Arm, Armed}, {InstallBegun, Installing}, {InstallDone, Installed},
		{NodeSeen, Enrolled}, {EtcdJoined, Member}, {NodeReady, Ready}, {NodeSeen, Ready}, {Listed, Ready},
	} {
		got, err := Next(s, step.e)
		if err != nil || got != step.want {
			t.Fatalf("%s, %s: got %s, %v; want %s", s, step.e, got, err, step.want)
		}
		s = got
	}
}

func TestNothingIsWipedUnasked(t *testing.T) {
	t.Parallel()
	for _, s := range States() {
		for _, e := range Events() {
			to, _ := Next(s, e)
			if to == Armed && s != Armed && e != Arm && e != ArmReinstall {
				t.Errorf("%s arms a machine that is %s", e, s)
			}
			if to == Installing && s != Armed && s != Installing {
				t.Errorf("%s starts an installation of a machine that is %s", e, s)
			}
		}
	}
	for _, s := range []State{Installed, Enrolled, Member, Ready} {
		_, err := Next(s, Arm)
		want := "a machine that is " + string(s) + " does not take arm: it is installed already; say --reinstall to wipe it"
		if err == nil || err.Error() != want {
			t.Errorf("arming a machine that is %s: got %v, want %s", s, err, want)
		}
	}
}

func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	if _, err := Next("", Arm); err == nil {
		t.Error("the zero state takes an event")
	}
	if _, err := Next(Ready, "explode"); err == nil {
		t.Error("an unknown event is taken")
	}
}

// A state that no event leads to is a promise that nobody keeps.
func TestEveryStateIsReached(t *testing.T) {
	t.Parallel()
	reached := map[State]bool{Discovered: true, Approved: true} // where a life begins
	for _, s := range States() {
		for _, e := range Events() {
			if to, err := Next(s, e); err == nil && to != s {
				reached[to] = true
			}
		}
	}
	for _, s := range States() {
		if !reached[s] {
			t.Errorf("nothing leads to %s", s)
		}
	}
}
