package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
)

// orderPath holds what became of the last order: no order is obeyed twice.
const orderPath = StateDir + "/order.json"

// MayAct implements nodeapi.Acting: it asks etcd itself, whatever the server believes.
func (n *node) MayAct(ctx context.Context, kind api.Order_Kind, force bool) error {
	run := n.directive()
	if force && kind != api.Order_KIND_RESET_KEEP || !wantsEtcd(run) {
		return nil
	}
	if has, err := n.hasEtcdData(); err == nil && !has {
		return nil // it is no member, or has lost what makes it one
	}
	mayForce := kind != api.Order_KIND_RESET_KEEP
	return n.withMembers(ctx, run, func(c etcdCluster) error {
		members, own, err := n.membersNow(ctx, c)
		switch {
		case err != nil && mayForce:
			return fmt.Errorf("%w; etcd may need this node to come back: say --force if it does not matter", err)
		case err != nil:
			return fmt.Errorf("%w; etcd may need what this node has", err)
		}
		ok, why := etcd.MayPause(own.ID, members)
		switch {
		case !ok && mayForce:
			return fmt.Errorf("%s; wait for the others, or say --force", why)
		case !ok:
			return fmt.Errorf("%s; wait for the others", why)
		}
		return nil
	})
}

// Act implements nodeapi.Acting.
func (n *node) Act(ctx context.Context, kind api.Order_Kind) error {
	switch kind {
	case api.Order_KIND_REBOOT:
		return n.Host.Reboot(ctx)
	case api.Order_KIND_SHUTDOWN:
		return n.Host.PowerOff(ctx)
	case api.Order_KIND_RESET_KEEP:
		return n.beginReset(ctx)
	}
	return fmt.Errorf("%s is no order that this agent knows", kind)
}

// EtcdStatus implements nodeapi.Acting.
func (n *node) EtcdStatus(ctx context.Context) (*api.EtcdStatusResponse, error) {
	run := n.directive()
	if !wantsEtcd(run) {
		return nil, errors.New("this node is no member of etcd; ask a control plane")
	}
	out := &api.EtcdStatusResponse{}
	err := n.withMembers(ctx, run, func(c etcdCluster) error {
		ctx, cancel := context.WithTimeout(ctx, askCluster)
		defer cancel()
		members, err := c.Members(ctx)
		for _, m := range members {
			s := &api.EtcdMemberStatus{Id: strconv.FormatUint(m.ID, 16), Name: m.Name, PeerUrl: strings.Join(m.PeerURLs, " "), Learner: m.Learner,
				Answers: m.Answers, Follows: m.Follows, Leader: m.Leader, Size: uint64(m.Storage.Size), Used: uint64(m.Storage.Used), Quota: uint64(m.Storage.Quota)}
			for _, a := range m.Alarms {
				if a.Member == m.ID {
					s.Alarms = append(s.Alarms, a.Kind)
				}
			}
			out.Members = append(out.Members, s)
		}
		return err
	})
	return out, err
}

// EtcdSnapshot implements nodeapi.Acting.
func (n *node) EtcdSnapshot(ctx context.Context) (io.ReadCloser, error) {
	if !wantsEtcd(n.directive()) {
		return nil, errors.New("this node is no member of etcd; ask a control plane")
	}
	conf, err := n.etcdTLS()
	if err != nil {
		return nil, err
	}
	// Of this node's member: every one has all that was acknowledged, or says that it is behind.
	c, err := n.openEtcd(ctx, []string{etcd.LocalEndpoint}, conf)
	if err != nil {
		return nil, err
	}
	in, err := c.Snapshot(ctx)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &snapshot{in, c}, nil
}

// EtcdRevision implements nodeapi.Acting.
func (n *node) EtcdRevision(ctx context.Context) (revision int64, member string, err error) {
	if !wantsEtcd(n.directive()) {
		return 0, "", errors.New("this node is no member of etcd; ask a control plane")
	}
	conf, err := n.etcdTLS()
	if err != nil {
		return 0, "", err
	}
	c, err := n.openEtcd(ctx, []string{etcd.LocalEndpoint}, conf)
	if err != nil {
		return 0, "", err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, askCluster)
	defer cancel()
	revision, id, err := c.Revision(ctx)
	return revision, strconv.FormatUint(id, 16), err
}

// snapshot ends its client too.
type snapshot struct {
	io.ReadCloser
	client etcdCluster
}

func (s *snapshot) Close() error { return errors.Join(s.ReadCloser.Close(), s.client.Close()) }

// loadOrder reads what became of the last order.
func (n *node) loadOrder() error {
	b, err := n.Host.ReadFile(orderPath)
	if notExist(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading the last order: %w", err)
	}
	r := &api.OrderReport{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, r); err != nil {
		n.Log.Error("forgetting the last order, which cannot be read", "file", orderPath, "err", err)
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ordered = r
	return nil
}

// order takes an order from the server, if it is a new one.
func (n *node) order(o *api.Order) {
	if o == nil {
		return
	}
	select {
	case n.orders <- o:
	default: // it comes again with the next answer
	}
}

// keepOrders obeys orders, one after the other.
func (n *node) keepOrders(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-n.orders:
			n.obey(ctx, o)
		}
	}
}

// obey does what a person wants done once, or says why not. What became of it is on the disk
// before it is begun, so it is never done twice; a node that is killed in between reports it as
// done, and a person who looks sees that it is still the same system.
func (n *node) obey(ctx context.Context, o *api.Order) {
	n.mu.Lock()
	last := n.ordered.GetId()
	n.mu.Unlock()
	if last == o.GetId() {
		return
	}
	r := &api.OrderReport{Id: o.GetId()}
	err := n.MayAct(ctx, o.GetKind(), o.GetForce())
	if err == nil && !slices.Contains([]api.Order_Kind{api.Order_KIND_REBOOT, api.Order_KIND_SHUTDOWN, api.Order_KIND_RESET_KEEP}, o.GetKind()) {
		err = fmt.Errorf("%s is no order that this agent knows", o.GetKind())
	}
	if err == nil {
		detail := o.GetReason()
		if o.GetForce() {
			detail = strings.TrimSpace("forced; " + detail)
		}
		err = n.Record(audit.Entry{Action: nodeapi.Word(o.GetKind()), Detail: detail, Actor: audit.Actor{Subject: o.GetBy(), Serial: o.GetSerial(), Source: "by the server"}})
	}
	if r.Obeyed = err == nil; err != nil {
		r.Detail = err.Error()
	}
	if kept := n.keepOrder(r); kept != nil {
		n.Log.Error("an order is not obeyed, for what becomes of it cannot be written down", "err", kept)
		return
	}
	if !r.Obeyed {
		n.Log.Warn("an order is refused", "order", nodeapi.Word(o.GetKind()), "by", o.GetBy(), "because", r.Detail)
		return
	}
	if err := n.Act(ctx, o.GetKind()); err != nil {
		r = &api.OrderReport{Id: o.GetId(), Detail: err.Error()}
		n.Log.Error("obeying an order failed", "order", nodeapi.Word(o.GetKind()), "err", err)
		_ = n.keepOrder(r) // it is reported all the same
	}
}

// keepOrder writes down what became of an order and tells the server.
func (n *node) keepOrder(r *api.OrderReport) error {
	b, err := protojson.Marshal(r)
	if err == nil {
		err = n.Host.WriteFile(orderPath, b, 0o600)
	}
	n.mu.Lock()
	n.ordered = r
	n.mu.Unlock()
	poke(n.changed)
	return err
}
