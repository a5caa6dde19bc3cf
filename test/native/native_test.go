//go:build root

package native

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/images/extent"
)

const (
	serverURL = "https://10.98.0.1:8443"
	imageURL  = "http://10.98.0.1:8080"
	imageSize = 1200 << 20
	rootStart = 4 << 20
	rootSize  = 1150 << 20
)

// kubernetesVersion is of the nodes' programs and images. NATIVE_KUBERNETES chooses
// another one that test/upstream/build made, such as v1.34.4.
func kubernetesVersion() string { return cmp.Or(os.Getenv("NATIVE_KUBERNETES"), "v1.36.3") }

// rack is a network with a server and nodes.
type rack struct {
	t      *testing.T
	dir    string
	bin    string
	conf   serverapi.Config
	server *serverapi.Server
	// store is the server's; closed when it is stopped.
	store *store.Store
	image serverapi.Image
	op    apiconnect.OperatorServiceClient
	// http is an admin's.
	http *http.Client
	// stop stops the server.
	stop  func()
	nodes map[string]*machine
}

type machine struct {
	spec
	mac, address string
	pid          int
	// waited returns when its first process has ended.
	waited func()
}

// upstream is where the upstream binaries are.
func upstream(t *testing.T, path ...string) string {
	t.Helper()
	dir := os.Getenv("IMAGECTL_UPSTREAM")
	if dir == "" {
		t.Fatal("IMAGECTL_UPSTREAM does not say where the upstream binaries are: see test/upstream")
	}
	p := filepath.Join(append([]string{dir}, path...)...)
	if _, err := os.Stat(p); err != nil {
		t.Fatal(err)
	}
	return p
}

func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// newRack switches everything on. NATIVE_CA_KEY in the environment is cluster.yaml's
// kubernetes.caKey.
func newRack(t *testing.T, names ...string) *rack {
	t.Helper()
	r := darkRack(t, func(*serverapi.Config) {}, names...)
	for i, name := range names {
		r.power(name, i+1)
	}
	return r
}

// darkRack has a server, of which set may change the configuration, and nodes that are
// off.
func darkRack(t *testing.T, set func(*serverapi.Config), names ...string) *rack {
	t.Helper()
	r := bareRack(t, names...)
	r.image = r.makeImage()
	r.serve(set, names)
	return r
}

// bareRack has no server.
func bareRack(t *testing.T, names ...string) *rack {
	t.Helper()
	r := &rack{t: t, dir: t.TempDir(), nodes: map[string]*machine{}}
	r.programs()
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip", "link", "add", "br0", "type", "bridge")
	t.Cleanup(func() { run(t, "ip", "link", "del", "br0") })
	run(t, "ip", "addr", "add", "10.98.0.1/24", "dev", "br0")
	run(t, "ip", "link", "set", "br0", "up")
	for i, name := range names {
		loop := strings.TrimSpace(run(t, "sh", "-c", fmt.Sprintf("truncate -s %d %[2]s && losetup -f --show %[2]s", imageSize+(8<<20), filepath.Join(r.dir, name+".disk"))))
		t.Cleanup(func() { run(t, "losetup", "-d", loop) })
		m := &machine{mac: fmt.Sprintf("52:54:00:00:00:%02x", i+1), address: fmt.Sprintf("10.98.0.%d", 11+i)}
		m.spec = spec{Name: name, Dir: filepath.Join(r.dir, name), Bin: r.bin, Loop: loop, RootOffset: rootStart, RootSize: rootSize, Images: upstream(t, "images", "kubernetes-"+kubernetesVersion()+".tar"), Extra: filepath.Join(r.dir, name, "extra")}
		r.nodes[name] = m
	}
	return r
}

// programs fills the directory that is first in every node's PATH.
func (r *rack) programs() {
	r.t.Helper()
	r.bin = filepath.Join(r.dir, "bin")
	if err := os.Mkdir(r.bin, 0o755); err != nil {
		r.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	kubernetes := upstream(r.t, "kubernetes", kubernetesVersion(), "bin", "linux", "amd64", "kubeadm")
	links := map[string]string{"systemctl": self, "kubeadm.real": kubernetes}
	for _, n := range []string{"kubelet", "kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		links[n] = kubernetes
	}
	for _, n := range []string{"containerd", "ctr", "containerd-shim-runc-v2"} {
		links[n] = upstream(r.t, "containerd", n)
	}
	etcds, err := filepath.Glob(upstream(r.t, "etcd") + "/v*/etcd")
	if err != nil || len(etcds) == 0 {
		r.t.Fatalf("there is no etcd in %s: %v", upstream(r.t, "etcd"), err)
	}
	links["etcd"] = etcds[len(etcds)-1]
	links["etcdctl"] = filepath.Join(filepath.Dir(links["etcd"]), "etcdctl")
	links["etcdutl"] = filepath.Join(filepath.Dir(links["etcd"]), "etcdutl")
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(r.bin, name)); err != nil {
			r.t.Fatal(err)
		}
	}
	// What a container's kernel lacks and a machine's has.
	wrapper := "#!/bin/sh\ncase \"$1 $2\" in \"init phase\") ;; init*|join*) exec -a kubeadm " + kubernetes + " \"$@\" --ignore-preflight-errors=SystemVerification,FileContent--proc-sys-net-ipv4-ip_forward,FileExisting-conntrack,FileExisting-tc,FileExisting-ethtool,Swap,Mem ;; esac\nexec -a kubeadm " + kubernetes + " \"$@\"\n"
	wrapper = strings.Replace(wrapper, "#!/bin/sh", "#!/bin/bash", 1)
	if err := os.WriteFile(filepath.Join(r.bin, "kubeadm"), []byte(wrapper), 0o755); err != nil {
		r.t.Fatal(err)
	}
	// With a shifted clock all programs are built for it (clock/overlay).
	run(r.t, "go", "build", "-buildvcs=false", "-overlay="+os.Getenv("NATIVE_OVERLAY"), "-o", filepath.Join(r.bin, "bootstrapd"), "github.com/imagectl/imagectl/cmd/bootstrapd")
}

// rawImage is a disk with an empty ROOT.
func (r *rack) rawImage() string {
	r.t.Helper()
	raw := filepath.Join(r.dir, "image.raw")
	run(r.t, "truncate", "-s", fmt.Sprint(imageSize), raw)
	run(r.t, "sgdisk", "--new", fmt.Sprintf("1:%d:+%dM", rootStart/512, rootSize>>20), "--change-name", "1:ROOT", raw)
	run(r.t, "mkfs.ext4", "-q", "-E", fmt.Sprintf("offset=%d,nodiscard", rootStart), raw, fmt.Sprintf("%dk", rootSize>>10))
	return raw
}

// makeImage is rawImage as an install stream.
func (r *rack) makeImage() serverapi.Image {
	r.t.Helper()
	f, err := os.Open(r.rawImage())
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	var stream, blob bytes.Buffer
	if err := extent.Write(context.Background(), &stream, f, imageSize); err != nil {
		r.t.Fatal(err)
	}
	rawSum := sha256.Sum256(stream.Bytes())
	if err := extent.Compress(context.Background(), &blob, &stream); err != nil {
		r.t.Fatal(err)
	}
	sum := sha256.Sum256(blob.Bytes())
	ln, err := net.Listen("tcp", strings.TrimPrefix(imageURL, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(blob.Bytes()))
	})}
	go func() { _ = srv.Serve(ln) }()
	r.t.Cleanup(func() { _ = srv.Close() })
	return serverapi.Image{URL: imageURL + "/x.raw.zst", SHA256: hex.EncodeToString(sum[:]), Size: uint64(blob.Len()), RawSize: imageSize, RawSHA256: hex.EncodeToString(rawSum[:])}
}

// addon is applied to every cluster.
const addon = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: addon\n  namespace: default\n"

// serve starts the real server.
func (r *rack) serve(set func(*serverapi.Config), names []string) {
	r.t.Helper()
	addonSum := sha256.Sum256([]byte(addon))
	conf := serverapi.Config{
		Cluster: "native", Version: "test", NodeServers: []string{serverURL}, ServerAddresses: []netip.Addr{netip.MustParseAddr("10.98.0.1")},
		Kubernetes: serverapi.Kubernetes{Version: kubernetesVersion(), PodCIDR: "10.244.0.0/16", ServiceCIDR: "10.96.0.0/12", DNSDomain: "cluster.local",
			// As clusters have it that say nothing; all of this holds for the other way too.
			CAKeyOnNodes: os.Getenv("NATIVE_CA_KEY") != "server",
			Addons:       []*api.Addon{{Name: "addon", Sha256: hex.EncodeToString(addonSum[:]), Manifest: []byte(addon)}}},
		Now: time.Now, Rand: rand.Reader, Log: slog.New(slog.DiscardHandler),
	}
	for _, name := range names {
		m := r.nodes[name]
		conf.Machines = append(conf.Machines, serverapi.Machine{
			Name: name, Role: "r", ControlPlane: strings.HasPrefix(name, "cp"), MACs: []string{m.mac}, Address: netip.MustParseAddr(m.address),
			Disk: &api.DiskRule{Path: m.Loop}, Image: r.image,
			// These tests look at etcd's members from where the server is.
			Allow: []*api.Firewall_Allow{{From: []string{"10.98.0.1/32"}, Ports: []uint32{2379}}},
		})
	}
	set(&conf)
	r.conf = conf
	r.up()
	r.t.Cleanup(func() { r.stop() })
	cert, key, _, err := r.server.Operator(r.t.Context(), "ada", pki.RoleAdmin)
	if err != nil {
		r.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		r.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(r.server.CAPEM())
	r.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, ForceAttemptHTTP2: true}}
	r.op = apiconnect.NewOperatorServiceClient(r.http, serverURL)
}

// up starts the server, for the first time or on the state that it left.
func (r *rack) up() {
	r.t.Helper()
	st, err := store.Open(r.t.Context(), store.Config{Dir: filepath.Join(r.dir, "state"), Cluster: r.conf.Cluster, Log: os.Stderr, Volatile: true})
	if err != nil {
		r.t.Fatal(err)
	}
	r.conf.Store, r.store = st, st
	if r.server, err = serverapi.New(r.t.Context(), r.conf); err != nil {
		r.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", strings.TrimPrefix(serverURL, "https://"))
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.server.Serve(ctx, ln) }()
	saving := make(chan error, 1)
	go func() { saving <- r.server.EtcdSnapshots(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-saving; err != nil {
			r.t.Errorf("taking snapshots of etcd: %v", err)
		}
		if err := <-done; err != nil {
			r.t.Errorf("serving: %v", err)
		}
		st.Close()
	})
}

// power switches a machine on: it netboots the installer.
func (r *rack) power(name string, i int) {
	r.t.Helper()
	m := r.nodes[name]
	if err := os.MkdirAll(m.Extra+"/imagectl", 0o755); err != nil {
		r.t.Fatal(err)
	}
	conf, err := nodeconf.Config{Cluster: "native", Mode: nodeconf.Installer, Servers: []string{serverURL}, CA: string(r.server.CAPEM())}.Encode()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(m.Extra+"/imagectl/node.json", conf, 0o644); err != nil {
		r.t.Fatal(err)
	}
	r.start(name, i)
}

// start starts what is on a machine's disk when it is Installed, or else in its memory.
func (r *rack) start(name string, i int) {
	r.t.Helper()
	m := r.nodes[name]
	for _, d := range []string{m.Extra, m.Dir + "/containerd"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	text, err := json.Marshal(m.spec)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(m.Dir+"/spec", text, 0o644); err != nil {
		r.t.Fatal(err)
	}
	log, err := os.Create(m.Dir + "/init.log")
	if err != nil {
		r.t.Fatal(err)
	}
	// The network is there before the node's first program is. Nodes share the clock of
	// the machine that runs the test, and must not set it.
	cmd := exec.Command("sh", "-c", "read x && exec setpriv --bounding-set=-sys_time -- /proc/self/fd/3")
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		r.t.Fatal(err)
	}
	defer self.Close()
	cmd.ExtraFiles = []*os.File{self}
	cmd.Env = append(os.Environ(), "NATIVE_NODE="+m.Dir+"/spec", "PATH="+m.Bin+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	in, err := cmd.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	m.waited = sync.OnceFunc(func() { _ = cmd.Wait() })
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill() // and with it everything in its PID namespace
		m.waited()
		_ = log.Close()
		if r.t.Failed() {
			r.t.Logf("%s", run(r.t, "sh", "-c", fmt.Sprintf("cd %s; for f in init.log console bootstrapd.service.log; do echo \"== %s: $f\"; tail -n 40 $f; done", m.Dir, name)))
			if keep := os.Getenv("NATIVE_KEEP"); keep != "" {
				_ = exec.Command("sh", "-c", fmt.Sprintf("mkdir -p %[2]s && cp %[1]s/*.log %[1]s/console %[2]s/", m.Dir, filepath.Join(keep, name))).Run()
			}
		}
	})
	m.pid = cmd.Process.Pid
	veth := fmt.Sprintf("v%d", i)
	// Of a machine that was here before, the kernel takes the namespace down some time after
	// its processes, and the link with it.
	_ = exec.Command("ip", "link", "del", veth).Run()
	run(r.t, "ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "address", m.mac, "netns", fmt.Sprint(m.pid))
	run(r.t, "ip", "link", "set", veth, "master", "br0", "up")
	run(r.t, "nsenter", "-t", fmt.Sprint(m.pid), "-n", "sh", "-c", "ip addr add "+m.address+"/24 dev eth0 && ip link set eth0 up && ip route add default via 10.98.0.1")
	if _, err := in.Write([]byte("go\n")); err != nil {
		r.t.Fatal(err)
	}
}

// on runs a program on a node.
func (m *machine) on(argv ...string) (string, error) {
	out, err := m.command(context.Background(), argv...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s on %s: %w: %s", strings.Join(argv, " "), m.Name, err, out)
	}
	return string(out), err
}

func (m *machine) command(ctx context.Context, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", fmt.Sprint(m.pid), "-m", "-n", "-u", "-p", "env", "PATH=" + m.Bin + ":" + os.Getenv("PATH")}, argv...)...)
}

// wait polls, generously: the machine is slow and shared.
func (r *rack) wait(limit time.Duration, what string, good func() (bool, string)) {
	r.t.Helper()
	began := time.Now()
	said := ""
	for {
		ok, now := good()
		if now != said {
			said = now
			r.t.Logf("%5.1fs %s: %s", time.Since(began).Seconds(), what, now)
		}
		if ok {
			return
		}
		if time.Since(began) > limit {
			r.t.Fatalf("waited %v in vain for %s: %s", limit, what, now)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (r *rack) views() map[string]*api.MachineView {
	resp, err := r.op.ListMachines(r.t.Context(), connect.NewRequest(&api.ListMachinesRequest{}))
	if err != nil {
		r.t.Logf("listing machines: %v", err)
		return nil // whoever waits asks again
	}
	out := make(map[string]*api.MachineView)
	for _, m := range resp.Msg.GetMachines() {
		out[m.GetName()] = m
	}
	return out
}

var codeRE = regexp.MustCompile(`CODE +([0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4})`)

// approve compares the code on each console with the server's, and arms.
func (r *rack) approve() {
	r.t.Helper()
	for name := range r.nodes {
		r.admit(name)
	}
}

// admit is approve for one node.
func (r *rack) admit(name string) {
	r.t.Helper()
	m := r.nodes[name]
	// systemd would give up on a start that waited for an operator.
	r.wait(5*time.Minute, name+"'s agent to be ready", func() (bool, string) {
		text, err := os.ReadFile(m.Dir + "/bootstrapd.service.log")
		return err == nil && bytes.Contains(text, []byte("notified: READY=1\n")), string(text)
	})
	var code string
	r.wait(5*time.Minute, name+"'s code", func() (bool, string) {
		text, err := os.ReadFile(m.Dir + "/console")
		if err != nil {
			return false, err.Error()
		}
		if found := codeRE.FindSubmatch(text); found != nil {
			code = string(found[1])
		}
		return code != "" && r.views()[name].GetPendingCode() == code, code
	})
	resp, err := r.op.ApproveMachine(r.t.Context(), connect.NewRequest(&api.ApproveMachineRequest{Selection: &api.Selection{Names: []string{name}}, Codes: map[string]string{name: code}}))
	if err != nil || !resp.Msg.GetOutcomes()[0].GetOk() {
		r.t.Fatalf("approving %s: %v %v", name, resp, err)
	}
	armed, err := r.op.ArmMachine(r.t.Context(), connect.NewRequest(&api.ArmMachineRequest{Selection: &api.Selection{Names: []string{name}}}))
	if err != nil || !armed.Msg.GetOutcomes()[0].GetOk() {
		r.t.Fatalf("arming %s: %v %v", name, armed, err)
	}
}

// kill kills the agent as the kernel would.
func (m *machine) kill() error {
	c, err := net.Dial("unix", fmt.Sprintf("/proc/%d/root%s", m.pid, socket))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, "kill bootstrapd.service"); err != nil {
		return err
	}
	_, err = bufio.NewReader(c).ReadString('\n')
	return err
}

// killer kills an agent once for each step that begins and each that ends.
type killer struct {
	mu   sync.Mutex
	done map[string]bool
}

func (k *killer) look(r *rack, views map[string]*api.MachineView) {
	for name, v := range views {
		for _, s := range v.GetSteps() {
			state := s.GetState()
			if state != api.StepStatus_STATE_RUNNING && state != api.StepStatus_STATE_DONE {
				continue
			}
			at := fmt.Sprintf("%s %s %s", name, s.GetName(), strings.TrimPrefix(state.String(), "STATE_"))
			if s.GetName() == "install" {
				at += " " + s.GetDetail()
			}
			if k.done[at] {
				continue
			}
			if err := r.nodes[name].kill(); err != nil {
				r.t.Logf("killing at %s: %v", at, err)
				continue // it is tried again
			}
			k.done[at] = true
			r.t.Logf("killed at %s", at)
			return // one at a time
		}
	}
}

func (r *rack) ready(limit time.Duration, each func(map[string]*api.MachineView)) {
	r.t.Helper()
	r.wait(limit, "the cluster", func() (bool, string) {
		views := r.views()
		each(views)
		status, err := r.op.Status(r.t.Context(), connect.NewRequest(&api.StatusRequest{}))
		if err != nil {
			return false, err.Error()
		}
		var all []string
		for _, m := range status.Msg.GetMachines() {
			now := m.GetState()
			for _, s := range m.GetSteps() {
				if s.GetState() != api.StepStatus_STATE_DONE && s.GetState() != api.StepStatus_STATE_PENDING || s.GetDetail() != "" {
					now += " " + s.GetName() + "=" + strings.TrimPrefix(s.GetState().String(), "STATE_") + " " + s.GetDetail()
				}
			}
			all = append(all, m.GetName()+": "+now)
		}
		return status.Msg.GetReady(), status.Msg.GetSummary() + "; " + strings.Join(all, "; ")
	})
}

func TestARackComesUp(t *testing.T) {
	r := newRack(t, "cp1", "w1")
	began := time.Now()
	r.approve()
	r.ready(15*time.Minute, func(map[string]*api.MachineView) {})
	t.Logf("all nodes Ready %.0f s after power-on", time.Since(began).Seconds())
	r.joined()
	r.check()
	r.policed()
	r.patient()
	r.idle()
	r.rebootWithoutServer()
}

// rebootWithoutServer: the cluster needs its server for change only.
func (r *rack) rebootWithoutServer() {
	r.t.Helper()
	r.stop()
	for _, m := range r.nodes {
		if out, err := m.on("systemctl", "reboot"); err != nil {
			r.t.Fatalf("%v %s", err, out)
		}
	}
	cp := r.nodes["cp1"]
	began := time.Now()
	r.wait(15*time.Minute, "the cluster without its server", func() (bool, string) {
		out, err := cp.on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "get", "--raw", "/readyz")
		if err != nil {
			return false, "the API server is not ready"
		}
		return true, out
	})
	r.wait(15*time.Minute, "the worker without its server", func() (bool, string) {
		out, err := r.nodes["w1"].on("kubectl", "--kubeconfig", "/etc/kubernetes/kubelet.conf", "get", "node", "w1", "--no-headers")
		if err != nil {
			return false, "it does not reach the API server"
		}
		return strings.Contains(out, " Ready "), out
	})
	r.t.Logf("back %.0f s after the reboot of everything, without the server", time.Since(began).Seconds())
}

func TestKilledAtEveryStepItStillComesUp(t *testing.T) {
	r := newRack(t, "cp1", "w1")
	r.approve()
	k := &killer{done: map[string]bool{}}
	r.ready(25*time.Minute, func(v map[string]*api.MachineView) { k.look(r, v) })
	t.Logf("killed %d times until all were Ready", len(k.done))
	k.afterEach(r)
	r.ready(15*time.Minute, func(map[string]*api.MachineView) {})
	r.check()
	r.retires("w1")
}

// afterEach kills the agents after the steps that ended too late for the cluster to wait for: then
// each one's was killed after each of its steps. Before each step is for the tests of package agent: most
// begin and end between two looks of this one.
func (k *killer) afterEach(r *rack) {
	r.t.Helper()
	began := time.Now()
	r.wait(10*time.Minute, "a kill after each step", func() (bool, string) {
		views := r.views()
		k.look(r, views)
		var left []string
		steps := 0
		for name, v := range views {
			if len(v.GetSteps()) == 0 {
				left = append(left, name+" says nothing")
			}
			for _, s := range v.GetSteps() {
				steps++
				if !k.done[fmt.Sprintf("%s %s DONE", name, s.GetName())] {
					left = append(left, name+" "+s.GetName())
				}
			}
		}
		slices.Sort(left)
		return len(views) == len(r.nodes) && steps > 20 && len(left) == 0, strings.Join(left, ", ")
	})
	r.t.Logf("killed after each step of each machine, %d times in all, the last %.1f s", len(k.done), time.Since(began).Seconds())
	// With the agent that was killed last its node's balancer is away, which kubectl calls.
	for name, m := range r.nodes {
		r.wait(5*time.Minute, name+"'s balancer after its agent's last death", func() (bool, string) {
			out, err := m.on("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "https://"+kubeadm.Endpoint+"/readyz")
			return err == nil && out == "200", out
		})
	}
}

// check looks at a cluster that says it is ready.
func (r *rack) check() {
	r.t.Helper()
	cp := r.nodes["cp1"]
	out, err := cp.on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "get", "nodes", "--no-headers")
	if err != nil || strings.Count(out, " Ready ") != len(r.nodes) {
		r.t.Errorf("nodes: %v\n%s", err, out)
	}
	r.t.Logf("%s", out)
	// The version that was asked for runs.
	for _, argv := range [][]string{{"kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "get", "--raw", "/version"}, {"kubeadm", "version", "--output", "json"}, {"kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "--namespace", "kube-system", "get", "configmap", "kubeadm-config", "--output", "yaml"}} {
		if out, err := cp.on(argv...); err != nil || !strings.Contains(out, kubernetesVersion()) {
			r.t.Errorf("%s says nothing of %s: %v %s", strings.Join(argv, " "), kubernetesVersion(), err, out)
		}
	}
	if out, err := cp.on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "get", "configmap", "addon"); err != nil {
		r.t.Errorf("the add-on: %v %s", err, out)
	}
	if out, err := cp.on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "--namespace", "kube-system", "get", "secrets", "--field-selector", "type=bootstrap.kubernetes.io/token", "--no-headers"); err != nil || !strings.Contains(out, "No resources found") {
		r.t.Errorf("there is a bootstrap token: %v %s", err, out)
	}
	if out, err := cp.on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "auth", "can-i", "get", "nodes", "--subresource", "proxy", "--as", "kube-apiserver-kubelet-client"); err != nil || !strings.HasSuffix(strings.TrimSpace(out), "yes") {
		r.t.Errorf("the API server may not ask kubelets for logs: %v %s", err, out)
	}
	// Nobody gets a node's certificate without a person but that node itself.
	for _, may := range []struct{ user, group, what, want string }{
		{"system:node:w1", "system:nodes", "selfnodeclient", "yes"},
		{"system:node:w1", "system:nodes", "nodeclient", "no"},
		{"imagectl:join:w1", "system:bootstrappers:kubeadm:default-node-token", "nodeclient", "no"},
	} {
		// It ends with 1 for no.
		out, _ := cp.on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "auth", "can-i", "create", "certificatesigningrequests.certificates.k8s.io", "--subresource", may.what, "--as", may.user, "--as-group", may.group)
		if f := strings.Fields(out); len(f) == 0 || f[len(f)-1] != may.want {
			r.t.Errorf("%s of %s may have %s approved: got %s, want %s", may.user, may.group, may.what, out, may.want)
		}
	}
	if out, err := cp.on("sh", "-c", "ls /etc/kubernetes/super-admin.conf /etc/kubernetes/pki/etcd/ca.key /etc/kubernetes/pki/etcd-ca.key 2>/dev/null | wc -l"); err != nil || strings.TrimSpace(out) != "0" {
		r.t.Errorf("secrets that nothing needs are on the control plane: %v %s", err, out)
	}
	if out, err := cp.on("sh", "-c", "ls /etc/kubernetes/pki/ca.key /etc/kubernetes/pki/front-proxy-ca.key 2>/dev/null | wc -l"); err != nil || (strings.TrimSpace(out) == "2") != r.conf.Kubernetes.CAKeyOnNodes {
		r.t.Errorf("keys of Kubernetes' CAs on the control plane: %v %s", err, out)
	}
	for name, m := range r.nodes {
		// Only ports of architecture.md listen on the network.
		out, err := m.on("ss", "-Hltn")
		if err != nil {
			r.t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			if len(f) < 4 || strings.HasPrefix(f[3], "127.") || strings.HasPrefix(f[3], "[::1]") {
				continue
			}
			_, port, err := net.SplitHostPort(f[3])
			if err != nil || !strings.Contains(" 2379 2380 6443 50500 ", " "+port+" ") {
				r.t.Errorf("%s listens on %s", name, f[3])
			}
		}
		var kib int
		r.wait(5*time.Minute, name+"'s agent after its last death", func() (bool, string) {
			out, err := m.on("sh", "-c", "grep VmRSS /proc/$(pidof bootstrapd)/status")
			if err != nil {
				return false, err.Error()
			}
			_, err = fmt.Sscanf(strings.Join(strings.Fields(out), " "), "VmRSS: %d kB", &kib)
			return err == nil, strings.TrimSpace(out)
		})
		if kib > 50<<10 {
			r.t.Errorf("%s: bootstrapd has %d KiB", name, kib)
		}
		r.t.Logf("%s: bootstrapd uses %d MiB", name, kib>>10)
	}
	// Anonymous callers learn about health and nothing else. It is not well while etcd takes
	// two seconds for an answer.
	r.wait(time.Minute, "anonymous /readyz", func() (bool, string) {
		got := run(r.t, "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "https://"+cp.address+":6443/readyz")
		return got == "200", got
	})
	for path, want := range map[string]string{"/version": "401", "/api/v1/nodes": "401"} {
		if got := run(r.t, "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "https://"+cp.address+":6443"+path); got != want {
			r.t.Errorf("anonymous %s: got %s, want %s", path, got, want)
		}
	}
}
