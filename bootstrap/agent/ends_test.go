package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// What a node says of its certificates, in its own words, on the days when that changes.
func TestAnEndingCertificateIsWarnedOf(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	made := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	own := ending{"this node's own certificate", "no server and no operator gets through to it", made.Add(10 * day), made.Add(30 * day)}
	member := ending{"etcd's certificate in /x", "its etcd member is cut off from the others", made.Add(30 * day), made.Add(90 * day)}
	kube := ending{"the control plane's certificate in /y", "its API server fails", made.Add(125 * day), made.Add(365 * day)}
	for _, tc := range []struct {
		days int
		hour time.Duration
		all  []ending
		want []string
	}{
		{0, 0, []ending{own, member, kube}, nil},
		{10, 0, []ending{own, member, kube}, nil},
		{14, 23 * time.Hour, []ending{own}, nil},
		{15, 0, []ending{own, member, kube}, []string{"this node's own certificate ends in 15 days, on 2026-05-31: it was to be renewed from 2026-05-11 on, which takes the server"}},
		{24, 23 * time.Hour, []ending{own}, []string{"this node's own certificate ends in 5 days, on 2026-05-31: it was to be renewed from 2026-05-11 on, which takes the server"}},
		{25, 0, []ending{own}, []string{"this node's own certificate ends in 5 days, on 2026-05-31: no server and no operator gets through to it from then on; it was to be renewed from 2026-05-11 on, which takes the server"}},
		{29, 0, []ending{own}, []string{"this node's own certificate ends in 24 hours, on 2026-05-31: no server and no operator gets through to it from then on; it was to be renewed from 2026-05-11 on, which takes the server"}},
		{30, -time.Hour, []ending{own}, []string{"this node's own certificate ends in 60 minutes, on 2026-05-31: no server and no operator gets through to it from then on; it was to be renewed from 2026-05-11 on, which takes the server"}},
		{30, 0, []ending{own}, []string{"this node's own certificate has ended on 2026-05-31: no server and no operator gets through to it; it was to be renewed from 2026-05-11 on, which takes the server"}},
		{44, 0, []ending{member, kube}, nil},
		{45, 0, []ending{kube, member, own}, []string{
			"this node's own certificate has ended on 2026-05-31: no server and no operator gets through to it; it was to be renewed from 2026-05-11 on, which takes the server",
			"etcd's certificate in /x ends in 45 days, on 2026-07-30: it was to be renewed from 2026-05-31 on, which takes the server"}},
		{75, 0, []ending{member}, []string{"etcd's certificate in /x ends in 15 days, on 2026-07-30: its etcd member is cut off from the others from then on; it was to be renewed from 2026-05-31 on, which takes the server"}},
		{184, 23 * time.Hour, []ending{kube}, nil},
		{185, 0, []ending{kube}, []string{"the control plane's certificate in /y ends in 180 days, on 2027-05-01: it was to be renewed from 2026-09-03 on, which takes the server"}},
	} {
		if diff := cmp.Diff(tc.want, endWarnings(made.Add(time.Duration(tc.days)*day+tc.hour), tc.all)); diff != "" {
			t.Errorf("day %d: -want +got\n%s", tc.days, diff)
		}
	}
}

// A control plane without its server: Health says nothing at first, and names each certificate
// when its time has come: its own, etcd's, and what kubeadm made.
func TestHealthWarnsOfCertificates(t *testing.T) {
	t.Parallel()
	c := newControlPlane(t)
	n := c.newNode()
	if err := n.issueAll(t.Context(), append(etcdBundles(), apiServerBundle(), kubeletBundle())); err != nil {
		t.Fatal(err)
	}
	var kube []string
	for i, path := range c.paths() {
		c.renew(i, year)
		kube = append(kube, "the control plane's certificate in "+path)
	}
	const day = 24 * time.Hour
	began := n.Now()
	warned := func(after time.Duration) (all []string) {
		t.Helper()
		c.mu.Lock()
		c.now += began.Add(after).Sub(time.Now().Add(c.now)).Round(time.Hour)
		c.mu.Unlock()
		for _, w := range n.Health(t.Context()).GetWarnings() {
			what, _, _ := strings.Cut(w, " ends in ")
			what, _, _ = strings.Cut(what, " has ended ")
			all = append(all, what)
		}
		return slices.Sorted(slices.Values(all))
	}
	own := []string{"this node's own certificate"}
	leaves := []string{"etcd's certificate in " + etcd.ServerPath, "etcd's certificate in " + etcd.PeerPath, "etcd's certificate in " + etcd.ClientPath,
		"the API server's certificate for etcd in " + kubeadm.EtcdClient, "kubelet's certificate in " + kubeadm.Serving}
	for _, tc := range []struct {
		days int
		want []string
	}{{0, nil}, {14, nil}, {16, own}, {44, own}, {46, append(leaves, own...)}, {170, append(leaves, own...)}, {180, append(append(kube, leaves...), own...)}} {
		if diff := cmp.Diff(slices.Sorted(slices.Values(tc.want)), warned(time.Duration(tc.days)*day)); diff != "" {
			t.Errorf("after %d days: -want +got\n%s", tc.days, diff)
		}
	}
}
