package serverapi

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// maxItems bounds the certificates of one call.
const maxItems = 16

// Names of profiles, in the log and for people.
const (
	profileNode       = "node"
	profileServer     = "server"
	profileOperator   = "operator"
	profileKubeconfig = "kubernetes-admin"
	profileJoin       = "kubelet-bootstrap"
)

// profile is one row of the table of what a machine may have.
type profile struct {
	name         string
	controlPlane bool // only for control planes
	// signed: only where the server signs in the place of kubeadm; init: only for the
	// machine that runs kubeadm init, until that is done.
	signed, init bool
	caName       string
	ca           *pki.CA
	make         func(pki.Machine, pki.Lifetimes) (pki.Profile, error)
}

func (s *Server) profile(p api.CertificateProfile) (profile, bool) {
	a := s.authority
	client := func(purpose string) func(pki.Machine, pki.Lifetimes) (pki.Profile, error) {
		return func(m pki.Machine, l pki.Lifetimes) (pki.Profile, error) { return pki.EtcdClient(m, purpose, l) }
	}
	switch p {
	case api.CertificateProfile_CERTIFICATE_PROFILE_NODE:
		return profile{name: profileNode, caName: caImagectl, ca: s.signer(), make: pki.Node}, true
	case api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_SERVER:
		return profile{name: "etcd-server", controlPlane: true, caName: caEtcd, ca: s.etcd.Load().ca, make: pki.EtcdServer}, true
	case api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER:
		return profile{name: "etcd-peer", controlPlane: true, caName: caEtcd, ca: s.etcd.Load().ca, make: pki.EtcdPeer}, true
	case api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_APISERVER_CLIENT:
		return profile{name: "etcd-apiserver-client", controlPlane: true, caName: caEtcd, ca: s.etcd.Load().ca, make: client("kube-apiserver")}, true
	case api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_AGENT_CLIENT:
		return profile{name: "etcd-agent-client", controlPlane: true, caName: caEtcd, ca: s.etcd.Load().ca, make: client("imagectl-agent")}, true
	case api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_SERVING:
		return profile{name: "kubelet-serving", caName: caKubernetes, ca: a.kubernetes, make: pki.KubeletServing}, true
	case api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_BOOTSTRAP:
		return profile{name: profileJoin, caName: caKubernetes, ca: a.kubernetes, make: pki.KubeletBootstrap}, true
	}
	return s.signedProfile(p)
}

// IssueCertificates implements apiconnect.AgentServiceHandler. All or none.
func (s agents) IssueCertificates(ctx context.Context, req *connect.Request[api.IssueCertificatesRequest]) (*connect.Response[api.IssueCertificatesResponse], error) {
	from := callerOf(ctx)
	name := from.identity.Name
	items := req.Msg.GetItems()
	if len(items) == 0 || len(items) > maxItems {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d items asked, want 1 to %d", len(items), maxItems))
	}
	out := &api.IssueCertificatesResponse{}
	type given struct {
		profile
		pki.Issued
	}
	var all []given
	var renewed *pki.Issued
	for _, item := range items {
		p, issued, err := s.issue(from, item)
		if err != nil {
			return nil, err
		}
		all = append(all, given{p, issued})
		if item.GetProfile() == api.CertificateProfile_CERTIFICATE_PROFILE_NODE {
			renewed = &issued
		}
		text := string(issued.PEM)
		if p.caName == caImagectl {
			text = s.chain(text)
		}
		out.Items = append(out.Items, &api.IssueCertificatesResponse_Item{
			Profile: item.GetProfile(), CertificatePem: text, CaPem: string(p.ca.CertificatePEM()),
		})
	}
	// Signed, but nothing leaves before it is on record.
	err := s.coordinate(ctx, from.actor(), func(c *change) error {
		if err := c.standing(from); err != nil {
			return err
		}
		for _, g := range all {
			if err := c.maySign(s.Server, name, g.profile); err != nil {
				return err
			}
			if err := c.issued(holderOf(pki.KindNode, name), g.caName, g.name, g.Issued); err != nil {
				return err
			}
		}
		if renewed == nil {
			return nil
		}
		m, err := c.machine(name)
		if err != nil {
			return err
		}
		hold(m.Key, *renewed)
		return c.tx.PutMachine(m)
	})
	if err != nil {
		return nil, s.storing(name, err)
	}
	return connect.NewResponse(out), nil
}

func (s agents) issue(from caller, item *api.IssueCertificatesRequest_Item) (profile, pki.Issued, error) {
	name := from.identity.Name
	p, ok := s.profile(item.GetProfile())
	if !ok {
		return p, pki.Issued{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("there is no certificate profile %d", item.GetProfile()))
	}
	m, ok := s.machineOf(name)
	if !ok {
		return p, pki.Issued{}, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("cluster.yaml no longer lists %s", name))
	}
	if p.controlPlane && !m.ControlPlane {
		return p, pki.Issued{}, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s has role %s, which is no control plane: it gets no certificate for %s", name, m.Role, p.name))
	}
	key, err := pki.ParseRequest(item.GetCsrDer())
	if err != nil {
		return p, pki.Issued{}, connect.NewError(connect.CodeInvalidArgument, err)
	}
	if item.GetProfile() == api.CertificateProfile_CERTIFICATE_PROFILE_NODE && key.Fingerprint() != from.fingerprint {
		return p, pki.Issued{}, connect.NewError(connect.CodePermissionDenied, errors.New("a node certificate is renewed with the key it was approved for; for another key enrol again"))
	}
	address, _ := netip.ParseAddr(s.address(m, from.source)) // the zero value is fine
	made, err := p.make(pki.Machine{Cluster: s.cfg.Cluster, Name: name, Address: address}, s.lifetimes)
	if err != nil {
		return p, pki.Issued{}, connect.NewError(connect.CodeInternal, err)
	}
	issued, err := p.ca.Sign(made, key, s.cfg.Now(), s.cfg.Rand)
	if err != nil {
		return p, pki.Issued{}, connect.NewError(connect.CodeInternal, err)
	}
	return p, issued, nil
}

// FetchKubernetesSecrets implements apiconnect.AgentServiceHandler. etcd's CA key
// is not among them and never leaves this process; those of Kubernetes only where that was
// asked for when the cluster was made.
func (s agents) FetchKubernetesSecrets(ctx context.Context, req *connect.Request[api.FetchKubernetesSecretsRequest]) (*connect.Response[api.FetchKubernetesSecretsResponse], error) {
	from := callerOf(ctx)
	name := from.identity.Name
	if !s.isControlPlane(name) {
		return nil, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s is no control plane", name))
	}
	if strange := s.strangeKeys(); len(strange) > 0 && req.Msg.GetEncryption() {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New(strangeText(strange)))
	}
	var signs bool
	var encryption []*api.EncryptionKey
	err := s.coordinate(ctx, from.actor(), func(c *change) error {
		if err := c.standing(from); err != nil {
			return err
		}
		var choices coordinator.Choices
		if _, err := c.tx.Value(valueChoices, &choices); err != nil {
			return err
		}
		signs = s.serverSigns(choices)
		detail := "with the keys of Kubernetes' CAs"
		if signs {
			detail = "without the keys of Kubernetes' CAs"
		}
		encryption = nil
		if names := choices.Encryption.Keys; len(names) > 0 && req.Msg.GetEncryption() {
			keys, err := readKeys(c.tx)
			if err != nil {
				return err
			}
			if encryption, err = encryptionKeys(names, keys); err != nil {
				return err
			}
			detail += "; keys for Secrets: " + strings.Join(names, ", ")
		}
		c.log(audit.Entry{Action: "kubernetes-secrets-fetched", Machine: name, Detail: detail})
		return nil
	})
	if err != nil {
		return nil, s.storing(name, err)
	}
	out, err := s.kubernetesSecrets(signs)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(&api.FetchKubernetesSecretsResponse{Files: out, EncryptionKeys: encryption}), nil
}

// kubernetesSecrets are the files that a control plane gets.
func (s *Server) kubernetesSecrets(signs bool) ([]*api.File, error) {
	a := s.authority
	saKey, err1 := pki.EncodeKey(a.serviceAccounts)
	saPub, err2 := pki.EncodePublicKey(a.serviceAccounts.Public())
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	public := func(name string, b []byte) *api.File {
		return &api.File{Path: "/etc/kubernetes/pki/" + name, Mode: 0o644, Content: b}
	}
	secret := func(name string, b []byte) *api.File {
		return &api.File{Path: "/etc/kubernetes/pki/" + name, Mode: 0o600, Content: b}
	}
	out := []*api.File{public("ca.crt", a.kubernetes.CertificatePEM()), public("front-proxy-ca.crt", a.frontProxy.CertificatePEM()), public("sa.pub", saPub), secret("sa.key", saKey)}
	if signs {
		return out, nil
	}
	key, err1 := a.kubernetes.KeyPEM()
	frontKey, err2 := a.frontProxy.KeyPEM()
	return append(out, secret("ca.key", key), secret("front-proxy-ca.key", frontKey)), errors.Join(err1, err2)
}
