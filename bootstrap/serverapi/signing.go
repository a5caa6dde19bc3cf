package serverapi

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Where the keys of Kubernetes' CAs are is settled when kubeadm init is, and never changes
// after that: from a node that had a key nobody can take it back.

// choose advances the coordinator's choices.
func (s *Server) choose(nodes []coordinator.Node, c coordinator.Choices) coordinator.Choices {
	next := coordinator.Choose(nodes, c)
	if c.KubernetesFirst == "" && next.KubernetesFirst != "" {
		next.ServerSigns = !s.cfg.Kubernetes.CAKeyOnNodes
	}
	next = s.chooseEncryption(nodes, c, next)
	next.EtcdCA = coordinator.NextEtcdCA(nodes, next, s.etcdCAHolds(next))
	return next
}

// serverSigns tells whether the keys stay here.
func (s *Server) serverSigns(c coordinator.Choices) bool {
	if c.KubernetesFirst == "" {
		return !s.cfg.Kubernetes.CAKeyOnNodes
	}
	return c.ServerSigns
}

// signedProfile is a row of the table of what the server signs in the place of kubeadm and
// kubelet.
func (s *Server) signedProfile(p api.CertificateProfile) (profile, bool) {
	a := s.authority
	row := func(name string, make func(pki.Machine, pki.Lifetimes) (pki.Profile, error)) profile {
		return profile{name: name, controlPlane: true, signed: true, caName: caKubernetes, ca: a.kubernetes, make: make}
	}
	switch p {
	case api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_CLIENT:
		r := row("kubelet-client", pki.KubeletClient)
		r.controlPlane = false
		return r, true
	case api.CertificateProfile_CERTIFICATE_PROFILE_APISERVER:
		return row("kube-apiserver", s.apiServer), true
	case api.CertificateProfile_CERTIFICATE_PROFILE_APISERVER_KUBELET_CLIENT:
		return row("kube-apiserver-kubelet-client", pki.APIServerKubeletClient), true
	case api.CertificateProfile_CERTIFICATE_PROFILE_FRONT_PROXY_CLIENT:
		r := row("front-proxy-client", pki.FrontProxyClient)
		r.caName, r.ca = caFrontProxy, a.frontProxy
		return r, true
	case api.CertificateProfile_CERTIFICATE_PROFILE_CONTROLLER_MANAGER:
		return row("kube-controller-manager", pki.ControllerManager), true
	case api.CertificateProfile_CERTIFICATE_PROFILE_SCHEDULER:
		return row("kube-scheduler", pki.Scheduler), true
	case api.CertificateProfile_CERTIFICATE_PROFILE_NODE_ADMIN:
		return row("kubernetes-node-admin", pki.NodeAdmin), true
	case api.CertificateProfile_CERTIFICATE_PROFILE_SUPER_ADMIN:
		r := row("kubernetes-super-admin", pki.SuperAdmin)
		r.init = true
		return r, true
	}
	return profile{}, false
}

// maySign refuses, within the transaction that gives them away, certificates that kubeadm
// makes where it has the key, and those for kubeadm init when that is not the machine's.
func (c *change) maySign(s *Server, name string, p profile) error {
	if !p.signed {
		return nil
	}
	var choices coordinator.Choices
	if _, err := c.tx.Value(valueChoices, &choices); err != nil {
		return err
	}
	var err error
	switch {
	case !s.serverSigns(choices):
		err = fmt.Errorf("the control planes of %s have the Kubernetes CA's key: no certificate for %s is made here", s.cfg.Cluster, p.name)
	case p.init && choices.KubernetesFormed:
		err = fmt.Errorf("kubeadm init has been run: %s gets no certificate for %s", name, p.name)
	case p.init && choices.KubernetesFirst != name:
		err = fmt.Errorf("%s does not run kubeadm init: it gets no certificate for %s", name, p.name)
	}
	if err != nil {
		return connect.NewError(connect.CodePermissionDenied, err)
	}
	return nil
}

// apiServer is what an API server shows: what kubeadm would put there
// (kubeadm/app/util/pkiutil, GetAPIServerAltNames).
func (s *Server) apiServer(m pki.Machine, l pki.Lifetimes) (pki.Profile, error) {
	k := s.cfg.Kubernetes
	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + k.DNSDomain}
	// The balancer's; then the service's, which is the first of the network.
	addresses := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	services, _, _ := strings.Cut(k.ServiceCIDR, ",")
	network, err := netip.ParsePrefix(services)
	if err != nil {
		return pki.Profile{}, fmt.Errorf("making a profile for %s's API server: %w", m.Name, err)
	}
	if !m.Address.IsValid() {
		return pki.Profile{}, errors.New("making a profile for " + m.Name + "'s API server: its address is not known")
	}
	addresses = append(addresses, network.Masked().Addr().Next())
	for _, san := range s.apiServerSANs() {
		if a, err := netip.ParseAddr(san); err == nil {
			addresses = append(addresses, a)
		} else {
			names = append(names, san)
		}
	}
	return pki.APIServer(m, names, addresses, l)
}

// apiServerSANs are the names and addresses of cluster.yaml for all API servers.
func (s *Server) apiServerSANs() []string {
	sans := append(slices.Clone(s.cfg.Kubernetes.SANs), s.vips()...)
	if host, _, err := net.SplitHostPort(s.cfg.Kubernetes.Endpoint); err == nil {
		sans = append(sans, host)
	}
	slices.Sort(sans)
	return slices.Compact(sans)
}

// caNotes say where the keys are, and that cluster.yaml asks for something else.
func (s *Server) caNotes(c coordinator.Choices) []string {
	signs := s.serverSigns(c)
	where := "Kubernetes CA: its private key is on the control planes, where kubeadm signs with it; etcd's CA key is on this server only"
	if signs {
		where = "Kubernetes CA: its private key is on this server only, as etcd's is"
	}
	notes := []string{where}
	if signs == s.cfg.Kubernetes.CAKeyOnNodes {
		notes = append(notes, fmt.Sprintf("cluster.yaml says otherwise (kubernetes.caKey): where the key is was settled when %s ran kubeadm init, and stays so", c.KubernetesFirst))
	}
	return notes
}

// renewal is when the certificates of a control plane are renewed.
type renewal struct {
	// due is how long before their end it is, when nothing is stopped by it; notice how
	// long before it status warns, and it is done even if the API server then stops for a
	// moment.
	due, notice time.Duration
	// step is how often the end moves before which they are renewed.
	step time.Duration
}

// renewal is after a third of their life, as for all certificates.
func (s *Server) renewal(c coordinator.Choices) renewal {
	r := renewal{due: kubeadmRenew, notice: kubeadmNotice}
	if s.serverSigns(c) {
		life := s.lifetimes.Leaf
		r.due = life - pki.RenewAfter(life)
		r.notice = r.due / 2
	}
	r.step = min(24*time.Hour, r.due/60)
	return r
}

// before is the end before which certificates are renewed whose turn it is. It moves once
// a step, because each new one is news for the node.
func (r renewal) before(now time.Time) time.Time {
	return now.Add(r.due).Truncate(r.step).Add(r.step)
}
