package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// etcd's CA is replaced in turns (docs/ca-rotation.md). In each the server says which CAs are to be
// trusted and which of them signs; this node keeps them on its disk, and what counts from then on is
// what is there.

const (
	// etcdTurnPath has the last EtcdWanted.ca_turn whose CAs are on this node's disk.
	etcdTurnPath = StateDir + "/etcd-ca.turn"
)

// etcdTurn is 0 where etcd's CA was never replaced. What cannot be read is 0 too, and is written
// again.
func (n *node) etcdTurn() uint64 {
	b, err := n.Host.ReadFile(etcdTurnPath)
	if err != nil {
		return 0
	}
	turn, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return turn
}

// etcdCAs are those on this node's disk, the one that signs first; nil where it was never
// replaced.
func (n *node) etcdCAs() ([]*x509.Certificate, error) {
	if n.etcdTurn() == 0 {
		return nil, nil
	}
	b, err := n.Host.ReadFile(etcd.CAPath)
	if err != nil {
		return nil, err
	}
	all, err := pki.ParseCertificatesPEM(b)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("%s is empty", etcd.CAPath)
	}
	return all, err
}

// etcdAuthority keeps the CAs of etcd for etcd and the API server, which read them when they start.
// An older turn than the one that is here counts for nothing: that server came out of a backup, and
// hears of it from this node.
func (n *node) etcdAuthority(run *api.Run) Step {
	turn, text := run.GetEtcd().GetCaTurn(), []byte(run.GetEtcd().GetCaPem())
	files := []file{{etcd.CAPath, text, 0o644}, {kubeadm.EtcdCAPath, text, 0o644}}
	return Step{
		Name: "etcd-authority",
		Observe: func(context.Context) (bool, string, error) {
			have := n.etcdTurn()
			if have > turn {
				return true, "", nil
			}
			missing, err := n.wrong(files)
			if missing == "" && have < turn {
				missing = fmt.Sprintf("it has the CAs of turn %d instead of %d", have, turn)
			}
			return missing == "" && err == nil, missing, err
		},
		Act: func(context.Context) error {
			if _, err := pki.ParseCertificatesPEM(text); err != nil {
				return fmt.Errorf("reading the CAs of etcd that the server sent: %w", err)
			}
			// The number last: what is there is complete.
			for _, f := range append(files, file{etcdTurnPath, []byte(strconv.FormatUint(turn, 10) + "\n"), 0o600}) {
				if err := n.write(f); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// ofEtcd says whether a bundle is signed by etcd's CA.
func (b bundle) ofEtcd() bool { return b.ca == etcd.CAPath || b.ca == kubeadm.EtcdCAPath }

// formerEtcdCA says whether a certificate is by another CA of etcd than the one that signs.
func (n *node) formerEtcdCA(b bundle, leaf *x509.Certificate) bool {
	if !b.ofEtcd() {
		return false
	}
	all, err := n.etcdCAs()
	return err == nil && len(all) > 0 && leaf.CheckSignatureFrom(all[0]) != nil
}

// keepsCA says whether the CA that came with a certificate is on the disk already, and belongs to
// etcdAuthority. It waits when that does not sign what came.
func (n *node) keepsCA(b bundle, certificate []byte) (bool, error) {
	if !b.ofEtcd() {
		return false, nil
	}
	all, err := n.etcdCAs()
	if notExist(err) || err == nil && len(all) == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	leaf, err := pki.ParseCertificatePEM(certificate)
	if err != nil {
		return false, err
	}
	if leaf.CheckSignatureFrom(all[0]) != nil {
		return false, waiting("the server signs with another CA of etcd than it has told this node of; it tells of it next")
	}
	return b.ca == etcd.CAPath || n.exists(b.ca), nil
}

func (n *node) exists(path string) bool {
	ok, err := n.Host.Exists(path)
	return err == nil && ok
}

// etcdCADigest names the CAs that this node's API server is to run with, whichever signs; empty
// where etcd's CA was never replaced.
func (n *node) etcdCADigest() string {
	all, err := n.etcdCAs()
	if err != nil || len(all) == 0 {
		return ""
	}
	var names []string
	for _, c := range all {
		names = append(names, pki.Digest(c))
	}
	slices.Sort(names)
	sum := sha256.Sum256([]byte(strings.Join(names, "\n")))
	return hex.EncodeToString(sum[:8])
}

// policyOf is the policy of a directive with the CAs of etcd that are on this node.
func (n *node) policyOf(run *api.Run) (kubeadm.Policy, bool) {
	p, ok := policyOf(run)
	if ok {
		p.EtcdCA = n.etcdCADigest()
	}
	return p, ok
}

// shownByEtcd is what the member of this node shows on both of its ports.
func (n *node) shownByEtcd(ctx context.Context, run *api.Run) ([]etcd.Shown, error) {
	conf, err := n.etcdTLS()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var out []etcd.Shown
	for _, port := range []string{etcd.ClientPort, etcd.PeerPort} {
		s, err := n.askShown(ctx, net.JoinHostPort(run.GetAddress(), port), conf)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// etcdStale says whether the member runs with other CAs than those on the disk.
func etcdStale(shown []etcd.Shown, all []*x509.Certificate) bool {
	var want [][]byte
	for _, c := range all {
		want = append(want, c.RawSubject)
	}
	slices.SortFunc(want, bytes.Compare)
	for _, s := range shown {
		have := slices.SortedFunc(slices.Values(s.Accepts), bytes.Compare)
		if !slices.EqualFunc(have, want, bytes.Equal) {
			return true
		}
	}
	return false
}

// etcdCAObserved adds to a report how far this node is with the CAs of etcd. When it is through,
// nothing is asked any more until they change.
func (n *node) etcdCAObserved(ctx context.Context, run *api.Run, o *api.EtcdObserved) {
	o.CaTurn = n.etcdTurn()
	if o.CaTurn == 0 {
		return
	}
	if n.etcdCADone.Load() == o.CaTurn {
		o.CaDone = o.CaTurn
		return
	}
	all, err := n.etcdCAs()
	if err != nil {
		return
	}
	shown, err := n.shownByEtcd(ctx, run)
	if err != nil {
		n.Log.Debug("etcd does not show its certificates", "err", err)
		return
	}
	if o.CaStale = etcdStale(shown, all); o.CaStale {
		return
	}
	for _, s := range shown {
		if s.Leaf.CheckSignatureFrom(all[0]) != nil {
			return
		}
	}
	bundles := etcdBundles()
	if n.exists(kubeadm.EtcdClient) {
		bundles = append(bundles, apiServerBundle())
	}
	if bad, err := n.badBundle(bundles); err != nil || bad != "" {
		return
	}
	if !n.apiServerHasCAs(run) {
		return
	}
	n.etcdCADone.Store(o.CaTurn)
	o.CaDone = o.CaTurn
}

// apiServerHasCAs says whether the API server runs with the CAs of etcd on the disk, or is not made
// yet.
func (n *node) apiServerHasCAs(run *api.Run) bool {
	made, err := n.Host.Exists(kubeadm.APIServerManifest)
	if err != nil || !made {
		return err == nil
	}
	policy, ok := n.policyOf(run)
	if !ok {
		return false
	}
	if outdated, err := n.apiServerOutdated(policy); err != nil || outdated {
		return false
	}
	begun, err := n.Host.Exists(renewingPath)
	return err == nil && !begun
}
