package pki

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// What Kubernetes takes for a node: its user name is this and the node's name.
const (
	NodeUser  = "system:node:"
	NodeGroup = "system:nodes"
)

// KubeletBootstrap lets a node join, for 40 minutes, as itself and as nobody else:
// Kubernetes approves the certificate that kubelet then asks for only because it
// names the node that asks (selfnodeclient). A certificate of kubeadm's group for
// joining nodes (system:bootstrappers:...) would let its holder become any node.
func KubeletBootstrap(m Machine, l Lifetimes) (Profile, error) {
	if err := m.check(); err != nil {
		return Profile{}, err
	}
	l = l.WithDefaults()
	return Profile{
		commonName: NodeUser + m.Name, organization: NodeGroup,
		client: true, lifetime: l.Join, backdate: l.Backdate,
	}.checked()
}

// KubeletServing is what a kubelet shows to the API server, which checks it
// (--kubelet-certificate-authority) against the address that it calls.
func KubeletServing(m Machine, l Lifetimes) (Profile, error) {
	if err := m.check(); err != nil {
		return Profile{}, err
	}
	l = l.WithDefaults()
	return Profile{
		commonName: NodeUser + m.Name, organization: NodeGroup, dnsNames: []string{m.Name}, addresses: m.addresses(),
		server: true, lifetime: l.Leaf, backdate: l.Backdate,
	}.checked()
}

// AdminGroup is the group that kubeadm init binds to cluster-admin; unlike
// system:masters it can be taken away again.
const AdminGroup = "kubeadm:cluster-admins"

// KubernetesAdmin is an operator's kubectl certificate.
func KubernetesAdmin(operator string, l Lifetimes) (Profile, error) {
	if !operatorRE.MatchString(operator) {
		return Profile{}, fmt.Errorf("making a profile: %q is no operator name", operator)
	}
	l = l.WithDefaults()
	return Profile{
		commonName: clip("imagectl:" + operator), organization: AdminGroup,
		client: true, lifetime: l.Kubeconfig, backdate: l.Backdate,
	}.checked()
}

// clip keeps a composed common name within RFC 5280's 64 characters.
func clip(s string) string { return s[:min(len(s), 64)] }

// What kubeadm makes for a control plane where it has the CA's key, and what the server
// signs where it keeps that: kubernetes/cmd/kubeadm/app/phases/certs/certlist.go and
// phases/kubeconfig/kubeconfig.go of 1.36. Names and groups are those that Kubernetes'
// own roles are bound to. All live as other leaves do, but for SuperAdmin.

// KubeletClient is kubelet to API servers.
func KubeletClient(m Machine, l Lifetimes) (Profile, error) {
	return kubernetesClient(m, NodeUser+m.Name, NodeGroup, l.WithDefaults().Leaf, l)
}

// APIServer is what an API server shows. names and addresses are those of all API servers;
// the machine's own are added. It must have an address: other nodes call it by that.
func APIServer(m Machine, names []string, addresses []netip.Addr, l Lifetimes) (Profile, error) {
	if err := m.check(); err != nil {
		return Profile{}, err
	}
	if !m.Address.IsValid() {
		return Profile{}, errors.New("making a profile for " + m.Name + ": an API server has an address, and its is not known")
	}
	l = l.WithDefaults()
	return Profile{
		commonName: "kube-apiserver", dnsNames: append(slices.Clone(names), m.Name), addresses: m.addresses(addresses...),
		server: true, lifetime: l.Leaf, backdate: l.Backdate,
	}.checked()
}

// APIServerKubeletClient is an API server to kubelets.
func APIServerKubeletClient(m Machine, l Lifetimes) (Profile, error) {
	return kubernetesClient(m, "kube-apiserver-kubelet-client", "", l.WithDefaults().Leaf, l)
}

// FrontProxyClient is an API server to those that extend it. It is signed by a CA of its
// own, because whoever has it names the user that asks.
func FrontProxyClient(m Machine, l Lifetimes) (Profile, error) {
	return kubernetesClient(m, "front-proxy-client", "", l.WithDefaults().Leaf, l)
}

// ControllerManager is kube-controller-manager to its API server.
func ControllerManager(m Machine, l Lifetimes) (Profile, error) {
	return kubernetesClient(m, "system:kube-controller-manager", "", l.WithDefaults().Leaf, l)
}

// Scheduler is kube-scheduler to its API server.
func Scheduler(m Machine, l Lifetimes) (Profile, error) {
	return kubernetesClient(m, "system:kube-scheduler", "", l.WithDefaults().Leaf, l)
}

// NodeAdminUser is how Kubernetes knows a control plane's agent and kubeadm, before the
// machine's name: the rights come with AdminGroup, and API servers' audit logs tell nodes apart.
// kubeadm by itself calls all of them kubernetes-admin.
const NodeAdminUser = "kubernetes-admin@"

// NodeAdmin is what kubeadm and the agent use on a control plane.
func NodeAdmin(m Machine, l Lifetimes) (Profile, error) {
	return kubernetesClient(m, NodeAdminUser+m.Name, AdminGroup, l.WithDefaults().Leaf, l)
}

// superAdminLife is longer than kubeadm init takes on the slowest machine that was seen
// (nine minutes), with its own limits (twenty for the control plane).
const superAdminLife = time.Hour

// SuperAdmin lets kubeadm init give AdminGroup its rights. No RBAC can restrain it.
func SuperAdmin(m Machine, l Lifetimes) (Profile, error) {
	return kubernetesClient(m, "kubernetes-super-admin", "system:masters", superAdminLife, l)
}

func kubernetesClient(m Machine, user, group string, lifetime time.Duration, l Lifetimes) (Profile, error) {
	if err := m.check(); err != nil {
		return Profile{}, err
	}
	return Profile{commonName: user, organization: group, client: true, lifetime: lifetime, backdate: l.WithDefaults().Backdate}.checked()
}
