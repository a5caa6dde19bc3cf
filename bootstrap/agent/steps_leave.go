package agent

import (
	"context"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
)

// etcdRemoval takes the member of a machine that is retired off etcd's list. The
// server tells one voter to, and how it goes comes out of the list itself, so it may
// be killed at any moment.
func (n *node) etcdRemoval(run *api.Run) Step {
	name := run.GetEtcd().GetRemove()
	return Step{
		Name: "etcd-removal",
		Observe: func(ctx context.Context) (done bool, missing string, err error) {
			err = n.withMembers(ctx, run, func(c etcdCluster) error {
				d, err := lookAtLeaving(ctx, c, name)
				done, missing = d.Do == etcd.DoNothing, d.Reason
				return err
			})
			return done, missing, err
		},
		Act: func(ctx context.Context) error {
			return n.withMembers(ctx, run, func(c etcdCluster) error {
				d, err := lookAtLeaving(ctx, c, name)
				if err != nil || d.Do == etcd.DoNothing {
					return err
				}
				n.Log.Info("etcd membership", "do", d.Do, "because", d.Reason)
				call, cancel := context.WithTimeout(ctx, askCluster)
				defer cancel()
				return c.Remove(call, d.ID)
			})
		},
	}
}

// lookAtLeaving asks the members whether one can be removed; waiting is an error.
func lookAtLeaving(ctx context.Context, c etcdCluster, name string) (etcd.Decision, error) {
	ctx, cancel := context.WithTimeout(ctx, askCluster)
	defer cancel()
	members, err := c.Members(ctx)
	if err != nil {
		return etcd.Decision{}, waiting("the etcd members do not answer with a quorum: " + err.Error())
	}
	d := etcd.Leave(name, members)
	if d.Do == etcd.DoWait {
		return d, waiting(d.Reason)
	}
	return d, nil
}
