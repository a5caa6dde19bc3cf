// Package kubeadm writes what the real kubeadm binary reads: its v1beta4
// configuration, the kubeconfig for file discovery, and the few objects that
// kubeadm would make only together with a bootstrap token, which we never use.
// "kubeadm config validate" judges the files (see the test with the tag judge).
//
// etcd is external to kubeadm: every control plane talks to the member on its
// own node. The control plane's endpoint is the balancer on each node, so that
// the cluster needs neither a load balancer nor a virtual address.
package kubeadm

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Where things lie on a node.
const (
	// Endpoint is the balancer's, the same on every node.
	Endpoint = "127.0.0.1:7443"
	// BindPort is where API servers listen on the nodes' addresses.
	BindPort   = 6443
	PKIDir     = "/etc/kubernetes/pki"
	CAPath     = PKIDir + "/ca.crt"
	EtcdCAPath = PKIDir + "/etcd-ca.crt"
	EtcdClient = PKIDir + "/apiserver-etcd-client.pem"
	AuthPath   = PKIDir + "/authentication.yaml"
	// Serving is what kubelet shows to API servers, with its key, as kubelet reads it
	// again whenever it changes.
	Serving = "/var/lib/kubelet/pki/imagectl-serving.pem"
	// KubeletClient is what kubelet shows them as their client, with its key, where the CA is
	// external; kubelet reads it again every five minutes (client-go).
	KubeletClient = "/var/lib/kubelet/pki/imagectl-client.pem"
	AdminConf     = "/etc/kubernetes/admin.conf"
	KubeletConf   = "/etc/kubernetes/kubelet.conf"
	// SuperAdmin is in system:masters, which no RBAC can restrain. Nothing needs it
	// after init: AdminConf is enough.
	SuperAdmin = "/etc/kubernetes/super-admin.conf"
	// RoleLabel is what kubeadm marks control planes with.
	RoleLabel = "node-role.kubernetes.io/control-plane"
	// ExcludeLabel is its other mark.
	ExcludeLabel = "node.kubernetes.io/exclude-from-external-load-balancers"
	// Manifests is where kubelet finds its static pods.
	Manifests = "/etc/kubernetes/manifests"
	// Discovery is the kubeconfig for file discovery; it is removed after joining.
	Discovery = "/run/imagectl/discovery.conf"
	// Unit is kubelet's, started by kubeadm and by systemd at boot.
	Unit      = "kubelet.service"
	criSocket = "unix:///run/containerd/containerd.sock"
	// volumePlugins replaces /usr/libexec/kubernetes: /usr is read-only here.
	volumePlugins = "/var/lib/kubelet/volumeplugins"
	// podPids is how many processes and threads one pod may have, so that none takes all of
	// the node's; without it there is no limit. It is OpenShift's default.
	podPids = 4096
	version = "kubeadm.k8s.io/v1beta4"
)

// Cluster is what all nodes share.
type Cluster struct {
	Name string
	// Version such as v1.36.3.
	Version              string
	PodCIDR, ServiceCIDR string
	DNSDomain            string
	// SANs are extra names and addresses of the API servers.
	SANs []string
	// ExternalCA: the CAs' keys are not on the nodes, and whoever has them gives kubelet
	// its client certificates, as KubeletClient.
	ExternalCA bool
	// CertificatesDir is where a phase makes certificates; empty for PKIDir.
	CertificatesDir string
}

// Node is one node.
type Node struct {
	Name    string
	Address netip.Addr
	Labels  map[string]string
	// Taints are key=value:effect or key:effect. Without any, a control plane gets
	// kubeadm's own taint.
	Taints       []string
	ControlPlane bool
	// ExternalCA is the cluster's; kubelet.conf is there before kubeadm joins.
	ExternalCA bool
	// Patched: PatchDir of this control plane has Policy.Patches.
	Patched bool
}

type arg struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type taint struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Effect string `json:"effect"`
}

type registration struct {
	Name             string  `json:"name"`
	CRISocket        string  `json:"criSocket"`
	Taints           []taint `json:"taints,omitempty"`
	KubeletExtraArgs []arg   `json:"kubeletExtraArgs"`
	ImagePullPolicy  string  `json:"imagePullPolicy"`
	// IgnorePreflightErrors are names of checks (kubeadm/app/preflight/checks.go).
	IgnorePreflightErrors []string `json:"ignorePreflightErrors,omitempty"`
}

type apiEndpoint struct {
	AdvertiseAddress string `json:"advertiseAddress"`
	BindPort         int    `json:"bindPort"`
}

// timeouts are upper limits; kubeadm goes on as soon as it can. Its own are made
// for images that are pulled while nothing else runs: three small virtual
// machines on two cores were seen to need nine minutes.
type timeouts struct {
	ControlPlane string `json:"controlPlaneComponentHealthCheck"`
	Kubelet      string `json:"kubeletHealthCheck"`
	APICall      string `json:"kubernetesAPICall"`
	Discovery    string `json:"discovery"`
	TLSBootstrap string `json:"tlsBootstrap"`
}

func patience() timeouts {
	return timeouts{ControlPlane: "20m0s", Kubelet: "10m0s", APICall: "10m0s", Discovery: "10m0s", TLSBootstrap: "20m0s"}
}

// DiscoveryUse is how long kubeadm may go on using the kubeconfig at Discovery: to find the cluster,
// and then for kubelet, which asks with it for a certificate of its own and waits for that. A
// certificate in there that ends before keeps a slow node out, and has it begin from the start.
const DiscoveryUse = 30 * time.Minute

// election gives whoever leads 30 seconds to renew its lease, of which each attempt may
// take 15. Kubernetes' own 10 and 5 are too short for an API server whose etcd has a slow
// disk or whose node is busy: the leader ends itself, and kubelet starts it anew ever
// later, up to five minutes; until then no kubelet gets a certificate and nothing is
// scheduled. The price: when a leader loses its power, another one leads after 45 seconds
// instead of 15.
func election() []arg {
	return []arg{{"leader-elect-lease-duration", "45s"}, {"leader-elect-renew-deadline", "30s"}, {"leader-elect-retry-period", "5s"}}
}

type initConfiguration struct {
	APIVersion       string       `json:"apiVersion"`
	Kind             string       `json:"kind"`
	NodeRegistration registration `json:"nodeRegistration"`
	LocalAPIEndpoint apiEndpoint  `json:"localAPIEndpoint"`
	SkipPhases       []string     `json:"skipPhases"`
	Patches          *patches     `json:"patches,omitempty"`
	Timeouts         timeouts     `json:"timeouts"`
}

type patches struct {
	Directory string `json:"directory"`
}

func patchesOf(patched bool) *patches {
	if !patched {
		return nil
	}
	return &patches{PatchDir}
}

type component struct {
	ExtraArgs []arg    `json:"extraArgs"`
	CertSANs  []string `json:"certSANs,omitempty"`
}

type externalEtcd struct {
	Endpoints []string `json:"endpoints"`
	CAFile    string   `json:"caFile"`
	CertFile  string   `json:"certFile"`
	KeyFile   string   `json:"keyFile"`
}

type clusterConfiguration struct {
	APIVersion           string `json:"apiVersion"`
	Kind                 string `json:"kind"`
	ClusterName          string `json:"clusterName"`
	KubernetesVersion    string `json:"kubernetesVersion"`
	ControlPlaneEndpoint string `json:"controlPlaneEndpoint"`
	CertificatesDir      string `json:"certificatesDir,omitempty"`
	EncryptionAlgorithm  string `json:"encryptionAlgorithm"`
	Networking           struct {
		PodSubnet     string `json:"podSubnet"`
		ServiceSubnet string `json:"serviceSubnet"`
		DNSDomain     string `json:"dnsDomain"`
	} `json:"networking"`
	Etcd struct {
		External externalEtcd `json:"external"`
	} `json:"etcd"`
	APIServer         component `json:"apiServer"`
	ControllerManager component `json:"controllerManager"`
	Scheduler         component `json:"scheduler"`
}

type kubeletConfiguration struct {
	APIVersion     string `json:"apiVersion"`
	Kind           string `json:"kind"`
	Authentication struct {
		Anonymous struct {
			Enabled bool `json:"enabled"`
		} `json:"anonymous"`
		Webhook struct {
			Enabled bool `json:"enabled"`
		} `json:"webhook"`
	} `json:"authentication"`
	Authorization struct {
		Mode string `json:"mode"`
	} `json:"authorization"`
	CgroupDriver       string `json:"cgroupDriver"`
	HealthzBindAddress string `json:"healthzBindAddress"`
	PodPidsLimit       int    `json:"podPidsLimit"`
	ReadOnlyPort       int    `json:"readOnlyPort"`
	RotateCertificates bool   `json:"rotateCertificates"`
	SeccompDefault     bool   `json:"seccompDefault"`
	TLSCertFile        string `json:"tlsCertFile"`
	TLSMinVersion      string `json:"tlsMinVersion"`
	TLSPrivateKeyFile  string `json:"tlsPrivateKeyFile"`
	VolumePluginDir    string `json:"volumePluginDir"`
}

type proxyConfiguration struct {
	APIVersion         string `json:"apiVersion"`
	Kind               string `json:"kind"`
	ClusterCIDR        string `json:"clusterCIDR"`
	MetricsBindAddress string `json:"metricsBindAddress"`
	HealthzBindAddress string `json:"healthzBindAddress"`
}

// Init is the configuration of "kubeadm init" on the first control plane.
func Init(c Cluster, n Node) ([]byte, error) {
	reg, err := n.registration()
	if err != nil {
		return nil, fmt.Errorf("configuring kubeadm init: %w", err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("configuring kubeadm init: %w", err)
	}
	i := initConfiguration{
		APIVersion: version, Kind: "InitConfiguration", NodeRegistration: reg,
		LocalAPIEndpoint: n.apiEndpoint(),
		// init makes a bootstrap token even when told of none; Bindings replaces
		// the rest of that phase. The join command that the last phase prints would
		// be wrong.
		SkipPhases: []string{"bootstrap-token", "show-join-command"},
		Patches:    patchesOf(n.Patched),
		Timeouts:   patience(),
	}
	cc := clusterConfiguration{
		APIVersion: version, Kind: "ClusterConfiguration", ClusterName: c.Name, KubernetesVersion: c.Version,
		ControlPlaneEndpoint: Endpoint, CertificatesDir: c.CertificatesDir, EncryptionAlgorithm: "ECDSA-P256",
		APIServer: component{
			// An API server is ready while its etcd answers, which it waits for for two seconds if
			// nobody says otherwise: longer than a balancer waits for its word.
			ExtraArgs: []arg{{"authentication-config", AuthPath}, {"etcd-readycheck-timeout", "1s"}, {"kubelet-certificate-authority", CAPath}, {"profiling", "false"}, {"tls-min-version", "VersionTLS12"}},
			CertSANs:  slices.Compact(slices.Sorted(slices.Values(c.SANs))),
		},
		ControllerManager: component{ExtraArgs: append([]arg{{"bind-address", "127.0.0.1"}, {"flex-volume-plugin-dir", volumePlugins}, {"profiling", "false"}, {"terminated-pod-gc-threshold", "1000"}}, election()...)},
		Scheduler:         component{ExtraArgs: append([]arg{{"bind-address", "127.0.0.1"}, {"profiling", "false"}}, election()...)},
	}
	cc.Networking.PodSubnet, cc.Networking.ServiceSubnet, cc.Networking.DNSDomain = c.PodCIDR, c.ServiceCIDR, c.DNSDomain
	cc.Etcd.External = externalEtcd{Endpoints: []string{"https://127.0.0.1:2379"}, CAFile: EtcdCAPath, CertFile: EtcdClient, KeyFile: EtcdClient}
	k := kubeletConfiguration{
		APIVersion: "kubelet.config.k8s.io/v1beta1", Kind: "KubeletConfiguration",
		CgroupDriver: "systemd", HealthzBindAddress: "127.0.0.1", PodPidsLimit: podPids, RotateCertificates: !c.ExternalCA, SeccompDefault: true,
		TLSCertFile: Serving, TLSPrivateKeyFile: Serving, TLSMinVersion: "VersionTLS13", VolumePluginDir: volumePlugins,
	}
	k.Authentication.Webhook.Enabled, k.Authorization.Mode = true, "Webhook"
	p := proxyConfiguration{APIVersion: "kubeproxy.config.k8s.io/v1alpha1", Kind: "KubeProxyConfiguration", ClusterCIDR: c.PodCIDR, MetricsBindAddress: "127.0.0.1:10249", HealthzBindAddress: "127.0.0.1:10256"}
	return documents(i, cc, k, p)
}

func (c Cluster) check() error {
	switch {
	case c.Name == "":
		return errors.New("the cluster has no name")
	case !strings.HasPrefix(c.Version, "v"):
		return fmt.Errorf("the Kubernetes version %q does not look like v1.36.3", c.Version)
	case c.DNSDomain == "":
		return errors.New("the DNS domain is empty")
	}
	for _, cidr := range []string{c.PodCIDR, c.ServiceCIDR} {
		for one := range strings.SplitSeq(cidr, ",") {
			if _, err := netip.ParsePrefix(one); err != nil {
				return err
			}
		}
	}
	return nil
}

type joinConfiguration struct {
	APIVersion       string       `json:"apiVersion"`
	Kind             string       `json:"kind"`
	NodeRegistration registration `json:"nodeRegistration"`
	Discovery        struct {
		File struct {
			KubeConfigPath string `json:"kubeConfigPath"`
		} `json:"file"`
	} `json:"discovery"`
	ControlPlane *joinControlPlane `json:"controlPlane,omitempty"`
	Patches      *patches          `json:"patches,omitempty"`
	Timeouts     timeouts          `json:"timeouts"`
}

type joinControlPlane struct {
	LocalAPIEndpoint apiEndpoint `json:"localAPIEndpoint"`
}

// Join is the configuration of "kubeadm join"; what the cluster is, kubeadm
// reads from the cluster.
func Join(n Node) ([]byte, error) {
	reg, err := n.registration()
	if err != nil {
		return nil, fmt.Errorf("configuring kubeadm join: %w", err)
	}
	if n.ExternalCA {
		// Joining otherwise is how kubelet gets this file; with a good one it asks nobody.
		reg.IgnorePreflightErrors = []string{"FileAvailable--etc-kubernetes-kubelet.conf"}
	}
	j := joinConfiguration{APIVersion: version, Kind: "JoinConfiguration", NodeRegistration: reg, Patches: patchesOf(n.Patched), Timeouts: patience()}
	j.Discovery.File.KubeConfigPath = Discovery
	if n.ControlPlane {
		j.ControlPlane = &joinControlPlane{n.apiEndpoint()}
	}
	return documents(j)
}

func (n Node) apiEndpoint() apiEndpoint {
	return apiEndpoint{AdvertiseAddress: n.Address.String(), BindPort: BindPort}
}

func (n Node) registration() (registration, error) {
	if n.Name == "" || !n.Address.IsValid() || n.Address.IsUnspecified() {
		return registration{}, fmt.Errorf("node %q has no usable address: %s", n.Name, n.Address)
	}
	r := registration{
		Name: n.Name, CRISocket: criSocket,
		KubeletExtraArgs: []arg{{"node-ip", n.Address.String()}},
		// The images came with the system; what a registry says is never needed.
		ImagePullPolicy: "IfNotPresent",
	}
	var labels []string
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		if err := labelAllowed(k); err != nil {
			return registration{}, err
		}
		labels = append(labels, k+"="+n.Labels[k])
	}
	if len(labels) > 0 {
		r.KubeletExtraArgs = append(r.KubeletExtraArgs, arg{"node-labels", strings.Join(labels, ",")})
	}
	for _, s := range n.Taints {
		t, err := parseTaint(s)
		if err != nil {
			return registration{}, err
		}
		r.Taints = append(r.Taints, t)
	}
	return r, nil
}

// labelAllowed: kubelet does not start with labels of Kubernetes' own domains
// but for a few (kubernetes/pkg/kubelet/apis/well_known_labels.go).
func labelAllowed(key string) error {
	domain, _, ok := strings.Cut(key, "/")
	ours := !ok || domain != "kubernetes.io" && domain != "k8s.io" && !strings.HasSuffix(domain, ".kubernetes.io") && !strings.HasSuffix(domain, ".k8s.io")
	few := domain == "kubelet.kubernetes.io" || domain == "node.kubernetes.io" ||
		strings.HasSuffix(domain, ".kubelet.kubernetes.io") || strings.HasSuffix(domain, ".node.kubernetes.io") ||
		key == "topology.kubernetes.io/zone" || key == "topology.kubernetes.io/region"
	if ours || few {
		return nil
	}
	return fmt.Errorf("kubelet may not give its own node the label %s: use another domain, or label the node with kubectl", key)
}

func parseTaint(s string) (taint, error) {
	kv, effect, ok := strings.Cut(s, ":")
	key, value, _ := strings.Cut(kv, "=")
	if !ok || key == "" || !slices.Contains([]string{"NoSchedule", "PreferNoSchedule", "NoExecute"}, effect) {
		return taint{}, fmt.Errorf("%q is no taint: want key=value:NoSchedule, PreferNoSchedule or NoExecute", s)
	}
	return taint{key, value, effect}, nil
}

func documents(docs ...any) ([]byte, error) {
	var out bytes.Buffer
	for i, d := range docs {
		b, err := yaml.Marshal(d)
		if err != nil {
			return nil, fmt.Errorf("writing kubeadm's configuration: %w", err)
		}
		if i > 0 {
			out.WriteString("---\n")
		}
		out.Write(b)
	}
	return out.Bytes(), nil
}
