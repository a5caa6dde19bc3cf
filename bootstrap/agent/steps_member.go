package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
)

const (
	// memberPath holds the ID of the etcd member that this node was added as.
	memberPath = StateDir + "/etcd.member"
	// askCluster bounds one look at all members, or one change.
	askCluster = 15 * time.Second
	// promoteEvery is how often etcd is asked whether the learner is in sync.
	promoteEvery = 100 * time.Millisecond
	// promoteFor is how long one attempt asks; the next one looks at everything anew.
	promoteFor = time.Minute
)

// etcdCluster is what a joining node asks of the members that have a vote.
type etcdCluster interface {
	Members(context.Context) ([]etcd.Peer, error)
	AddLearner(ctx context.Context, peerURL string) (uint64, error)
	Remove(ctx context.Context, id uint64) error
	Promote(ctx context.Context, id uint64) error
	Compact(context.Context) error
	Defragment(ctx context.Context, endpoint string) error
	Disarm(context.Context) error
	Revision(context.Context) (revision int64, member uint64, err error)
	MoveLeader(ctx context.Context, to uint64) error
	Snapshot(context.Context) (io.ReadCloser, error)
	Close() error
}

func openEtcd(ctx context.Context, endpoints []string, conf *tls.Config) (etcdCluster, error) {
	return etcd.Open(ctx, endpoints, conf)
}

// hasEtcdData: etcd writes its log before anything else, and finds out by it
// whether it is a member already.
func (n *node) hasEtcdData() (bool, error) {
	logs, err := n.Host.Glob(etcd.DataDir + "/member/wal/*.wal")
	return len(logs) > 0, err
}

// etcdData keeps a member that has lost its data from starting: it would come
// back as the same member with nothing of what it has promised to the others.
func (n *node) etcdData() Step {
	return Step{
		Name: "etcd-data",
		Observe: func(context.Context) (bool, string, error) {
			has, err := n.hasEtcdData()
			if err == nil && !has {
				err = waiting("this node was an etcd member and has no data of it; it joins again when the server says so")
			}
			return has, "", err
		},
	}
}

// self is this node as etcd's list of members would have it.
func (n *node) self(run *api.Run) (etcd.Self, error) {
	s := etcd.Self{Name: run.GetMachine(), PeerURL: "https://" + net.JoinHostPort(run.GetAddress(), etcd.PeerPort)}
	var err error
	if s.HasData, err = n.hasEtcdData(); err != nil {
		return s, err
	}
	text, err := n.Host.ReadFile(memberPath)
	if notExist(err) {
		return s, nil
	} else if err != nil {
		return s, err
	}
	if s.ID, err = strconv.ParseUint(strings.TrimSpace(string(text)), 16, 64); err != nil {
		return s, fmt.Errorf("reading %s: %w", memberPath, err)
	}
	return s, nil
}

// withMembers calls f with the members that have a vote.
func (n *node) withMembers(ctx context.Context, run *api.Run, f func(etcdCluster) error) error {
	conf, err := n.etcdTLS()
	if err != nil {
		return err
	}
	if len(run.GetEtcd().GetEndpoints()) == 0 {
		return waiting("the server knows no address of an etcd member")
	}
	c, err := n.openEtcd(ctx, run.GetEtcd().GetEndpoints(), conf)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// lookAtMembers asks the members what the next step of this node is.
func (n *node) lookAtMembers(ctx context.Context, run *api.Run, c etcdCluster) (etcd.Decision, error) {
	self, err := n.self(run)
	if err != nil {
		return etcd.Decision{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, askCluster)
	defer cancel()
	members, err := c.Members(ctx)
	if err != nil {
		return etcd.Decision{}, waiting("the etcd members do not answer with a quorum: " + err.Error())
	}
	n.initialCluster = etcd.InitialCluster(self, members)
	return etcd.Next(self, members), nil
}

// etcdMember puts this node on etcd's list of members, as a learner. Only the node
// that the server lets join does this, so the list has one learner at most. Each
// change is one call; a node killed between two looks at the list again.
func (n *node) etcdMember(run *api.Run) Step {
	id := func(d etcd.Decision) string { return strconv.FormatUint(d.ID, 16) + "\n" }
	return Step{
		Name: "etcd-member",
		Observe: func(ctx context.Context) (done bool, missing string, err error) {
			err = n.withMembers(ctx, run, func(c etcdCluster) error {
				d, err := n.lookAtMembers(ctx, run, c)
				if err != nil {
					return err
				}
				switch d.Do {
				case etcd.DoWait:
					return waiting(d.Reason)
				case etcd.DoStart, etcd.DoPromote, etcd.DoNothing:
					have, err := n.Host.ReadFile(memberPath)
					done, missing = string(have) == id(d), memberPath+" is missing"
					if notExist(err) {
						err = nil
					}
					return err
				}
				missing = d.Reason
				return nil
			})
			return done, missing, err
		},
		Act: func(ctx context.Context) error {
			return n.withMembers(ctx, run, func(c etcdCluster) error {
				// Wiping, removing a learner, removing a voter, adding: more there is not.
				for range 8 {
					d, err := n.lookAtMembers(ctx, run, c)
					if err != nil {
						return err
					}
					n.Log.Info("etcd membership", "do", d.Do, "because", d.Reason)
					if d.Do == etcd.DoStart || d.Do == etcd.DoPromote || d.Do == etcd.DoNothing {
						return n.write(file{memberPath, []byte(id(d)), 0o600})
					}
					if err := n.changeMembers(ctx, run, c, d); err != nil {
						return err
					}
				}
				return errors.New("changing etcd's members: the list is not as it should be after eight changes")
			})
		},
	}
}

func (n *node) changeMembers(ctx context.Context, run *api.Run, c etcdCluster, d etcd.Decision) error {
	call, cancel := context.WithTimeout(ctx, askCluster)
	defer cancel()
	switch d.Do {
	case etcd.DoWait:
		return waiting(d.Reason)
	case etcd.DoWipe:
		if err := n.Host.StopUnit(ctx, etcd.Unit); err != nil {
			return err
		}
		// The marker last: as long as there is data, it says whose that was.
		for _, p := range []string{etcd.ConfigPath, etcd.DataDir, memberPath} {
			if err := n.Host.Remove(p); err != nil {
				return err
			}
		}
		return nil
	case etcd.DoRemove:
		return c.Remove(call, d.ID)
	case etcd.DoAdd:
		self, err := n.self(run)
		if err != nil {
			return err
		}
		if _, err = c.AddLearner(call, self.PeerURL); errors.Is(err, etcd.ErrUnsettled) {
			return waiting(err.Error())
		}
		return err
	}
	return fmt.Errorf("changing etcd's members: %q is no change", d.Do)
}

// etcdVote turns the learner into a voter as soon as it has what the others have.
func (n *node) etcdVote(run *api.Run) Step {
	return Step{
		Name: "etcd-vote",
		Observe: func(ctx context.Context) (bool, string, error) {
			s, err := n.etcdStatus(ctx)
			if err != nil {
				return false, "", waiting("etcd on this node does not answer yet: " + err.Error())
			}
			return !s.Learner, "the member is a learner", nil
		},
		Act: func(ctx context.Context) error {
			return n.withMembers(ctx, run, func(c etcdCluster) error {
				began := n.Now()
				d, err := n.lookAtMembers(ctx, run, c)
				if err != nil {
					return err
				}
				switch d.Do {
				case etcd.DoNothing:
					return n.untilVoter(ctx)
				case etcd.DoPromote:
				default:
					return waiting(d.Reason)
				}
				call, cancel := context.WithTimeout(ctx, promoteFor)
				defer cancel()
				for {
					err := c.Promote(call, d.ID)
					if err == nil {
						n.Log.Info("the etcd member has a vote", "because", d.Reason, "asked_for", n.Now().Sub(began))
						return n.untilVoter(ctx)
					}
					if !errors.Is(err, etcd.ErrNotInSync) {
						return err
					}
					if pause(call, promoteEvery) != nil {
						return waiting("the learner is not in sync yet")
					}
				}
			})
		},
	}
}

// untilVoter waits until the member itself has learnt of its vote.
func (n *node) untilVoter(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askCluster)
	defer cancel()
	for {
		s, err := n.etcdStatus(ctx)
		if err == nil && !s.Learner {
			return nil
		}
		if pause(ctx, promoteEvery) != nil {
			return waiting("the member has a vote and does not know it yet")
		}
	}
}
