//go:build root

package native

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

const (
	apiVIP = "10.98.0.100"
	// vipGap is for how long the API may not answer at that address.
	vipGap = 10 * time.Second
)

// An address of the API that moves: three control planes that live already get one, and
// its holder loses one thing after the other, while somebody on a host of the same network
// asks at that address, and a node through its own balancer. Never do two kernels have it.
func TestVIP(t *testing.T) {
	r := darkRack(t, func(*serverapi.Config) {}, "cp1", "cp2", "cp3")
	v := &vipDrills{rack: r, host: newProbe(t), veth: map[string]int{}, next: 1}
	for _, name := range []string{"cp1", "cp2", "cp3"} {
		v.on(name)
	}
	r.approve()
	r.ready(40*time.Minute, func(map[string]*api.MachineView) {})
	r.voters(3)
	r.threeAPIServers()

	// cluster.yaml gets an address, and the server begins anew with it.
	r.stop()
	r.conf.Kubernetes.APIVIP = []netip.Addr{netip.MustParseAddr(apiVIP)}
	r.up()
	began := time.Now()
	v.plug()
	v.sample()
	r.wait(20*time.Minute, "certificates that name the address, one API server after the other", func() (bool, string) {
		var named []string
		for name, m := range r.nodes {
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", m.address+":6443", &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				continue
			}
			if c.ConnectionState().PeerCertificates[0].VerifyHostname(apiVIP) == nil {
				named = append(named, name)
			}
			c.Close()
		}
		slices.Sort(named)
		return len(named) == 3, fmt.Sprint(named)
	})
	t.Logf("three API servers show a certificate with the address %.0f s after cluster.yaml has it", time.Since(began).Seconds())
	r.ready(10*time.Minute, func(map[string]*api.MachineView) {})
	v.settled()
	holder := v.holder()
	r.wait(time.Minute, "status to say where it is", func() (bool, string) {
		s, err := r.op.Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
		if err != nil {
			return false, err.Error()
		}
		notes := strings.Join(s.Msg.GetNotes(), "\n")
		return strings.Contains(notes, "the API's address "+apiVIP+" is on "+v.holder()), notes
	})
	// A stranger to the cluster's machines gets in, through the firewall of the holder.
	if out, err := r.nodes[holder].on("nft", "list", "table", "inet", "imagectl"); err != nil || !strings.Contains(out, "6443") {
		t.Errorf("%s has no firewall: %v %s", holder, err, out)
	}
	if out, err := v.other(holder).on("kubectl", "--kubeconfig", kubeadm.AdminConf, "--server", "https://"+apiVIP+":6443", "get", "nodes", "--output", "name"); err != nil || strings.Count(out, "node/") != 3 {
		t.Errorf("kubectl at the address: %v %s", err, out)
	}
	v.idle()

	v.run("API server killed", func(m *machine) (func(), string) {
		m.killProgram(t, "kube-apiserver")
		return nil, ""
	})
	v.run("no power", func(m *machine) (func(), string) {
		m.off(t)
		return func() { v.on(m.Name) }, ""
	})
	v.run("agent stopped (SIGSTOP)", func(m *machine) (func(), string) {
		m.signalProgram(t, "bootstrapd", syscall.SIGSTOP)
		return func() {
			now := v.holder()
			if now == m.Name {
				t.Errorf("%s has the address although its agent stands still", now)
			}
			if out, want := v.neighbours(), r.nodes[now].mac; !strings.Contains(out, want) {
				t.Errorf("the host outside sends to %s, want %s of %s", out, want, now)
			}
			m.signalProgram(t, "bootstrapd", syscall.SIGCONT)
			woken := time.Now()
			r.wait(5*time.Minute, m.Name+"'s report", func() (bool, string) {
				at := v.views()[m.Name].GetLastSeen().AsTime()
				return at.After(woken.Add(2 * time.Second)), at.Format(time.TimeOnly)
			})
			if h := v.holder(); h != now {
				t.Errorf("when %s woke up, the address went from %s to %s", m.Name, now, h)
			}
		}, ""
	})
	v.run("cut off from the network", func(m *machine) (func(), string) {
		link := fmt.Sprintf("v%d", v.veth[m.Name])
		run(t, "ip", "link", "set", link, "nomaster")
		return func() { run(t, "ip", "link", "set", link, "master", "br0") }, ""
	})
	v.run("agent killed (kill -9)", func(m *machine) (func(), string) {
		if err := m.kill(); err != nil {
			t.Fatal(err)
		}
		return nil, "may stay"
	})
	v.run("agent stopped by systemd", func(m *machine) (func(), string) {
		if out, err := m.on("systemctl", "stop", "bootstrapd.service"); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		return func() {
			if out, err := m.on("systemctl", "start", "bootstrapd.service"); err != nil {
				t.Fatalf("%v %s", err, out)
			}
		}, ""
	})
	for _, row := range v.rows {
		t.Log(row)
	}
}

// vipDrills are rows of a table.
type vipDrills struct {
	*rack
	host *probe
	// veth are the numbers of the machines' cables.
	veth   map[string]int
	next   int
	client int
	// outside asks at the address.
	outside *tally
	rows    []string

	mu sync.Mutex
	// have are the machines whose kernels have the address, twice is for how long two had
	// it, of which says who.
	have  []string
	twice time.Duration
	who   string
	// changes is when have changed.
	changes []string
}

func (v *vipDrills) on(name string) {
	v.nodes[name].Installed = v.veth[name] != 0
	v.veth[name] = v.next
	v.next++
	v.mu.Lock()
	defer v.mu.Unlock()
	v.power(name, v.veth[name])
}

// plug puts a host on the rack's network that is no machine of the cluster.
func (v *vipDrills) plug() {
	v.t.Helper()
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	v.client = cmd.Process.Pid
	run(v.t, "ip", "link", "add", "vclient", "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(v.client))
	run(v.t, "ip", "link", "set", "vclient", "master", "br0", "up")
	run(v.t, "nsenter", "-t", strconv.Itoa(v.client), "-n", "sh", "-c", "ip addr add 10.98.0.99/24 dev eth0 && ip link set eth0 up")
	v.outside = v.ask(v.client, "https://"+apiVIP+":6443/readyz")
}

// ask asks with a new connection each time, until the test ends. What is not signed by the
// cluster's CA for this address is no answer.
func (v *vipDrills) ask(pid int, url string) *tally {
	v.t.Helper()
	ca, err := os.ReadFile(v.nodes["cp1"].root(kubeadm.CAPath))
	if err != nil {
		v.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}, DialContext: dialFrom(pid)}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	out := &tally{last: time.Now()}
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			resp, err := client.Get(url)
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("%s", resp.Status)
				}
			}
			out.note("", err)
			time.Sleep(100 * time.Millisecond)
		}
	}()
	v.t.Cleanup(func() { cancel(); <-done })
	return out
}

// sample looks at all kernels, some fifty times a second, until the test ends.
func (v *vipDrills) sample() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		last := time.Now()
		for ctx.Err() == nil {
			v.mu.Lock()
			var have []string
			for name, m := range v.nodes {
				if m.has(apiVIP) {
					have = append(have, name)
				}
			}
			if len(have) > 1 {
				// The first may have given it away since it was looked at.
				have = slices.DeleteFunc(have, func(name string) bool { return !v.nodes[name].has(apiVIP) })
			}
			slices.Sort(have)
			now := time.Now()
			if len(have) > 1 {
				v.twice += now.Sub(last)
				v.who = fmt.Sprint(have)
			}
			last = now
			if !slices.Equal(have, v.have) {
				v.have = have
				v.changes = append(v.changes, fmt.Sprintf("%s %v", now.Format("15:04:05.00"), have))
			}
			v.mu.Unlock()
			time.Sleep(20 * time.Millisecond)
		}
	}()
	v.t.Cleanup(func() { cancel(); <-done })
}

// has says whether a machine's kernel has an address.
func (m *machine) has(address string) bool {
	ns, err := netns.GetFromPid(m.pid)
	if err != nil {
		return false // it has no power
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return false
	}
	defer h.Close()
	all, err := h.AddrList(nil, netlink.FAMILY_V4)
	return err == nil && slices.ContainsFunc(all, func(a netlink.Addr) bool { return a.IP.String() == address })
}

func (v *vipDrills) holder() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.have) != 1 {
		return ""
	}
	return v.have[0]
}

func (v *vipDrills) other(name string) *machine {
	for _, m := range v.nodes {
		if m.Name != name {
			return m
		}
	}
	return nil
}

// neighbours is what the host outside knows of the address.
func (v *vipDrills) neighbours() string {
	return run(v.t, "nsenter", "-t", strconv.Itoa(v.client), "-n", "ip", "neigh", "show", apiVIP)
}

// settled waits until all control planes are well and the address has answered for five
// seconds.
func (v *vipDrills) settled() {
	v.t.Helper()
	probe := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	var since time.Time
	v.wait(15*time.Minute, "all to be well", func() (bool, string) {
		for name, m := range v.nodes {
			resp, err := probe.Get("https://" + m.address + ":6443/readyz")
			if err != nil {
				since = time.Time{}
				return false, name + "'s API server does not answer"
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				since = time.Time{}
				return false, name + "'s API server is not ready"
			}
		}
		if v.holder() == "" {
			since = time.Time{}
			return false, "nobody has the address"
		}
		if since.IsZero() {
			since = time.Now()
		}
		return time.Since(since) > 5*time.Second, "it is on " + v.holder()
	})
}

// run does something to the holder, and prints how long the address did not answer, beside
// the balancer of a node that nothing was done to.
func (v *vipDrills) run(what string, f func(*machine) (heal func(), expect string)) {
	v.t.Helper()
	v.settled()
	from, began := v.holder(), time.Now()
	inside := v.ask(v.other(from).pid, "https://"+kubeadm.Endpoint+"/readyz")
	time.Sleep(time.Second) // it has asked some times
	v.outside.since(0)
	inside.since(0)
	v.mu.Lock()
	v.changes, v.twice = nil, 0
	v.mu.Unlock()
	before := v.outside.count()
	heal, expect := f(v.nodes[from])
	v.wait(5*time.Minute, what+": the address on another machine", func() (bool, string) {
		h := v.holder()
		return h != "" && (h != from || expect != "") && v.outside.count() > before+20, fmt.Sprintf("it is on %s", h)
	})
	to := v.holder()
	_, out := v.outside.since(0)
	_, in := inside.since(0)
	if heal != nil {
		heal()
	}
	v.settled()
	_, back := v.outside.since(0)
	v.mu.Lock()
	twice, who, changes := v.twice, v.who, v.changes
	v.mu.Unlock()
	row := fmt.Sprintf("%-28s %s → %s  at the address %5.2f s  through a balancer %5.2f s  until all was well again %5.2f s  two had it for %v", what, from, to, out.Seconds(), in.Seconds(), back.Seconds(), twice)
	v.rows = append(v.rows, row)
	v.t.Logf("%s\n%s", row, strings.Join(changes, "\n"))
	if twice > 0 {
		v.t.Errorf("%s: %s had the address at once for %v", what, who, twice)
	}
	v.host.meets(v.t, what+": longest time without an answer at the address", max(out, back), vipGap, began)
}

// programs are the processes of a node with a name.
func (m *machine) programs(t *testing.T, name string) (pids []int) {
	t.Helper()
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", m.pid))
	if err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range all {
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil || strings.TrimSpace(string(comm)) != name {
			continue
		}
		if ns, err := os.Readlink(dir + "/ns/pid"); err != nil || ns != own {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func (m *machine) signalProgram(t *testing.T, name string, s syscall.Signal) {
	t.Helper()
	pids := m.programs(t, name)
	if len(pids) == 0 {
		t.Fatalf("%s runs no %s", m.Name, name)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *machine) killProgram(t *testing.T, name string) {
	t.Helper()
	m.signalProgram(t, name, syscall.SIGKILL)
}

// idle prints what the agents use while nothing happens.
func (v *vipDrills) idle() {
	v.t.Helper()
	const during = 30 * time.Second
	used := func() map[string]int {
		out := map[string]int{}
		for name, m := range v.nodes {
			for _, pid := range m.programs(v.t, "bootstrapd") {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
				if err != nil {
					v.t.Fatal(err)
				}
				f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
				for _, i := range []int{14, 15} { // utime and stime of proc(5), in hundredths of a second
					n, err := strconv.Atoi(f[i-3])
					if err != nil {
						v.t.Fatal(err)
					}
					out[name] += n
				}
			}
		}
		return out
	}
	before := used()
	time.Sleep(during) // what is measured is time
	for name, after := range used() {
		v.t.Logf("%s: bootstrapd used %.2f %% of a core for %v", name, float64(after-before[name])/during.Seconds(), during)
	}
}
