//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/test/lab"
)

// login is what a console shows that somebody could type at.
var login = regexp.MustCompile(`login:|\(automatic login\)|Last login|^[a-z]+@[a-z0-9-]+ [~#$]|^# $|sulogin|Press Enter for maintenance`)

// closedDoors tries what the lock-down promises, from the network and at the
// console of every running node.
func closedDoors(t *testing.T, ctx context.Context, rack *lab.Lab) {
	for _, m := range rack.Active() {
		// The API server answers strangers on its health paths only; kubelet
		// answers each request of a stranger with 401 after the handshake.
		want := []int{10250, 50500}
		if m.Role == "control-plane" {
			want = []int{2379, 2380, 6443, 10250, 50500}
		}
		open, err := lab.OpenTCPPorts(ctx, m.Address)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(open)
		if !slices.Equal(open, want) {
			t.Errorf("%s: open TCP ports are %v, want %v", m.Name, open, want)
		}
		for _, port := range open {
			if port == 6443 {
				continue
			}
			if err := lab.RefusesStrangers(ctx, fmt.Sprintf("%s:%d", m.Address, port)); err != nil {
				t.Errorf("%s: %v", m.Name, err)
			}
		}
		noLoginShown(t, rack, m)
	}
}

func noLoginShown(t *testing.T, rack *lab.Lab, m lab.Machine) {
	t.Helper()
	console := rack.Guests[m.Name].Console
	for _, line := range console.Tail(console.Len()) {
		if login.MatchString(strings.TrimSpace(line)) {
			t.Errorf("the console of %s shows %q", m.Name, line)
		}
	}
}
