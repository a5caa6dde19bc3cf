package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// bundle is a certificate with its key in one file, and where the CA that signs
// it goes.
type bundle struct {
	profile api.CertificateProfile
	path    string
	ca      string
}

func etcdBundles() []bundle {
	return []bundle{
		{api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_SERVER, etcd.ServerPath, etcd.CAPath},
		{api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER, etcd.PeerPath, etcd.CAPath},
		{api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_AGENT_CLIENT, etcd.ClientPath, etcd.CAPath},
	}
}

func apiServerBundle() bundle {
	return bundle{api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_APISERVER_CLIENT, kubeadm.EtcdClient, kubeadm.EtcdCAPath}
}

// kubeletCA is beside StateDir's other files, because kubeadm refuses to join a worker
// whose own copy is there.
const kubeletCA = StateDir + "/kubernetes-ca.crt"

func kubeletBundle() bundle {
	return bundle{api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_SERVING, kubeadm.Serving, kubeletCA}
}

// kubeletServing keeps what kubelet shows to API servers, which look whether it is for
// the address that they call.
func (n *node) kubeletServing(run *api.Run) Step {
	s := n.certificates("kubelet-certificate", []bundle{kubeletBundle()})
	good := s.Observe
	s.Observe = func(ctx context.Context) (bool, string, error) {
		if done, missing, err := good(ctx); err != nil || !done {
			return done, missing, err
		}
		leaf, err := n.readBundle(kubeadm.Serving)
		if err != nil {
			return false, "", err
		}
		if leaf.VerifyHostname(run.GetAddress()) != nil {
			return false, kubeadm.Serving + " is not for the address " + run.GetAddress(), nil
		}
		return true, "", nil
	}
	return s
}

func (n *node) etcdCertificates() Step {
	return n.certificates("etcd-certificates", etcdBundles())
}

func (n *node) apiServerEtcdClient() Step {
	return n.certificates("etcd-client-certificate", []bundle{apiServerBundle()})
}

// certificates keeps bundles that are good now. Renewing them before they end is
// renewals' business, which stops nothing when the server is away.
func (n *node) certificates(name string, bundles []bundle) Step {
	return Step{
		Name: name,
		Observe: func(context.Context) (bool, string, error) {
			missing, err := n.badBundle(bundles)
			return missing == "" && err == nil, missing, err
		},
		Act: func(ctx context.Context) error { return n.issueAll(ctx, bundles) },
	}
}

// badBundle says what is wrong with the first bundle that is not good.
func (n *node) badBundle(bundles []bundle) (string, error) {
	for _, b := range bundles {
		leaf, err := n.readBundle(b.path)
		switch {
		case notExist(err):
			return b.path + " is missing", nil
		case err != nil:
			return fmt.Sprintf("%s: %v", b.path, err), nil
		case n.etcdRevoked(leaf):
			return b.path + " is revoked", nil
		case n.formerEtcdCA(b, leaf):
			return b.path + " is by a CA of before", nil
		case n.Now().After(leaf.NotAfter):
			return fmt.Sprintf("%s has expired at %s", b.path, leaf.NotAfter), nil
		}
		if ok, err := n.Host.Exists(b.ca); err != nil || !ok {
			return b.ca + " is missing", err
		}
	}
	return "", nil
}

// readBundle returns the leaf of a bundle whose key fits.
func (n *node) readBundle(path string) (*x509.Certificate, error) {
	text, err := n.Host.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, err
	}
	chain, err := parseChain(text)
	if err != nil {
		return nil, err
	}
	if pub, ok := chain[0].PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("its certificate belongs to another key")
	}
	return chain[0], nil
}

// issueAll makes new keys and has them signed in one call.
func (n *node) issueAll(ctx context.Context, bundles []bundle) error {
	profiles := make([]api.CertificateProfile, len(bundles))
	for i, b := range bundles {
		profiles[i] = b.profile
	}
	issued, err := n.issue(ctx, profiles)
	if err != nil {
		return err
	}
	for i, b := range bundles {
		// The CA first: a bundle that is there is complete.
		keeps, err := n.keepsCA(b, issued[i].certificate)
		if err != nil {
			return err
		}
		if !keeps {
			if err := n.write(file{b.ca, issued[i].ca, 0o644}); err != nil {
				return err
			}
		}
		if err := n.write(file{b.path, append(issued[i].certificate, issued[i].key...), 0o600}); err != nil {
			return err
		}
	}
	return nil
}

// issued is what the server signed, in PEM.
type issued struct{ certificate, key, ca []byte }

func (n *node) issue(ctx context.Context, profiles []api.CertificateProfile) ([]issued, error) {
	out := make([]issued, len(profiles))
	req := &api.IssueCertificatesRequest{}
	keys := make([]*ecdsa.PrivateKey, len(profiles))
	for i, p := range profiles {
		var err error
		if keys[i], out[i].key, err = newKey(n.Rand); err != nil {
			return nil, err
		}
		csr, err := request(n.Rand, keys[i])
		if err != nil {
			return nil, err
		}
		req.Items = append(req.Items, &api.IssueCertificatesRequest_Item{Profile: p, CsrDer: csr})
	}
	resp, err := n.servers.current().agent.IssueCertificates(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, fmt.Errorf("asking the server for certificates: %w", err)
	}
	items := resp.Msg.GetItems()
	if len(items) != len(profiles) {
		return nil, fmt.Errorf("asking the server for certificates: it sent %d, want %d", len(items), len(profiles))
	}
	for i, item := range items {
		chain, err := parseChain([]byte(item.GetCertificatePem()))
		if err != nil {
			return nil, fmt.Errorf("reading the server's certificate for %s: %w", profiles[i], err)
		}
		if pub, ok := chain[0].PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(keys[i].Public()) || item.GetProfile() != profiles[i] {
			return nil, fmt.Errorf("the server's certificate for %s belongs to another key", profiles[i])
		}
		if err := notGood(chain[0], n.Now()); err != nil {
			return nil, fmt.Errorf("asking the server for a certificate for %s: %w", profiles[i], err)
		}
		out[i].certificate, out[i].ca = []byte(item.GetCertificatePem()), []byte(item.GetCaPem())
	}
	return out, nil
}

// renewals renews what is a third of its life old. The services read their files
// at each handshake. It is the last step and it is tried every ten minutes only:
// while the server is away, nothing else may wait for it.
func (n *node) renewals(run *api.Run) Step {
	all := []bundle{kubeletBundle()}
	if run.GetKubernetes().GetServerSigns() {
		all = append(all, kubeletClientBundle())
	}
	if wantsEtcd(run) {
		all = append(all, etcdBundles()...)
	}
	if run.GetControlPlane() {
		all = append(all, apiServerBundle())
	}
	due := func() []bundle {
		var out []bundle
		for _, b := range all {
			if leaf, err := n.readBundle(b.path); err == nil && n.Now().After(renewAt(leaf)) {
				out = append(out, b)
			}
		}
		return out
	}
	return Step{
		Name: "renewals",
		Observe: func(context.Context) (bool, string, error) {
			if d := due(); len(d) > 0 && n.Now().After(n.renewalsAfter) {
				return false, d[0].path + " is due for renewal", nil
			}
			return true, "", nil
		},
		Act: func(ctx context.Context) error {
			n.renewalsAfter = n.Now().Add(10 * time.Minute)
			return n.issueAll(ctx, due())
		},
	}
}

// etcdConfiguration writes etcd's file while there is no data yet. With data etcd
// reads the membership from that; then the file of a member names no other, so
// that etcd does not start should its data ever be lost.
//
// Its times stay what they are while there is data, for a member runs with those that were there
// when it started: etcdRestarted writes others.
func (n *node) etcdConfiguration(run *api.Run) Step {
	action := run.GetEtcd().GetAction()
	want := func() ([]byte, error) {
		data, err := n.hasEtcdData()
		if err != nil {
			return nil, err
		}
		timing, err := n.etcdTiming()
		if err != nil || !data {
			timing = timingOf(run)
		}
		return n.etcdConfig(run, timing)
	}
	return Step{
		Name: "etcd-configuration",
		Observe: func(context.Context) (bool, string, error) {
			have, err := n.Host.ReadFile(etcd.ConfigPath)
			if notExist(err) {
				return false, etcd.ConfigPath + " is missing", nil
			} else if err != nil {
				return false, "", err
			}
			if data, err := n.hasEtcdData(); err != nil || data && action != api.EtcdWanted_ACTION_RUN {
				return data, "", err
			}
			b, err := want()
			return string(b) == string(have), etcd.ConfigPath + " differs", err
		},
		Act: func(context.Context) error {
			b, err := want()
			if err != nil {
				return err
			}
			if err := n.Host.MkdirAll(etcd.DataDir, 0o700); err != nil {
				return err
			}
			return n.write(file{etcd.ConfigPath, b, 0o600})
		},
	}
}

// etcdConfig is etcd's file for what the server wants of this member.
func (n *node) etcdConfig(run *api.Run, timing etcd.Timing) ([]byte, error) {
	address, err := netip.ParseAddr(run.GetAddress())
	if err != nil {
		return nil, fmt.Errorf("reading this node's address: %w", err)
	}
	m := etcd.Member{Name: run.GetMachine(), Address: address, InitialCluster: run.GetEtcd().GetInitialCluster(), Token: run.GetEtcd().GetClusterToken(), Timing: timing}
	switch run.GetEtcd().GetAction() {
	case api.EtcdWanted_ACTION_BOOTSTRAP:
		m.Bootstrap = true
	case api.EtcdWanted_ACTION_JOIN:
		m.InitialCluster = n.initialCluster
	default:
		m.InitialCluster = m.Alone()
	}
	return m.Config()
}

func (n *node) etcdRunning() Step { return n.unitRunning("etcd-running", etcd.Unit) }

// etcdHealthy waits for the member to follow a leader, as a learner or a voter.
func (n *node) etcdHealthy() Step {
	return Step{
		Name: "etcd-healthy",
		Observe: func(ctx context.Context) (bool, string, error) {
			s, err := n.etcdStatus(ctx)
			switch {
			case err != nil:
				return false, "", waiting("etcd on this node does not answer yet: " + err.Error())
			case !s.Healthy:
				return false, "", waiting("etcd on this node is not healthy yet: " + s.Reason)
			}
			return true, "", nil
		},
	}
}
