package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
)

// restartFor bounds how long a member that was started anew may take to be well.
const restartFor = 2 * time.Minute

// timingOf is how the server wants members to keep time.
func timingOf(run *api.Run) etcd.Timing {
	e := run.GetEtcd()
	return etcd.Timing{Heartbeat: time.Duration(e.GetHeartbeatMs()) * time.Millisecond, Election: time.Duration(e.GetElectionMs()) * time.Millisecond}
}

// etcdTiming is what this node's member runs with: its file changes its times only while it is
// stopped.
func (n *node) etcdTiming() (etcd.Timing, error) {
	b, err := n.Host.ReadFile(etcd.ConfigPath)
	if err != nil {
		return etcd.Timing{}, err
	}
	return etcd.ReadTiming(b)
}

// timingStale says how the member keeps time, where the server wants it otherwise; empty where it
// does not, and where there is no member.
func (n *node) timingStale(run *api.Run) string {
	if run.GetEtcd().GetAction() != api.EtcdWanted_ACTION_RUN {
		return ""
	}
	have, err := n.etcdTiming()
	if err != nil || have.Equal(timingOf(run)) {
		return ""
	}
	return have.String()
}

// etcdStaleCAs says whether the member runs with other CAs than those on the disk.
func (n *node) etcdStaleCAs(ctx context.Context, run *api.Run) (bool, error) {
	all, err := n.etcdCAs()
	if err != nil || len(all) == 0 {
		return false, err
	}
	shown, err := n.shownByEtcd(ctx, run)
	if err != nil {
		return false, waiting("etcd on this node does not answer yet: " + err.Error())
	}
	return etcdStale(shown, all), nil
}

// etcdRestarted starts this node's member anew with the CAs on the disk and the times that the server
// wants, when the server says that it is its turn. It looks for itself whether the others are well.
// Killed in between, the next run starts what it finds stopped, and this comes again where that has
// the times of before.
func (n *node) etcdRestarted(run *api.Run) Step {
	return Step{
		Name: "etcd-restarted",
		Observe: func(ctx context.Context) (bool, string, error) {
			if have := n.timingStale(run); have != "" {
				return false, fmt.Sprintf("etcd runs with %s instead of %s", have, timingOf(run)), nil
			}
			stale, err := n.etcdStaleCAs(ctx, run)
			return err == nil && !stale, "etcd runs with other CAs than those on the disk", err
		},
		Act: func(ctx context.Context) error {
			if s, err := n.etcdStatus(ctx); err == nil && s.Leaderless && n.timingStale(run) != "" {
				// Nobody misses it, and with other times there may be a leader.
				return n.restartEtcd(ctx, run)
			}
			return n.withMembers(ctx, run, func(c etcdCluster) error {
				members, own, err := n.membersNow(ctx, c)
				if err != nil {
					return err
				}
				for _, m := range members {
					if m.ID != own.ID && !m.Learner && !m.Follows {
						return waiting(fmt.Sprintf("%s is not well, and a member that is started anew answers nobody meanwhile", m.Name))
					}
				}
				if err := n.giveUpLead(ctx, members, own); err != nil {
					return waiting(err.Error())
				}
				if err := n.restartEtcd(ctx, run); err != nil {
					return err
				}
				return n.untilFollows(ctx)
			})
		},
	}
}

// restartEtcd stops the member, writes its file and starts it.
func (n *node) restartEtcd(ctx context.Context, run *api.Run) error {
	conf, err := n.etcdConfig(run, timingOf(run))
	if err != nil {
		return err
	}
	n.Log.Info("starting etcd anew", "with", timingOf(run).String())
	// Asked to end, etcd takes no new calls and waits seven seconds for the API server's watches
	// to end, which they do not (embed.Etcd.Close, etcd 3.6). What it has acknowledged is on the
	// disk.
	if err := n.Host.KillUnit(ctx, etcd.Unit); err != nil {
		return err
	}
	if err := n.Host.StopUnit(ctx, etcd.Unit); err != nil {
		return err
	}
	// While it is stopped: what the file says is what the member runs with.
	if err := n.write(file{etcd.ConfigPath, conf, 0o600}); err != nil {
		return err
	}
	return n.Host.StartUnit(ctx, etcd.Unit)
}

// giveUpLead lets another voter lead, so that nobody waits for an election.
func (n *node) giveUpLead(ctx context.Context, members []etcd.Peer, own etcd.Peer) error {
	to := slices.IndexFunc(members, func(m etcd.Peer) bool { return m.ID != own.ID && !m.Learner })
	if !own.Leader || to < 0 {
		return nil
	}
	conf, err := n.etcdTLS()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askCluster)
	defer cancel()
	c, err := n.openEtcd(ctx, []string{etcd.LocalEndpoint}, conf)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.MoveLeader(ctx, members[to].ID)
}

// untilFollows waits until the member follows a leader again.
func (n *node) untilFollows(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restartFor)
	defer cancel()
	for {
		s, err := n.etcdStatus(ctx)
		if err == nil && s.Follows {
			return nil
		}
		if pause(ctx, promoteEvery) != nil {
			return waiting("etcd was started anew and is not well yet")
		}
	}
}
