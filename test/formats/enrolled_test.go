//go:build e2e

package formats

import (
	"context"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/test/lab"
)

// isItself waits until a machine is enrolled, and looks that it shares nothing with
// the others.
func isItself(t *testing.T, ctx context.Context, rack *lab.Lab, m lab.Machine, seen map[string]string) {
	console := rack.Guests[m.Name].Console
	got, err := console.Wait(ctx, 0, reported)
	if err != nil {
		t.Fatal(err)
	}
	if got[2] != "0" {
		t.Errorf("%s has %s SSH host keys, want none", m.Name, got[2])
	}
	// The image's disk has 7.9 GiB, and this one 12 or more.
	if mib, err := strconv.Atoi(got[3]); err != nil || mib < 4000 {
		t.Errorf("ROOT of %s has %s MiB: it was not grown to the disk's end:\n%s", m.Name, got[3], strings.Join(console.Tail(60), "\n"))
	}
	if err := rack.WaitState(ctx, m.Name, "enrolled"); err != nil {
		t.Fatal(err)
	}
	own := []string{"machine-id " + got[1]}
	for _, e := range audited(t, ctx, rack, m) {
		if key := keyOf.FindString(e.Detail); key != "" && !slices.Contains(own, key) {
			own = append(own, key)
		}
	}
	if len(own) < 2 {
		t.Errorf("the audit log names no key of %s", m.Name)
	}
	for _, own := range own {
		if other := seen[own]; other != "" {
			t.Errorf("%s and %s share the %s", m.Name, other, own)
		}
		seen[own] = m.Name
	}
}

// entry is one of the audit log's.
type entry struct {
	Actor           struct{ Subject, Source string }
	Action, Machine string
	Detail          string
}

// keyOf finds the fingerprint of a machine's key.
var keyOf = regexp.MustCompile(`\bkey [0-9a-f]{64}\b`)

// audited lists what the audit log says of a machine.
func audited(t *testing.T, ctx context.Context, rack *lab.Lab, m lab.Machine) []entry {
	t.Helper()
	out, err := rack.Imagectl(ctx, "audit", "ls", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var all []entry
	for line := range strings.Lines(out) {
		var sealed struct {
			Entry entry `json:"entry"`
		}
		if err := json.Unmarshal([]byte(line), &sealed); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if sealed.Entry.Machine == m.Name {
			all = append(all, sealed.Entry)
		}
	}
	return all
}

// isLetIn looks who let a machine in: its token and no person, or a person and no token.
func isLetIn(t *testing.T, ctx context.Context, rack *lab.Lab, m lab.Machine, c clone) {
	t.Helper()
	persons, tokens := 0, 0
	for _, e := range audited(t, ctx, rack, m) {
		switch {
		case e.Action == "token-used":
			tokens++
			rack.Log("%s: %s, from %s, %s", m.Name, e.Action, e.Actor.Source, e.Detail)
		case e.Action == "key-approved" && strings.Contains(e.Actor.Subject, "/operator/"):
			persons++
		}
	}
	if c.token != (persons == 0) || c.token != (tokens == 1) {
		t.Errorf("%s was let in by %d persons and %d tokens; has it a token: %t", m.Name, persons, tokens, c.token)
	}
}

// hasWhatItsPlatformSaid looks that a machine has the address and the name of its CONTEXT,
// whose mask nobody else knows.
func hasWhatItsPlatformSaid(t *testing.T, ctx context.Context, rack *lab.Lab, m lab.Machine) {
	t.Helper()
	if _, err := rack.Guests[m.Name].Console.Wait(ctx, 0, regexp.MustCompile("clone: hostname="+apartName+" /etc/hostname="+apartName)); err != nil {
		t.Error(err)
	}
	views, err := rack.Views(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cards := views[m.Name].Facts.Interfaces
	if !slices.ContainsFunc(cards, func(c lab.Card) bool { return c.MAC == m.MAC && slices.Equal(c.Addresses, []string{m.Address + "/25"}) }) {
		t.Errorf("%s has the cards %+v, want %s/25", m.Name, cards, m.Address)
	}
	for _, e := range audited(t, ctx, rack, m) {
		if e.Action == "token-used" && e.Actor.Source != m.Address {
			t.Errorf("%s enrolled from %s, want %s", m.Name, e.Actor.Source, m.Address)
		}
	}
}
