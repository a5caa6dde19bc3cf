//go:build e2e

package byhand

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

// kubernetesVersion is the one that the lab's images hold.
const kubernetesVersion = "v1.36.3"

// hand makes a cluster as kubeadm's "Creating Highly Available Clusters" says, with
// stacked etcd, in the quickest order that it allows: control planes one after the other,
// workers beside them, nobody waits for more than what a command needs. The endpoint is
// the first control plane and not a load balancer, which would have to be made first.
type hand struct {
	t    *testing.T
	rack *lab.Lab
	dir  string
}

// config is a machine whose disk was written beforehand.
func (h hand) config(m lab.Machine) vm.Config {
	c := h.rack.Config(m)
	c.Dir, c.Disk = h.dir, filepath.Join(h.dir, m.Name+".disk")
	c.DiskFirst, c.Ports = true, []string{handPort}
	return c
}

func (h hand) kubeconfig() string { return filepath.Join(h.dir, "kubeconfig") }

func (h hand) race(ctx context.Context) *race {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the cluster made by hand was not there after %s", patience))
	defer cancel()
	if err := h.writeDisks(ctx); err != nil {
		h.t.Fatal(err)
	}
	r := newRace(func(format string, args ...any) { h.rack.Log("by hand: "+format, args...) })
	shells := map[string]*shell{}
	for _, m := range h.rack.Machines {
		if err := h.rack.Start(h.config(m)); err != nil {
			h.t.Fatal(err)
		}
		log, err := os.Create(filepath.Join(h.dir, m.Name+".shell"))
		if err != nil {
			h.t.Fatal(err)
		}
		defer log.Close()
		shells[m.Name] = newShell(m.Name, h.rack.Guests[m.Name].Port(handPort), log)
	}
	all, ctx := errgroup.WithContext(ctx)
	w := &typist{race: r, shells: shells, prepared: map[string]chan struct{}{}, inited: make(chan struct{}), administered: make(chan struct{})}
	for _, m := range h.rack.Machines {
		w.prepared[m.Name] = make(chan struct{})
	}
	var first lab.Machine
	var planes []lab.Machine
	for _, m := range h.rack.Machines {
		all.Go(func() error { return w.prepare(ctx, m) })
		switch {
		case m.Role == "worker":
			all.Go(func() error { return w.join(ctx, m) })
		case first.Name == "":
			first = m
		default:
			planes = append(planes, m)
		}
	}
	kubeconfig := h.kubeconfig()
	all.Go(func() error {
		if err := w.init(ctx, first, kubeconfig); err != nil {
			return err
		}
		for _, m := range planes {
			if err := w.join(ctx, m); err != nil {
				return err
			}
		}
		return nil
	})
	all.Go(func() error { return h.watch(ctx, w, kubeconfig) })
	if err := all.Wait(); err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h hand) writeDisks(ctx context.Context) error {
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return err
	}
	image := filepath.Join(h.dir, "etcd.tar")
	if err := etcdImage(ctx, h.rack.Upstream, kubernetesVersion, image); err != nil {
		return err
	}
	for _, m := range h.rack.Machines {
		if err := h.handDisk(ctx, m, image); err != nil {
			return fmt.Errorf("writing the disk of %s: %w", m.Name, err)
		}
	}
	h.rack.Log("by hand: disks written")
	return nil
}

// watch waits until all is typed and all nodes are Ready, says what it waits for, and
// ends the work when a console shows that something broke.
func (h hand) watch(ctx context.Context, w *typist, kubeconfig string) error {
	said := time.Now()
	err := lab.Until(ctx, func() (bool, string, error) {
		reason := w.missing(joined, h.rack.Machines)
		for _, m := range h.rack.Machines {
			if bad := h.rack.Guests[m.Name].Console.Bad(); len(bad) > 0 {
				return false, "", fmt.Errorf("the console of %s shows: %s", m.Name, strings.Join(bad, "; "))
			}
		}
		if time.Since(said) > time.Minute && reason != "" {
			said = time.Now()
			h.rack.Log("by hand: %s", reason)
			for _, m := range h.rack.Machines {
				h.rack.Log("by hand: %s says: %s", m.Name, w.shells[m.Name].lastLine())
			}
		}
		return reason == "", reason, nil
	})
	if err != nil {
		return err
	}
	if err := wait(ctx, w.administered); err != nil {
		return err
	}
	k, err := open(kubeconfig)
	if err != nil {
		return err
	}
	return k.allReady(ctx, h.rack, func(name string) { w.saw(ready, name) })
}

// typist types it.
type typist struct {
	*race
	shells map[string]*shell
	// prepared is closed for each machine that has its images, inited after kubeadm init.
	prepared map[string]chan struct{}
	inited   chan struct{}
	// administered is closed when there is a kubeconfig.
	administered chan struct{}
	// What kubeadm init says that others need; read after inited is closed.
	endpoint, token, hash, key string
}

// prepare waits for a machine's prompt and imports the images that came with its disk.
func (w *typist) prepare(ctx context.Context, m lab.Machine) error {
	if _, err := w.shells[m.Name].run(ctx, "until systemctl is-active --quiet containerd; do sleep 1; done"); err != nil {
		return err
	}
	w.saw(up, m.Name)
	const load = "ctr --namespace k8s.io images import --local "
	command := load + "/usr/share/imagectl/images/kubernetes.tar"
	if m.Role != "worker" {
		command += " && " + load + "/opt/hand/etcd.tar"
	}
	if _, err := w.shells[m.Name].run(ctx, command); err != nil {
		return err
	}
	w.saw(imported, m.Name)
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

// Five guests on two cores lose etcd's leader again and again with etcd's own 100 ms and 1 s, so both
// clusters have longer times.
const heartbeatMs, electionMs = 500, 5000

const initConfiguration = `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
` + limits + `---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: ` + kubernetesVersion + `
controlPlaneEndpoint: %s:6443
networking:
  podSubnet: 10.244.0.0/16
etcd:
  local:
    extraArgs:
      - name: heartbeat-interval
        value: "%d"
      - name: election-timeout
        value: "%d"
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
func (w *typist) init(ctx context.Context, m lab.Machine, kubeconfig string) error {
	if err := wait(ctx, w.prepared[m.Name]); err != nil {
		return err
	}
	s := w.shells[m.Name]
	said, err := s.run(ctx, typed("kubeadm init --config /tmp/kubeadm.yaml --upload-certs", fmt.Sprintf(initConfiguration, m.Address, heartbeatMs, electionMs)))
	if err != nil {
		return err
	}
	w.saw(joined, m.Name)
	endpoint, hash, key := endpointSaid.FindStringSubmatch(said), hashSaid.FindStringSubmatch(said), keySaid.FindStringSubmatch(said)
	if endpoint == nil || hash == nil || key == nil {
		return fmt.Errorf("kubeadm init on %s does not say how others join:\n%s", m.Name, said)
	}
	w.endpoint, w.token, w.hash, w.key = endpoint[1], endpoint[2], hash[1], key[1]
	close(w.inited)
	if _, err := s.run(ctx, "kubectl --kubeconfig /etc/kubernetes/admin.conf apply -f /opt/hand/flannel.yaml"); err != nil {
		return err
	}
	conf, err := s.run(ctx, "cat /etc/kubernetes/admin.conf")
	if err != nil {
		return err
	}
	s.say("kubeconfig shown") // its key is nothing to print
	defer close(w.administered)
	return os.WriteFile(kubeconfig, []byte(conf), 0o600)
}

// join joins a machine that has its images to a cluster that is there.
func (w *typist) join(ctx context.Context, m lab.Machine) error {
	for _, before := range []chan struct{}{w.inited, w.prepared[m.Name]} {
		if err := wait(ctx, before); err != nil {
			return err
		}
	}
	conf := fmt.Sprintf(joinConfiguration, w.endpoint, w.token, w.hash)
	if m.Role != "worker" {
		conf += "controlPlane:\n  certificateKey: " + w.key + "\n"
	}
	if _, err := w.shells[m.Name].run(ctx, typed("kubeadm join --config /tmp/kubeadm.yaml", conf)); err != nil {
		return err
	}
	w.saw(joined, m.Name)
	return nil
}

// typed is a command behind the file that it reads.
func typed(command, conf string) string {
	return "cat > /tmp/kubeadm.yaml <<'EOF'\n" + conf + "EOF\n" + command
}
