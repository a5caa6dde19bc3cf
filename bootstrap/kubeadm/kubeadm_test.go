package kubeadm

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the goldens")

func cluster() Cluster {
	return Cluster{Name: "lab", Version: "v1.36.3", PodCIDR: "10.244.0.0/16", ServiceCIDR: "10.96.0.0/12", DNSDomain: "cluster.local", SANs: []string{"k8s.lab.example", "10.0.0.11", "10.0.0.11"}}
}

func controlPlane() Node {
	return Node{Name: "cp1", Address: netip.MustParseAddr("10.0.0.11"), ControlPlane: true, Labels: map[string]string{"example.org/rack": "r1", "topology.kubernetes.io/zone": "z1"}}
}

func worker() Node {
	return Node{Name: "w1", Address: netip.MustParseAddr("2001:db8::21"), Taints: []string{"example.org/dedicated=db:NoSchedule", "example.org/slow:NoExecute"}}
}

// Goldens returns every file by the name of its golden.
func goldens(t *testing.T) map[string][]byte {
	t.Helper()
	out := make(map[string][]byte)
	for name, f := range map[string]func() ([]byte, error){
		"init.yaml":               func() ([]byte, error) { return Init(cluster(), controlPlane()) },
		"join-control-plane.yaml": func() ([]byte, error) { return Join(controlPlane()) },
		"join-worker.yaml":        func() ([]byte, error) { return Join(worker()) },
		"init-external-ca.yaml": func() ([]byte, error) {
			c := cluster()
			c.ExternalCA = true
			return Init(c, controlPlane())
		},
		"join-external-ca.yaml": func() ([]byte, error) {
			n := worker()
			n.ExternalCA = true
			return Join(n)
		},
		"init-policy.yaml": func() ([]byte, error) {
			n := controlPlane()
			n.Patched = true
			return Init(cluster(), n)
		},
		"join-policy.yaml": func() ([]byte, error) {
			n := controlPlane()
			n.Patched = true
			return Join(n)
		},
		"policy-patches.yaml": func() ([]byte, error) {
			all, err := policy().Patches()
			var out bytes.Buffer
			for _, f := range all {
				fmt.Fprintf(&out, "# %s\n%s", f.Path, f.Content)
			}
			return out.Bytes(), err
		},
		"policy-admission.yaml": func() ([]byte, error) { return policy().admission() },
		"encryption.yaml": func() ([]byte, error) {
			return Encryption([]EncryptionKey{key("k-2", 2), key("k-1", 1), {Name: PlainKey}})
		},
		"discovery.conf": func() ([]byte, error) { return DiscoveryConfig([]byte("CA"), []byte("CERT"), []byte("KEY")) },
		"scheduler.conf": func() ([]byte, error) {
			return Kubeconfig(Server(worker().Address), "system:kube-scheduler", []byte("CA"), []byte("CERT"), []byte("KEY"))
		},
		"kubelet.conf": func() ([]byte, error) { return KubeletKubeconfig(Server(controlPlane().Address), []byte("CA")) },
	} {
		b, err := f()
		if err != nil {
			t.Fatal(err)
		}
		out[name] = b
	}
	return out
}

func TestGoldens(t *testing.T) {
	t.Parallel()
	for name, got := range goldens(t) {
		if *update {
			if err := os.WriteFile("testdata/"+name, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for want, f := range map[string]func(*Cluster, *Node){
		`configuring kubeadm init: node "" has no usable address: 10.0.0.11`:                 func(_ *Cluster, n *Node) { n.Name = "" },
		`configuring kubeadm init: node "cp1" has no usable address: invalid IP`:             func(_ *Cluster, n *Node) { n.Address = netip.Addr{} },
		`configuring kubeadm init: the cluster has no name`:                                  func(c *Cluster, _ *Node) { c.Name = "" },
		`configuring kubeadm init: the DNS domain is empty`:                                  func(c *Cluster, _ *Node) { c.DNSDomain = "" },
		`configuring kubeadm init: the Kubernetes version "1.36" does not look like v1.36.3`: func(c *Cluster, _ *Node) { c.Version = "1.36" },
		`configuring kubeadm init: netip.ParsePrefix("10.244.0.0"): no '/'`:                  func(c *Cluster, _ *Node) { c.PodCIDR = "10.244.0.0" },
		`configuring kubeadm init: "x=y" is no taint: want key=value:NoSchedule, PreferNoSchedule or NoExecute`: func(_ *Cluster, n *Node) {
			n.Taints = []string{"x=y"}
		},
		`configuring kubeadm init: kubelet may not give its own node the label node-role.kubernetes.io/worker: use another domain, or label the node with kubectl`: func(_ *Cluster, n *Node) {
			n.Labels = map[string]string{"node-role.kubernetes.io/worker": ""}
		},
	} {
		c, n := cluster(), controlPlane()
		f(&c, &n)
		if _, err := Init(c, n); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// Whoever makes the certificate in the kubeconfig for discovery goes by DiscoveryUse.
func TestDiscoveryIsUsedAsLongAsKubeadmIsPatient(t *testing.T) {
	discovery, err1 := time.ParseDuration(patience().Discovery)
	kubelet, err2 := time.ParseDuration(patience().TLSBootstrap)
	if err1 != nil || err2 != nil || discovery+kubelet != DiscoveryUse {
		t.Errorf("kubeadm waits %s (%v) and then %s (%v), and DiscoveryUse is %s", discovery, err1, kubelet, err2, DiscoveryUse)
	}
}
