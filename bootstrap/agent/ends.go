package agent

import (
	"fmt"
	"slices"
	"time"

	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// ending is a certificate that this node has, as far as its end concerns anybody.
type ending struct {
	// what names it, then says what stops when it has ended.
	what, then string
	// due is when it should have been renewed, end when it ends.
	due, end time.Time
}

// kubeadmDue is how long before their end the server has control planes renew what kubeadm
// signed itself, which lives for a year (serverapi's kubeadmRenew).
const kubeadmDue = 240 * 24 * time.Hour

// endWarnings are sentences about certificates that nobody has renewed, the first to end first.
// A node needs its server for that, and tries for as long as there is none: what is a quarter of
// the way from due to end is said, and from three quarters on what will stop too. That is 15 and 5
// days before the end of a node's own certificate, which lives for 30, and 45 and 15 days before
// that of etcd's, which live for 90.
func endWarnings(now time.Time, all []ending) []string {
	slices.SortStableFunc(all, func(a, b ending) int { return a.end.Compare(b.end) })
	var out []string
	for _, e := range all {
		left := e.end.Sub(e.due)
		if now.Before(e.due.Add(left / 4)) {
			continue
		}
		since := fmt.Sprintf("it was to be renewed from %s on, which takes the server", e.due.UTC().Format(time.DateOnly))
		switch at := e.end.UTC().Format(time.DateOnly); {
		case !now.Before(e.end):
			out = append(out, fmt.Sprintf("%s has ended on %s: %s; %s", e.what, at, e.then, since))
		case now.Before(e.due.Add(left / 4 * 3)):
			out = append(out, fmt.Sprintf("%s ends in %s, on %s: %s", e.what, timeLeft(e.end.Sub(now)), at, since))
		default:
			out = append(out, fmt.Sprintf("%s ends in %s, on %s: %s from then on; %s", e.what, timeLeft(e.end.Sub(now)), at, e.then, since))
		}
	}
	return out
}

// timeLeft is in whole days, or whole hours of less than two of them.
func timeLeft(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return fmt.Sprintf("%d minutes", d/time.Minute)
}

// endings are the certificates of this node that can be read. What it has not got is no matter of
// theirs.
func (n *node) endings() []ending {
	var all []ending
	if _, leaf := n.id.current(); leaf != nil {
		all = append(all, ending{"this node's own certificate", "no server and no operator gets through to it", renewAt(leaf), leaf.NotAfter})
	}
	add := func(what, path, then string) {
		b, err := n.Host.ReadFile(path)
		if err != nil {
			return
		}
		if chain, err := parseChain(b); err == nil {
			all = append(all, ending{fmt.Sprintf("%s in %s", what, path), then, renewAt(chain[0]), chain[0].NotAfter})
		}
	}
	for _, b := range etcdBundles() {
		add("etcd's certificate", b.path, "its etcd member is cut off from the others")
	}
	const api = "its API server fails"
	add("the API server's certificate for etcd", apiServerBundle().path, api)
	add("kubelet's certificate", kubeletBundle().path, "API servers do not get through to its kubelet")
	add("kubelet's certificate", kubeadm.KubeletClient, "its kubelet does not get through to Kubernetes")
	// kubeadm's are newer than they say: they begin when their CA does.
	for _, path := range kubeadmPaths() {
		if leaf, err := n.certificateOf(path); err == nil {
			due := renewAt(leaf)
			if d := leaf.NotAfter.Add(-kubeadmDue); d.After(due) {
				due = d
			}
			all = append(all, ending{"the control plane's certificate in " + path, api, due, leaf.NotAfter})
		}
	}
	return all
}
