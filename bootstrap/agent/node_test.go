package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

// cluster is the world outside of the agent on a node: containerd's images and
// what kubeadm and kubectl have done.
type cluster struct {
	images  []string
	applied []string
	ready   bool
	marked  bool
	tainted bool
	// shows is the API server's certificate; nil while it does not answer.
	shows *x509.Certificate
	// asked is called when somebody asks the API server; nil for nothing.
	asked func()
}

// apiServer is the one on the node.
func (c *cluster) apiServer() (*x509.Certificate, error) {
	if c != nil && c.asked != nil {
		c.asked()
	}
	if c == nil || c.shows == nil {
		return nil, errors.New("connection refused")
	}
	return c.shows, nil
}

// node is what the API server says of the node.
func (c *cluster) node() (kubeNode, error) {
	if c == nil {
		return kubeNode{}, errors.New("connection refused")
	}
	n := kubeNode{labels: map[string]string{"kubernetes.io/hostname": "cp1"}, ready: "False", why: "no CNI"}
	if c.marked {
		n.labels[kubeadm.RoleLabel] = ""
	}
	if c.ready {
		n.ready, n.why = "True", "kubelet is posting ready status"
	}
	return n, nil
}

// programs gives the node containerd, kubeadm, kubelet and kubectl as data.
func programs(l *lab) *cluster {
	c := &cluster{}
	l.kubernetes = c
	l.node.Program("kubelet", func(host.Command) ([]byte, error) { return []byte("Kubernetes v1.36.3\n"), nil })
	l.node.Program("ctr", func(cmd host.Command) ([]byte, error) {
		if slices.Contains(cmd.Argv, "import") {
			c.images = append(c.images, "registry.k8s.io/pause:3.10")
		}
		return []byte(strings.Join(c.images, "\n")), nil
	})
	l.node.Program("kubeadm", func(cmd host.Command) ([]byte, error) {
		if cmd.Argv[1] == "join" && !strings.Contains(l.read(kubeadm.Discovery), "client-key-data") {
			return nil, errors.New("there is no discovery file")
		}
		// The real one refuses to begin over its own files, and without those that it
		// cannot make.
		own, given := []string{"/etc/kubernetes/manifests/kube-apiserver.yaml", kubeadm.KubeletConf}, []string(nil)
		made := []string{kubeadm.AdminConf, kubeadm.SuperAdmin, "/var/lib/kubelet/config.yaml", kubeadm.PKIDir + "/apiserver.crt"}
		if l.signs {
			own, given = own[:1], []string{kubeadm.KubeletConf, kubeadm.KubeletClient}
			made = []string{"/var/lib/kubelet/config.yaml"}
			if cmd.Argv[1] == "init" {
				given = append(given, kubeadm.SuperAdmin, kubeadm.AdminConf, kubeadm.PKIDir+"/apiserver.crt", kubeadm.PKIDir+"/front-proxy-client.key", "/etc/kubernetes/scheduler.conf")
			} else if !strings.Contains(l.read(kubeadmConf), "FileAvailable--etc-kubernetes-kubelet.conf") {
				return nil, fmt.Errorf("[ERROR FileAvailable]: %s already exists", kubeadm.KubeletConf)
			}
		}
		for _, f := range given {
			if !l.exists(f) {
				return nil, fmt.Errorf("invalid or incomplete external CA: %s", f)
			}
		}
		for _, f := range own {
			if l.exists(f) {
				return nil, fmt.Errorf("[ERROR FileAvailable]: %s already exists", f)
			}
			l.put(f, "half")
		}
		for _, f := range made {
			l.put(f, "half")
		}
		l.node.SetUnit(kubeadm.Unit, "active")
		return nil, nil
	})
	l.node.Program("kubectl", func(cmd host.Command) ([]byte, error) {
		if slices.Contains(cmd.Argv, "label") {
			c.marked = true
			return nil, nil
		}
		if slices.Contains(cmd.Argv, "taint") {
			c.tainted = true
			return nil, nil
		}
		if slices.Contains(cmd.Argv, "apply") {
			c.applied = append(c.applied, string(cmd.Stdin))
			c.ready = true
			return nil, nil
		}
		return nil, fmt.Errorf("kubectl %q was not expected", cmd.Argv)
	})
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	index := `{"manifests":[{"annotations":{"io.containerd.image.name":"registry.k8s.io/pause:3.10"}}]}`
	for _, f := range [][2]string{{"blobs/sha256/x", strings.Repeat("x", 2000)}, {"index.json", index}} {
		name, content := f[0], f[1]
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o644}); err != nil {
			l.t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.put("/usr/share/imagectl/images/kubernetes.tar", archive.String())
	return c
}

func initRun(l *lab) *api.Run {
	addon := []byte("kind: ConfigMap\n")
	return &api.Run{
		Machine: "cp1", Cluster: "lab", Role: "control-plane", ControlPlane: true, Address: "127.0.0.1", ClientCaPem: string(l.ca.CertificatePEM()),
		Etcd: &api.EtcdWanted{Action: api.EtcdWanted_ACTION_BOOTSTRAP, InitialCluster: "cp1=https://127.0.0.1:2380", ClusterToken: "t"},
		Kubernetes: &api.KubernetesWanted{
			Action: api.KubernetesWanted_ACTION_INIT, Version: "v1.36.3", PodCidr: "10.244.0.0/16", ServiceCidr: "10.96.0.0/12", DnsDomain: "cluster.local",
			ApiServers: []string{"127.0.0.1:6443"}, CaPem: string(l.kube.CertificatePEM()),
			Addons:      []*api.Addon{{Name: "flannel", Sha256: digest(addon), Manifest: addon}},
			ServerSigns: l.signs,
		},
		Revocations: []*api.RevocationList{l.revocations(caImagectl, l.ca, 1), l.revocations(caEtcd, l.etcd, 1)},
	}
}

// newNode is the node's state as a new process finds it.
func (l *lab) newNode() *node {
	l.t.Helper()
	a := l.agent(nodeconf.Node)
	if err := a.open(); err != nil {
		l.t.Fatal(err)
	}
	if err := a.ensureEnrolled(context.Background(), api.Mode_MODE_NODE); err != nil {
		l.t.Fatal(err)
	}
	n := newNode(a)
	if err := n.remember(); err != nil {
		l.t.Fatal(err)
	}
	return n
}

func once(n *node, run *api.Run) outcome {
	return runSteps(context.Background(), n.Log, n.steps(run), nil, false, func([]*api.StepStatus) {})
}

func states(o outcome) string { return stepsOf(&api.SyncRequest{Steps: o.steps}) }

func TestNothingIsImportedBeforeContainerdAnswers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := programs(l)
	l.node.SetUnit(containerd, "activating")
	n := l.newNode()
	out := once(n, initRun(l))
	if got := states(out); !strings.Contains(got, "container-runtime") || len(c.images) != 0 || out.done {
		t.Fatalf("imported %q: %s", c.images, got)
	}
	for _, s := range out.steps {
		if s.GetState() == api.StepStatus_STATE_FAILED {
			t.Errorf("step %s failed: %s", s.GetName(), s.GetDetail())
		}
	}
}

func TestTheFirstControlPlaneComesUpAndASecondRunChangesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := programs(l)
	n, run := l.newNode(), initRun(l)
	out := once(n, run)
	want := []string{"hostname", "balancer", "container-runtime", "images", "etcd-certificates", "etcd-revocations", "etcd-configuration", "etcd-running",
		"kubernetes-secrets", "etcd-client-certificate", "kubelet-certificate", "kubeadm-init", "join-permissions", "control-plane-marked", "addons"}
	if diff := cmp.Diff(want, out.changed); diff != "" || !out.done {
		t.Fatalf("changed (-want +got):\n%s\n%s\n%s", diff, states(out), l.log)
	}
	if len(c.applied) != 2 || c.applied[1] != "kind: ConfigMap\n" {
		t.Errorf("got %d manifests applied", len(c.applied))
	}
	for name, want := range map[string]fs.FileMode{
		etcd.ServerPath: 0o600, etcd.PeerPath: 0o600, etcd.ClientPath: 0o600, etcd.DataDir: 0o700, kubeadm.PKIDir + "/ca.key": 0o600,
		kubeadm.PKIDir + "/sa.key": 0o600, kubeadm.PKIDir + "/ca.crt": 0o644, kubeadm.EtcdClient: 0o600, RunPath: 0o600,
	} {
		if name == RunPath {
			continue // written by handle, which this test goes past
		}
		if got, err := l.node.Mode(name); err != nil || got != want {
			t.Errorf("%s: got mode %v, %v, want %v", name, got, err, want)
		}
	}
	if l.exists(kubeadm.SuperAdmin) || !c.marked {
		t.Error("the super-admin's credentials are left, or the node has no role label")
	}
	if got, want := l.read("/etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n127.0.0.1 cp1\n"; got != want {
		t.Errorf("got hosts %q, want %q", got, want)
	}
	again := once(n, run)
	if len(again.changed) != 0 || !again.done {
		t.Errorf("the second run changed %v: %s", again.changed, states(again))
	}
	// A reboot, or a new agent, finds everything but the balancer, which lives in
	// the process.
	if fresh := once(l.newNode(), run); !slices.Equal(fresh.changed, []string{"balancer"}) || !fresh.done {
		t.Errorf("a new process changed %v: %s", fresh.changed, states(fresh))
	}
	r := n.observe(context.Background(), run, again)
	if !r.etcd.GetRunning() || !r.etcd.GetHealthy() || r.etcd.GetMemberId() != "8e9e05c52164694d" || !r.kubernetes.GetJoined() || !r.kubernetes.GetNodeReady() ||
		!r.kubernetes.GetAddonsApplied() || r.kubernetes.GetKubeletVersion() != "v1.36.3" {
		t.Errorf("got report %v %v", r.etcd, r.kubernetes)
	}
}

// killed is what a program panics with where the agent is killed.
type killed struct{}

// dies says whether f is killed on its way.
func dies(f func()) (died bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(killed); !ok {
				panic(r)
			}
			died = true
		}
	}()
	f()
	return false
}

// TestKilledAnywhereItStillComesUp kills the agent before and after each
// program that it runs, once a run, and starts it anew. It stands for SIGKILL as
// far as one process can: what matters is what is on disk.
func TestKilledAnywhereItStillComesUp(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"control plane", "worker", "control plane without the CA's key", "worker without the CA's key"} {
		for at := 1; ; at++ {
			l := newLab(t)
			l.signs = strings.HasSuffix(role, "key")
			c := programs(l)
			worker := strings.HasPrefix(role, "worker")
			c.ready = worker
			run := initRun(l)
			if worker {
				run.ControlPlane, run.Etcd = false, &api.EtcdWanted{Action: api.EtcdWanted_ACTION_NONE}
				run.Kubernetes.Action, run.Kubernetes.Addons = api.KubernetesWanted_ACTION_JOIN_WORKER, nil
			}
			count, real, killing := 0, l.node.Exec, true
			l.node.Exec = func(ctx context.Context, cmd host.Command) ([]byte, error) {
				count++
				if killing && count == at {
					panic(killed{}) // before the program did anything
				}
				out, err := real(ctx, cmd)
				count++
				if killing && count == at {
					panic(killed{}) // after it did everything
				}
				return out, err
			}
			if !dies(func() { once(l.newNode(), run) }) {
				if at < 20 {
					t.Errorf("%s: only %d places to be killed at", role, at)
				}
				break
			}
			killing = false
			out := once(l.newNode(), run)
			if !out.done {
				t.Errorf("%s: killed at %d, it did not come up: %s\n%s", role, at, states(out), l.log)
			}
			if l.read(kubeadm.KubeletConf) == "" || !l.exists(joinedPath) {
				t.Errorf("%s: killed at %d, kubeadm did not come to its end", role, at)
			}
			if want := !worker; c.marked != want || c.tainted != want {
				t.Errorf("%s: killed at %d, label %v, taint %v", role, at, c.marked, c.tainted)
			}
		}
	}
}

// TestAKubeletThatGetsItsCertificateAsItIsStoppedHasJoined is a join whose kubeadm
// was killed: kubelet went on, and was done before it could be stopped. kubeadm
// refuses to join a node that is Ready, so nobody may ask it to.
func TestAKubeletThatGetsItsCertificateAsItIsStoppedHasJoined(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := programs(l)
	c.ready = true
	run := initRun(l)
	run.ControlPlane, run.Etcd = false, &api.EtcdWanted{Action: api.EtcdWanted_ACTION_NONE}
	run.Kubernetes.Action, run.Kubernetes.Addons = api.KubernetesWanted_ACTION_JOIN_WORKER, nil
	real := l.node.Exec
	l.node.Exec = func(ctx context.Context, cmd host.Command) ([]byte, error) {
		if cmd.Argv[0] == "kubeadm" {
			panic(killed{})
		}
		return real(ctx, cmd)
	}
	if !dies(func() { once(l.newNode(), run) }) {
		t.Fatal("kubeadm was never run")
	}
	l.node.Exec = func(ctx context.Context, cmd host.Command) ([]byte, error) {
		switch {
		case slices.Equal(cmd.Argv, []string{"systemctl", "stop", kubeadm.Unit}):
			for _, f := range []string{kubeadm.KubeletConf, "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/pki/kubelet-client-current.pem"} {
				l.put(f, "its own")
			}
		case cmd.Argv[0] == "kubeadm":
			return nil, errors.New(`a Node with name "w1" and status "Ready" already exists in the cluster`)
		}
		return real(ctx, cmd)
	}
	if out := once(l.newNode(), run); !out.done {
		t.Errorf("it did not come up: %s\n%s", states(out), l.log)
	}
	if got := l.read(kubeadm.KubeletConf); got != "its own" {
		t.Errorf("kubelet's credentials became %q", got)
	}
}

func TestAStepSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	n, run := l.newNode(), initRun(l)
	run.Etcd = &api.EtcdWanted{Action: api.EtcdWanted_ACTION_WAIT, Reason: "cp1 is first"}
	out := once(n, run)
	if last := out.steps[len(out.steps)-1]; last.GetName() != "etcd" || last.GetState() != api.StepStatus_STATE_PENDING || last.GetDetail() != "cp1 is first" || out.done {
		t.Errorf("got %v", out.steps)
	}
	run = initRun(l)
	run.Kubernetes.Action = api.KubernetesWanted_ACTION_RUN
	out = once(n, run)
	if !strings.Contains(states(out), "kubeadm-done=pending") {
		t.Errorf("got %s", states(out))
	}
	run = initRun(l)
	run.Kubernetes.Addons[0].Sha256 = strings.Repeat("0", 64)
	out = once(n, run)
	var detail string
	for _, s := range out.steps {
		if s.GetName() == stepAddons {
			detail = s.GetDetail()
		}
	}
	if want := `the add-on "flannel" has SHA-256 ` + digest(run.Kubernetes.Addons[0].Manifest) + ", the lock file says " + strings.Repeat("0", 64); detail != want {
		t.Errorf("got  %s\nwant %s", detail, want)
	}
}

func TestLookingAgainIsNoNewsAndAFailureIs(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	broken := false
	steps := make([]Step, 3)
	for i := range steps {
		steps[i] = Step{Name: string(rune('a' + i)), Observe: func(context.Context) (bool, string, error) {
			if broken && i == 1 {
				return false, "", errors.New("it broke")
			}
			return true, "", nil
		}}
	}
	var news []string
	var last []*api.StepStatus
	look := func() outcome {
		return runSteps(context.Background(), l.agent(nodeconf.Node).Log, steps, last, false, func(s []*api.StepStatus) {
			news = append(news, stepsOf(&api.SyncRequest{Steps: s}))
		})
	}
	last = look().steps
	if len(news) != 3 {
		t.Errorf("first: %v", news)
	}
	news = nil
	last = look().steps
	if len(news) != 0 {
		t.Errorf("again: %v", news)
	}
	broken = true
	last = look().steps
	if want := []string{"a=done b=failed c=pending"}; !slices.Equal(news, want) {
		t.Errorf("broken: %v, want %v", news, want)
	}
	broken = false
	if out := look(); !out.done || len(out.changed) != 0 || len(news) != 3 {
		t.Errorf("mended: %v %v", out, news)
	}
}

func TestAFailedStepStopsTheListWithItsReason(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	l.node.Program("ctr", func(c host.Command) ([]byte, error) {
		return nil, &host.RunError{Argv: c.Argv, Output: []byte("connection refused"), Cause: errors.New("exit status 1")}
	})
	out := once(l.newNode(), initRun(l))
	if got, want := states(out), "hostname=done balancer=done container-runtime=done images=failed etcd-certificates=pending"; !strings.HasPrefix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := out.steps[3].GetDetail(), "running ctr --namespace k8s.io images list --quiet: exit status 1: connection refused"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestANodeFollowsItsDirectiveAndComesBackWithoutAServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	stop := l.start(nodeconf.Node)
	l.wait("a report without steps", func(r *api.SyncRequest) bool { return len(r.GetSteps()) == 0 })
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Run{Run: initRun(l)}})
	l.wait("a ready node", func(r *api.SyncRequest) bool {
		return r.GetKubernetes().GetNodeReady() && r.GetKubernetes().GetAddonsApplied() && r.GetEtcd().GetHealthy()
	})
	stop()
	if got, err := l.node.Mode(RunPath); err != nil || got != 0o600 {
		t.Errorf("%s: got mode %v, %v", RunPath, got, err)
	}
	// The reboot: units are down, the server is away.
	for u := range l.node.Units() {
		l.node.SetUnit(u, "inactive")
	}
	n := l.newNode()
	n.servers.list[0].url = "https://127.0.0.1:1"
	out := once(n, n.directive())
	if want := []string{"balancer", "container-runtime", "etcd-running", "kubelet-running"}; !slices.Equal(out.changed, want) || !out.done {
		t.Errorf("got %v, want %v: %s", out.changed, want, states(out))
	}
}

func TestNothingOnTheWireMakesANodeInstallOrReboot(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	stop := l.start(nodeconf.Node)
	l.wait("a report", func(*api.SyncRequest) bool { return true })
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Install{Install: &api.Install{ArmingId: "x"}}})
	waitFor(l, "the refusal", func() (int, bool) { return 0, strings.Contains(l.log.String(), "SyncResponse_Install") })
	l.direct(&api.SyncResponse{Directive: &api.SyncResponse_Reboot{Reboot: &api.Reboot{}}})
	waitFor(l, "the refusal", func() (int, bool) { return 0, strings.Contains(l.log.String(), "SyncResponse_Reboot") })
	stop()
	if ran := l.node.Ran(); len(ran) != 0 {
		t.Errorf("it ran %v", ran)
	}
}

func TestCertificatesOfServicesAreRenewedInPlace(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	n, run := l.newNode(), initRun(l)
	once(n, run)
	before := l.read(etcd.ServerPath)
	l.set(func() { l.now = 29 * 24 * time.Hour })
	if out := once(n, run); len(out.changed) != 0 {
		t.Errorf("after 29 days: %v", out.changed)
	}
	// The agent's own certificate would have been renewed twice by now.
	l.set(func() { l.now = 31 * 24 * time.Hour })
	if err := n.enrol(context.Background(), api.Mode_MODE_NODE); err != nil {
		t.Fatal(err)
	}
	n.renewalsAfter = n.Now().Add(time.Hour)
	if out := once(n, run); len(out.changed) != 0 {
		t.Errorf("it tried again too soon: %v", out.changed)
	}
	n.renewalsAfter = time.Time{}
	l.set(func() {
		l.refuse = connect.NewError(connect.CodeUnavailable, errors.New("the server is being restored"))
	})
	out := once(n, run)
	if last := out.steps[len(out.steps)-1]; last.GetName() != "renewals" || last.GetState() != api.StepStatus_STATE_FAILED || l.read(etcd.ServerPath) != before {
		t.Errorf("without a server: %v", last)
	}
	n.renewalsAfter = time.Time{}
	l.set(func() { l.refuse = nil })
	if out := once(n, run); !slices.Equal(out.changed, []string{"renewals"}) || l.read(etcd.ServerPath) == before {
		t.Errorf("with a server: changed %v", out.changed)
	}
}

// A step that never ends well keeps the certificates from being made new as little as a
// server that is away keeps anything else.
func TestCertificatesAreRenewedWhileAnotherStepFails(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	n, run := l.newNode(), initRun(l)
	if out := n.work(t.Context(), run); !out.done {
		t.Fatalf("not done: %s", states(out))
	}
	before := l.read(etcd.ServerPath)
	l.set(func() { l.now = 31 * 24 * time.Hour })
	if err := n.enrol(t.Context(), api.Mode_MODE_NODE); err != nil {
		t.Fatal(err)
	}
	l.node.SetUnit(containerd, "activating")
	if out := n.work(t.Context(), run); out.done || !slices.Equal(out.changed, []string{"renewals"}) || l.read(etcd.ServerPath) == before {
		t.Errorf("changed %v: %s", out.changed, states(out))
	}
	if out := n.work(t.Context(), run); len(out.changed) != 0 {
		t.Errorf("a second time: changed %v", out.changed)
	}
}

func TestImageArchivesOfBothKinds(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.newNode()
	tarball := func(files ...string) string {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i < len(files); i += 2 {
			if err := w.WriteHeader(&tar.Header{Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(files[i+1])); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	for name, tc := range map[string]struct{ in, names, err string }{
		"oci":    {tarball("oci-layout", "{}", "index.json", `{"manifests":[{"annotations":{"io.containerd.image.name":"a:1"}},{}]}`), "[a:1]", ""},
		"docker": {tarball("x", "y", "./manifest.json", `[{"RepoTags":["b:1","b:2"]}]`), "[b:1 b:2]", ""},
		"both":   {tarball("manifest.json", `[]`, "index.json", `{}`), "[]", ""},
		"none":   {tarball("x", "y"), "", "reading image archive /x/none.tar: it has neither index.json nor manifest.json"},
		"broken": {"this is no tar", "", "reading image archive /x/broken.tar: unexpected EOF"},
	} {
		l.put("/x/"+name+".tar", tc.in)
		a, err := n.inspect("/x/" + name + ".tar")
		if tc.err != "" {
			if err == nil || err.Error() != tc.err {
				t.Errorf("%s: got %v, want %s", name, err, tc.err)
			}
			continue
		}
		if err != nil || fmt.Sprint(a.names) != tc.names || len(a.digest) != 64 || a.marker() != path.Join(imported, name+".tar") {
			t.Errorf("%s: got %+v, %v", name, a, err)
		}
	}
}
