package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/vip"
)

// vipKeeper keeps the API's address while it is this control plane's. It goes by the last
// directive, so that a node that comes back without its server takes part too.
func (n *node) vipKeeper() *vip.Keeper {
	if n.link == nil {
		return nil
	}
	return &vip.Keeper{
		Log: n.Log, Link: n.link, Task: n.vipTask, Changed: func() { poke(n.changed) },
		Place: &vip.Queue{System: n.Host.Facts().BootID, Open: n.openQueue},
	}
}

// vipTask says which addresses this node may keep now: none before it is a control plane
// whose API server's certificate names them all, for clients would refuse it.
func (n *node) vipTask() vip.Task {
	run := n.directive()
	if !run.GetControlPlane() || run.GetKubernetes().GetAction() != api.KubernetesWanted_ACTION_RUN || len(run.GetKubernetes().GetApiVip()) == 0 {
		return vip.Task{}
	}
	self, err := netip.ParseAddr(run.GetAddress())
	if err != nil || n.certificateLacks(run) != "" {
		return vip.Task{}
	}
	t := vip.Task{Machine: run.GetMachine(), Node: self, Ready: n.balancer.Well(apiServerAddress(run))}
	for _, text := range run.GetKubernetes().GetApiVip() {
		if a, err := netip.ParseAddr(text); err == nil {
			t.Addresses = append(t.Addresses, a)
		}
	}
	return t
}

// certificateLacks is the first of the API's addresses that the API server's certificate
// does not name; empty when there is none.
func (n *node) certificateLacks(run *api.Run) string {
	want := run.GetKubernetes().GetApiVip()
	if len(want) == 0 {
		return ""
	}
	leaf, err := n.certificateOf(apiServerCert)
	if err != nil {
		return want[0]
	}
	if i := slices.IndexFunc(want, func(a string) bool { return leaf.VerifyHostname(a) != nil }); i >= 0 {
		return want[i]
	}
	return ""
}

// openQueue connects with the etcd member on this node, as its API server does.
func (n *node) openQueue(ctx context.Context) (*clientv3.Client, error) {
	conf, err := n.etcdTLS()
	if err != nil {
		return nil, err
	}
	// Not this question's context, which ends with it.
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.LocalEndpoint}, TLS: conf, Context: context.WithoutCancel(ctx), Logger: zap.NewNop()})
	if err != nil {
		return nil, fmt.Errorf("opening etcd at %s: %w", etcd.LocalEndpoint, err)
	}
	return c, nil
}
