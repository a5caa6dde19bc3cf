package agent

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"strconv"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Names of the CAs in api.RevocationList.
const (
	caImagectl = "imagectl"
	caEtcd     = "etcd"
)

// use makes a directive the current one, in memory.
func (n *node) use(run *api.Run) {
	revoked, err := n.listOf(run.GetRevocations(), caImagectl)
	if err != nil {
		n.Log.Error("the revocation list for callers of the node API is of no use; the last one stays", "err", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.run = run
	if err == nil && revoked.Newer(n.revoked) {
		n.revoked = revoked
		close(n.revokedNews)
		n.revokedNews = make(chan struct{})
		n.id.revoked.Store(&revoked)
	}
}

// newestLists takes of each CA the list with the highest number that this CA
// signed: nobody, not even a server that was restored from an old copy, brings a
// revoked certificate back.
func (n *node) newestLists(have, sent []*api.RevocationList) []*api.RevocationList {
	var out []*api.RevocationList
	for _, ca := range []string{caImagectl, caEtcd} {
		old, oldErr := n.listOf(have, ca)
		next, err := n.listOf(sent, ca)
		switch {
		case err != nil:
			n.Log.Error("the server sent a revocation list that is of no use; the last one stays", "ca", ca, "err", err)
		case next.Newer(old) || oldErr != nil && next.Number() != "":
			n.Log.Info("new revocation list", "ca", ca, "number", next.Number(), "revoked", next.Len())
			out = append(out, pick(sent, ca))
			continue
		case old.Newer(next):
			n.Log.Warn("the server has an older revocation list than this node; the newer one stays", "ca", ca, "ours", old.Number(), "servers", next.Number())
		}
		if l := pick(have, ca); l != nil {
			out = append(out, l)
		}
	}
	return out
}

// heldLists tells the server which lists this node has, so that one that was restored
// from a backup learns what was revoked since. whole sends their content too.
func heldLists(have []*api.RevocationList, whole bool) []*api.HeldList {
	var out []*api.HeldList
	for _, l := range have {
		read, err := pki.PeekRevocationList(l.GetCrlDer())
		if err != nil {
			continue // newestLists has said so
		}
		number, err := strconv.ParseUint(read.Number(), 10, 64)
		if err != nil {
			continue // not one that the server can have signed
		}
		h := &api.HeldList{Ca: l.GetCa(), Number: number}
		if whole {
			h.CrlDer = l.GetCrlDer()
		}
		out = append(out, h)
	}
	return out
}

// pick is the list of a CA; nil when there is none.
func pick(lists []*api.RevocationList, ca string) *api.RevocationList {
	for _, l := range lists {
		if l.GetCa() == ca {
			return l
		}
	}
	return nil
}

// listOf reads the list of a CA; the zero value when there is none. That of etcd
// comes before its CA's certificate: then only its form is checked here, and its
// signature by the step that writes it.
func (n *node) listOf(lists []*api.RevocationList, ca string) (pki.RevocationList, error) {
	l := pick(lists, ca)
	if l == nil {
		return pki.RevocationList{}, nil
	}
	roots := n.authority.roots()
	var err error
	if ca == caEtcd {
		var pem []byte
		if pem, err = n.Host.ReadFile(etcd.CAPath); notExist(err) {
			return pki.PeekRevocationList(l.GetCrlDer())
		} else if err == nil {
			roots, err = parseChain(pem)
		}
	}
	if err != nil {
		return pki.RevocationList{}, fmt.Errorf("reading the CA of the revocation list for %s: %w", ca, err)
	}
	return pki.ParseRevocationList(l.GetCrlDer(), roots...)
}

// etcdRevocations keeps the list that etcd reads at each handshake. It must be there
// before etcd starts: without it, etcd refuses everybody.
func (n *node) etcdRevocations(run *api.Run) Step {
	want := pick(run.GetRevocations(), caEtcd)
	return Step{
		Name: "etcd-revocations",
		Observe: func(context.Context) (bool, string, error) {
			have, err := n.Host.ReadFile(etcd.CRLPath)
			switch {
			case err != nil && !notExist(err):
				return false, "", err
			case want == nil && err == nil:
				return true, "", nil
			case want == nil:
				return false, "", waiting("the server has sent no revocation list for etcd yet")
			case err != nil:
				return false, etcd.CRLPath + " is missing", nil
			}
			return bytes.Equal(have, want.GetCrlDer()), etcd.CRLPath + " is not the newest list", nil
		},
		Act: func(context.Context) error {
			if _, err := n.listOf(run.GetRevocations(), caEtcd); err != nil {
				return err
			}
			return n.write(file{etcd.CRLPath, want.GetCrlDer(), 0o644})
		},
	}
}

// etcdRevoked says whether a certificate of etcd's CA is on the list that came with
// the directive.
func (n *node) etcdRevoked(leaf *x509.Certificate) bool {
	l, err := n.listOf(n.directive().GetRevocations(), caEtcd)
	return err == nil && l.Has(leaf)
}
