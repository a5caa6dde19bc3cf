package byhand

import (
	"context"
	"fmt"
	"regexp"

	"golang.org/x/sync/errgroup"
)

// Shell is a root shell on a machine. Run types one command, or several lines of them, and
// returns what it printed; it fails as the last line does.
type Shell interface {
	Run(ctx context.Context, command string) (string, error)
}

// Typist makes a cluster as kubeadm's "Creating Highly Available Clusters" says, with
// stacked etcd: workers join beside control planes, and nobody waits for more than what a
// command needs. The endpoint is the first control plane and not a load balancer, which
// would have to be made first.
type Typist struct {
	*Race
	// Machines are all; the first control plane is where kubeadm init runs.
	Machines []Machine
	Shells   map[string]Shell
	// Kubernetes is the version of the images.
	Kubernetes string
	// Etcd is etcd's "extraArgs" in kubeadm's configuration, indented by four; none when empty.
	Etcd string
	// Dir is on every machine and has what came with its disk: AddOn, which is applied when the
	// API is there, and EtcdImage where a control plane is.
	Dir, AddOn string
	// Together has the further control planes join at once, which kubeadm's documentation allows, and
	// not one after the other.
	Together bool
	// Waits is what somebody types at a prompt that has just come until containerd answers.
	Waits string
	// Administer gets the administrator's kubeconfig when the cluster has its first control plane
	// and the add-on.
	Administer func(kubeconfig string) error

	// prepared is closed for each machine that has its images, inited after kubeadm init.
	prepared map[string]chan struct{}
	inited   chan struct{}
	// What kubeadm init says that others need; read after inited is closed.
	endpoint, token, hash, key string
}

// EtcdImage is the file in Dir that has the one image more that kubeadm's own etcd needs.
const EtcdImage = "etcd.tar"

// Type types all of it, and returns when every machine has joined.
func (w *Typist) Type(ctx context.Context) error {
	w.prepared, w.inited = map[string]chan struct{}{}, make(chan struct{})
	for _, m := range w.Machines {
		w.prepared[m.Name] = make(chan struct{})
	}
	all, ctx := errgroup.WithContext(ctx)
	var planes []Machine
	for _, m := range w.Machines {
		all.Go(func() error { return w.prepare(ctx, m) })
		if m.Worker {
			all.Go(func() error { return w.join(ctx, m) })
		} else {
			planes = append(planes, m)
		}
	}
	all.Go(func() error {
		if err := w.init(ctx, planes[0]); err != nil {
			return err
		}
		joins, ctx := errgroup.WithContext(ctx)
		if !w.Together {
			joins.SetLimit(1)
		}
		for _, m := range planes[1:] {
			joins.Go(func() error { return w.join(ctx, m) })
		}
		return joins.Wait()
	})
	return all.Wait()
}

// prepare waits for a machine's prompt and imports the images that came with its disk.
func (w *Typist) prepare(ctx context.Context, m Machine) error {
	if _, err := w.Shells[m.Name].Run(ctx, w.Waits); err != nil {
		return err
	}
	w.Saw(Up, m.Name)
	const load = "ctr --namespace k8s.io images import --local "
	command := load + "/usr/share/imagectl/images/kubernetes.tar"
	if !m.Worker {
		command += " && " + load + w.Dir + "/" + EtcdImage
	}
	if _, err := w.Shells[m.Name].Run(ctx, command); err != nil {
		return err
	}
	w.Saw(Imported, m.Name)
	close(w.prepared[m.Name])
	return nil
}

func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// limits are as in bootstrap/kubeadm: kubeadm's own are made for machines with KVM. It
// goes on as soon as it can.
const limits = `timeouts:
  controlPlaneComponentHealthCheck: 20m0s
  kubeletHealthCheck: 10m0s
  kubernetesAPICall: 10m0s
  etcdAPICall: 10m0s
  discovery: 10m0s
  tlsBootstrap: 20m0s
`

const initConfiguration = `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
` + limits + `---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: %s
controlPlaneEndpoint: %s:6443
networking:
  podSubnet: 10.244.0.0/16
`

const joinConfiguration = `apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
` + limits + `discovery:
  bootstrapToken:
    apiServerEndpoint: %s
    token: %s
    caCertHashes: ["%s"]
`

// What kubeadm init prints to be typed elsewhere.
var (
	endpointSaid = regexp.MustCompile(`kubeadm join (\S+) --token (\S+)`)
	hashSaid     = regexp.MustCompile(`--discovery-token-ca-cert-hash (sha256:[0-9a-f]{64})`)
	keySaid      = regexp.MustCompile(`--certificate-key ([0-9a-f]{64})`)
)

// init makes the cluster and its pod network.
func (w *Typist) init(ctx context.Context, m Machine) error {
	if err := wait(ctx, w.prepared[m.Name]); err != nil {
		return err
	}
	conf := fmt.Sprintf(initConfiguration, w.Kubernetes, m.Address)
	if w.Etcd != "" {
		conf += "etcd:\n  local:\n    extraArgs:\n" + w.Etcd
	}
	s := w.Shells[m.Name]
	said, err := s.Run(ctx, w.typed("init --upload-certs", conf))
	if err != nil {
		return err
	}
	w.Saw(Joined, m.Name)
	endpoint, hash, key := endpointSaid.FindStringSubmatch(said), hashSaid.FindStringSubmatch(said), keySaid.FindStringSubmatch(said)
	if endpoint == nil || hash == nil || key == nil {
		return fmt.Errorf("kubeadm init on %s does not say how others join:\n%s", m.Name, said)
	}
	w.endpoint, w.token, w.hash, w.key = endpoint[1], endpoint[2], hash[1], key[1]
	close(w.inited)
	const admin = "/etc/kubernetes/admin.conf"
	if _, err := s.Run(ctx, "kubectl --kubeconfig "+admin+" apply -f "+w.Dir+"/"+w.AddOn); err != nil {
		return err
	}
	kubeconfig, err := s.Run(ctx, "cat "+admin)
	if err != nil {
		return err
	}
	return w.Administer(kubeconfig)
}

// join joins a machine that has its images to a cluster that is there.
func (w *Typist) join(ctx context.Context, m Machine) error {
	for _, before := range []chan struct{}{w.inited, w.prepared[m.Name]} {
		if err := wait(ctx, before); err != nil {
			return err
		}
	}
	conf := fmt.Sprintf(joinConfiguration, w.endpoint, w.token, w.hash)
	if !m.Worker {
		conf += "controlPlane:\n  certificateKey: " + w.key + "\n"
	}
	if _, err := w.Shells[m.Name].Run(ctx, w.typed("join", conf)); err != nil {
		return err
	}
	w.Saw(Joined, m.Name)
	return nil
}

// typed is a command of kubeadm's behind the file that it reads.
func (w *Typist) typed(command, conf string) string {
	file := w.Dir + "/kubeadm.yaml"
	return "cat > " + file + " <<'EOF'\n" + conf + "EOF\nkubeadm " + command + " --config " + file
}
