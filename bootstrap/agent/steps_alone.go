package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
)

// alonePath names the last time that this node's member went on alone.
const alonePath = StateDir + "/etcd.alone"

// aloneFor is how long etcd may take to read what it has. Each attempt stops it first, so one
// that ends too early would never let a large database come up.
const aloneFor = 10 * time.Minute

func (n *node) lastAlone() string {
	b, err := n.Host.ReadFile(alonePath)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// etcdAlone has this node's member go on as the only one, with the data that it has. The
// server adds no other one before it hears that this is done, and it is done when etcd's file
// does not ask for it any more: a node killed anywhere before does it again, and loses nothing.
// Whatever the server says, it gives up nobody while there is a quorum.
func (n *node) etcdAlone(run *api.Run) Step {
	wanted := run.GetEtcd().GetAlone()
	config := func(force bool) error {
		address, err := netip.ParseAddr(run.GetAddress())
		if err != nil {
			return fmt.Errorf("reading this node's address: %w", err)
		}
		m := etcd.Member{Name: run.GetMachine(), Address: address, Token: run.GetEtcd().GetClusterToken(), ForceNew: force, Timing: timingOf(run)}
		m.InitialCluster = m.Alone()
		b, err := m.Config()
		if err != nil {
			return err
		}
		return n.write(file{etcd.ConfigPath, b, 0o600})
	}
	return Step{
		Name: "etcd-alone",
		Observe: func(context.Context) (bool, string, error) {
			return n.lastAlone() == wanted, "its member still counts on others", nil
		},
		Act: func(ctx context.Context) error {
			if s, err := n.etcdStatus(ctx); err == nil && s.Follows && len(s.Members) > 1 {
				return waiting(fmt.Sprintf("etcd has a leader and %d members, and nobody is lost", len(s.Members)))
			}
			if err := n.Host.StopUnit(ctx, etcd.Unit); err != nil {
				return err
			}
			if err := config(true); err != nil {
				return err
			}
			if err := n.Host.StartUnit(ctx, etcd.Unit); err != nil {
				return err
			}
			if err := n.untilAlone(ctx); err != nil {
				return err
			}
			if err := config(false); err != nil {
				return err
			}
			n.Log.Warn("etcd goes on with this member alone; the others are lost", "id", wanted)
			return n.write(file{alonePath, []byte(wanted + "\n"), 0o600})
		},
	}
}

// untilAlone waits until the member leads itself.
func (n *node) untilAlone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, aloneFor)
	defer cancel()
	for {
		s, err := n.etcdStatus(ctx)
		if err == nil && s.Follows && len(s.Members) == 1 {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("it has %d members; %s", len(s.Members), s.Reason)
		}
		if pause(ctx, promoteEvery) != nil {
			return fmt.Errorf("starting etcd as the only member: %w", err)
		}
	}
}
