//go:build root

package cli

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imagectl/imagectl/images/store"
	testsite "github.com/imagectl/imagectl/test/site"
)

// Two clusters on one segment of one host: server and machine of each.
const (
	prodServer, prodCard, prodMachine = "10.94.0.2", "52:54:00:00:0a:01", "10.94.0.11"
	labServer, labCard, labMachine    = "10.94.0.3", "52:54:00:00:0b:01", "10.94.0.21"
)

// besideSite is the directory of one of them. They differ in the context file and the name, too.
func besideSite(t *testing.T, name, server, card, machine, unknown, pool, neighbours string) string {
	t.Helper()
	dir := siteWith(t, fmt.Sprintf(`server: {address: %s}
boot:
  interface: br94
  dhcp: authoritative
  unknown: %s
  neighbours: %s
  subnets: [{cidr: 10.94.0.0/24, range: {first: 10.94.0.%s0, last: 10.94.0.%[4]s9}, lease: 2m}]
  ipxe: {bios: /usr/lib/ipxe/undionly.kpxe, uefi: /usr/lib/ipxe/snponly.efi}
machines:
  - {name: %[5]s1, role: control-plane, match: {mac: [%[6]q]}, address: %[7]s, disk: {path: /dev/vda}}
`, server, unknown, neighbours, pool, name, card, machine), nil)
	path := filepath.Join(dir, "cluster.yaml")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(b, []byte("cluster: demo\n"), []byte("cluster: "+name+"\n"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := testsite.Complete(dir, func(store.Format) int64 { return 100 }); err != nil {
		t.Fatal(err)
	}
	return dir
}

// besideServer is an imagectl serve of one of several clusters.
type besideServer struct {
	*served
	name, dir string
}

func startBeside(t *testing.T, name, dir string) besideServer {
	t.Helper()
	return besideServer{startServeOf(t, name, dir, []string{"IMAGECTL_CONFIG=" + filepath.Join(dir, "context.json")}, "--debug"), name, dir}
}

// stop ends it and returns its log.
func (s besideServer) stop(t *testing.T, how syscall.Signal) string {
	t.Helper()
	if err := s.Process.Signal(how); err != nil {
		t.Fatal(err)
	}
	_ = s.Wait()
	return s.errors.String()
}

// rackWire is a machine: a card of its own in a network namespace of its own.
type rackWire struct {
	t   *testing.T
	pid int
}

func newWire(t *testing.T, n int, mac string) rackWire {
	t.Helper()
	holder := exec.Command("unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("a namespace: %q, %v", line, err)
	}
	w := rackWire{t, holder.Process.Pid}
	port := fmt.Sprintf("wire%d", n)
	shell(t, fmt.Sprintf("ip link add %s type veth peer name eth0 address %s netns %d && ip link set %[1]s master br94 up", port, mac, w.pid))
	w.run("ip", "link", "set", "eth0", "up")
	return w
}

func shell(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func (w rackWire) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", w.pid), "--"}, args...)...)
}

func (w rackWire) run(args ...string) string {
	w.t.Helper()
	out, err := w.command(args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// udhcpc is busybox's client, which says by whom it was given what.
func (w rackWire) udhcpc(more ...string) string {
	w.t.Helper()
	return w.run(append([]string{"busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "60", "-T", "1", "-s", "/bin/true"}, more...)...)
}

// dhclient is ISC's, until it has what it wants. lease is a file of an earlier lease, with which
// it begins by asking for that, for so many seconds.
func (w rackWire) dhclient(lease string, asks int) string {
	w.t.Helper()
	dir := w.t.TempDir()
	path, err := exec.LookPath("dhclient")
	if err != nil {
		w.t.Fatal(err)
	}
	program, err := os.ReadFile(path) // where it is installed, AppArmor keeps it from these files
	if err != nil {
		w.t.Fatal(err)
	}
	for name, content := range map[string]string{"dhclient": string(program), "conf": fmt.Sprintf("timeout 60;\nreboot %d;\n", asks), "leases": lease} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			w.t.Fatal(err)
		}
	}
	c := w.command(filepath.Join(dir, "dhclient"), "-4", "-d", "-1", "-v", "-cf", filepath.Join(dir, "conf"), "-sf", "/bin/true",
		"-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "eth0")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	var said strings.Builder
	for in := bufio.NewScanner(out); in.Scan(); {
		fmt.Fprintln(&said, in.Text())
		if strings.HasPrefix(in.Text(), "bound to ") {
			return said.String()
		}
	}
	w.t.Fatalf("dhclient was not bound:\n%s", said.String())
	return ""
}

// lease is dhclient's file, of an address that it had.
func lease(address, server string) string {
	return fmt.Sprintf(`lease { interface "eth0"; fixed-address %s; option subnet-mask 255.255.255.0; option dhcp-server-identifier %s;
  option dhcp-lease-time 7200; renew 1 2035/01/01 00:00:00; rebind 1 2035/01/01 01:00:00; expire 1 2035/01/01 02:00:00; }
`, address, server)
}

// renewing is busybox's client, told to renew as soon as it has an address: by a message to its
// server alone.
func (w rackWire) renewing(want string) {
	w.t.Helper()
	script := filepath.Join(w.t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ -z \"$ip\" ] || ip address replace $ip/24 dev eth0\n"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	c := w.command("busybox", "udhcpc", "-i", "eth0", "-f", "-t", "60", "-T", "1", "-s", script)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	var said strings.Builder
	renewed := false
	for in := bufio.NewScanner(out); in.Scan(); {
		fmt.Fprintln(&said, in.Text())
		if !strings.Contains(in.Text(), " obtained from ") {
			continue
		}
		if !strings.Contains(in.Text(), want) {
			break
		}
		if renewed {
			break
		}
		renewed = true
		if err := c.Process.Signal(syscall.SIGUSR1); err != nil {
			w.t.Fatal(err)
		}
	}
	if got := said.String(); strings.Count(got, want) != 2 || !strings.Contains(got, "sending renew") || strings.Contains(got, "NAK") {
		w.t.Errorf("renewing: want %q twice:\n%s", want, got)
	}
}

// Two clusters have a server each on one interface of one host. Each machine is answered by the
// one whose cluster.yaml lists it, strangers by the one that discovers, and neither server
// notices the other's life or death.
func TestTwoClustersOnOneInterface(t *testing.T) {
	shell(t, "ip link set lo up; ip link add br94 type bridge forward_delay 0; ip addr add "+prodServer+"/24 dev br94; ip addr add "+labServer+"/24 dev br94; ip link set br94 up")
	prodDir := besideSite(t, "prod", prodServer, prodCard, prodMachine, "discover", "10", fmt.Sprintf("[{address: %s, machines: [%q]}]", labServer, labCard))
	labDir := besideSite(t, "lab", labServer, labCard, labMachine, "ignore", "12", fmt.Sprintf("[{address: %s}]", prodServer))
	if out, errs, code := imagectl(t, "validate", filepath.Join(prodDir, "cluster.yaml"), filepath.Join(labDir, "cluster.yaml")); code != 0 || !strings.Contains(out, "clusters prod, lab are valid, and can be served side by side") {
		t.Errorf("validate: %d, %s%s", code, out, errs)
	}
	prod, lab := startBeside(t, "prod", prodDir), startBeside(t, "lab", labDir)
	t.Logf("resident: %d and %d MiB", residentMiB(t, prod.Process.Pid), residentMiB(t, lab.Process.Pid))

	a, b, stranger := newWire(t, 1, prodCard), newWire(t, 2, labCard), newWire(t, 3, "52:54:00:00:0c:01")
	fromProd, fromLab := "lease of "+prodMachine+" obtained from "+prodServer, "lease of "+labMachine+" obtained from "+labServer
	said := func(what, got, want string) {
		t.Helper()
		if !strings.Contains(got, want) || strings.Contains(got, "NAK") {
			t.Errorf("%s: want %q and no NAK:\n%s", what, want, got)
		}
	}
	for range 3 {
		said("udhcpc of prod's", a.udhcpc(), fromProd)
		said("udhcpc of lab's", b.udhcpc(), fromLab)
		said("udhcpc of a stranger", stranger.udhcpc(), "lease of 10.94.0.100 obtained from "+prodServer)
		said("firmware of prod's", a.udhcpc("-V", "PXEClient:Arch:00000:UNDI:002001"), fromProd)
		said("firmware of lab's", b.udhcpc("-V", "PXEClient:Arch:00000:UNDI:002001"), fromLab)
	}
	a.renewing(fromProd)
	b.renewing(fromLab)
	said("dhclient of prod's comes back", a.dhclient(lease(prodMachine, prodServer), 60), "DHCPACK of "+prodMachine+" from "+prodServer)
	said("dhclient of lab's comes back", b.dhclient(lease(labMachine, labServer), 60), "DHCPACK of "+labMachine+" from "+labServer)
	other := newWire(t, 4, "52:54:00:00:0c:02") // of which prod knows nothing yet
	said("a stranger with an address of lab's, which nobody answers", other.dhclient(lease("10.94.0.125", labServer), 2), "DHCPACK of 10.94.0.101 from "+prodServer)
	if got := b.dhclient(lease("10.94.0.105", prodServer), 60); !strings.Contains(got, "DHCPNAK from "+labServer) || strings.Contains(got, "from "+prodServer) || !strings.Contains(got, "DHCPACK of "+labMachine+" from "+labServer) {
		t.Errorf("lab's machine with an address that it had in prod:\n%s", got)
	}

	foreignPersons(t, prod, lab)

	log := prod.stop(t, syscall.SIGKILL)
	quiet(t, log, labCard)
	said("with prod dead, lab's", b.udhcpc(), fromLab)
	if out, err := a.command("busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "3", "-T", "1", "-s", "/bin/true").CombinedOutput(); err == nil || !strings.Contains(string(out), "no lease, failing") {
		t.Errorf("with prod dead, prod's: %v\n%s", err, out)
	}
	t.Chdir(prodDir)
	if _, errs, code := imagectl(t, "serve", "--state", filepath.Join(labDir, "state")); code != exitFailed || !strings.Contains(errs, fmt.Sprintf("another imagectl serve is using it (process %d)", lab.Process.Pid)) {
		t.Errorf("two servers on one state: %d, %s", code, errs)
	}
	prod = startBeside(t, "prod", prodDir)
	if _, errs, code := imagectl(t, "serve", "--state", filepath.Join(t.TempDir(), "state")); code != exitFailed || !strings.Contains(errs, "listening on udp "+prodServer+":67: port 67 is taken by ") {
		t.Errorf("two servers at one address: %d, %s", code, errs)
	}
	said("udhcpc of prod's, which is back", a.udhcpc(), fromProd)
	said("udhcpc of lab's, which has seen none of it", b.udhcpc(), fromLab)
	quiet(t, prod.stop(t, syscall.SIGTERM), labCard)
	quiet(t, lab.stop(t, syscall.SIGTERM), prodCard)
}

// quiet looks into a server's log for any answer to a card of the other's, and for the other
// taken for a stranger's.
func quiet(t *testing.T, log, card string) {
	t.Helper()
	heard := 0
	for line := range strings.Lines(log) {
		if strings.Contains(line, "another DHCP server") || strings.Contains(line, "other-server") || strings.Contains(line, "reply not sent") {
			t.Errorf("the log says %s", line)
		}
		if strings.Contains(line, "mac="+card) && strings.Contains(line, "msg=request") {
			heard++
			if !strings.Contains(line, "code=neighbour") {
				t.Errorf("the other's machine was answered: %s", line)
			}
		}
	}
	if heard == 0 {
		t.Errorf("nothing was heard of %s, so nothing is shown; the log ends with %s", card, log[max(0, len(log)-600):])
	}
}

// foreignPersons lets operators of each cluster call the other one's server.
func foreignPersons(t *testing.T, prod, lab besideServer) {
	t.Helper()
	context := func(s besideServer) serverContext {
		b, err := os.ReadFile(filepath.Join(s.dir, "context.json"))
		if err != nil {
			t.Fatal(err)
		}
		all, err := parseContexts(b)
		if err != nil {
			t.Fatal(err)
		}
		return all[0]
	}
	ofProd, ofLab := context(prod), context(lab)
	stranger := ofLab
	stranger.Certificate, stranger.Key = ofProd.Certificate, ofProd.Key
	led := ofProd
	led.Server, led.Servers = ofLab.Server, nil
	for name, c := range map[string]struct {
		context serverContext
		want    string
	}{
		"prod's at prod's": {ofProd, ""}, "lab's at lab's": {ofLab, ""},
		"prod's, who trusts lab": {stranger, "the server at " + labServer + ":8443 and this context file do not trust each other"},
		"prod's, led to lab":     {led, "the server at " + labServer + ":8443 and this context file do not trust each other"},
	} {
		path := filepath.Join(t.TempDir(), "context.json")
		if err := c.context.write(path); err != nil {
			t.Fatal(err)
		}
		t.Setenv("IMAGECTL_CONFIG", path)
		out, errs, code := imagectl(t, "machines", "ls")
		if (code == 0) != (c.want == "") || !strings.Contains(errs, c.want) {
			t.Errorf("%s: %d, %s%s; want %q", name, code, out, errs, c.want)
		}
	}
	// Both in one file: --cluster says which.
	path := filepath.Join(t.TempDir(), "context.json")
	for _, c := range []serverContext{ofProd, ofLab} {
		if err := c.write(path); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("IMAGECTL_CONFIG", path)
	for _, s := range []besideServer{prod, lab} {
		for _, args := range [][]string{{"machines", "ls", "--cluster", s.name}, {"machines", "ls", "-f", filepath.Join(s.dir, "cluster.yaml")}} {
			if out, errs, code := imagectl(t, args...); code != 0 || !strings.Contains(out, s.name+"1") {
				t.Errorf("%v: %d, %s%s", args, code, out, errs)
			}
		}
	}
}
