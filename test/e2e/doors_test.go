//go:build e2e

package e2e

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/lab"
)

// login is what a console shows that somebody could type at.
var login = regexp.MustCompile(`login:|\(automatic login\)|Last login|^[a-z]+@[a-z0-9-]+ [~#$]|^# $|sulogin|Press Enter for maintenance`)

// closedDoors tries what the lock-down promises, from the network and at the
// console of every running node. The test calls from the server's address, which is
// no member of the cluster.
func closedDoors(t *testing.T, ctx context.Context, rack *lab.Lab) {
	for _, m := range rack.Active() {
		onlyMutualTLS(t, ctx, m)
		noLoginShown(t, rack, m)
	}
	// Behind that, the control plane still reaches the worker's kubelet. After a boot
	// the pod, and the rules of its node's agent, may take a moment.
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("10 minutes are over"))
	defer cancel()
	err := lab.Until(ctx, func() (bool, string, error) {
		if _, err := rack.Kubectl(ctx, "logs", "probe"); err != nil {
			return false, err.Error(), nil
		}
		return true, "", nil
	})
	if err != nil {
		t.Errorf("asking kubelet through the API server: %v", err)
	}
}

// onlyMutualTLS: nothing but the node API, which ends the handshake with who shows no
// certificate, and the API server, which answers strangers on its health paths.
func onlyMutualTLS(t *testing.T, ctx context.Context, m lab.Machine) {
	t.Helper()
	want := []int{50500}
	if m.Role == "control-plane" {
		want = []int{6443, 50500}
	}
	open, err := lab.OpenTCPPorts(ctx, m.Address)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(open)
	if !slices.Equal(open, want) {
		t.Errorf("%s: open TCP ports are %v, want %v", m.Name, open, want)
	}
	if err := lab.RefusesStrangers(ctx, m.Address+":50500"); err != nil {
		t.Errorf("%s: %v", m.Name, err)
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
