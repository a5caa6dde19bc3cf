//go:build root

package cli

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
)

// These tests run in a network namespace of their own: make test-root.

const rackAddress = "10.97.0.1"

// rackSite is a site on a network of this host's, with iPXE as Debian has it.
func rackSite(t *testing.T, machines int) string {
	t.Helper()
	if out, err := exec.Command("sh", "-c", "ip link set lo up; ip link show br97 >/dev/null 2>&1 || { ip link add br97 type bridge && ip addr add "+rackAddress+"/16 dev br97 && ip link set br97 up; }").CombinedOutput(); err != nil {
		t.Fatalf("making the boot network: %v: %s", err, out)
	}
	var y strings.Builder
	fmt.Fprintf(&y, `server: {address: %s}
boot:
  interface: br97
  dhcp: authoritative
  subnets:
    - cidr: 10.97.0.0/16
      range: {first: 10.97.250.1, last: 10.97.250.250}
  ipxe: {bios: /usr/lib/ipxe/undionly.kpxe, uefi: /usr/lib/ipxe/snponly.efi}
machines:
  - {name: cp1, role: control-plane, match: {mac: ["52:54:00:00:00:00"]}, address: 10.97.1.1, disk: {path: /dev/vda}}
`, rackAddress)
	for i := 1; i < machines; i++ {
		fmt.Fprintf(&y, "  - {name: w%d, role: worker, match: {mac: [\"52:54:00:00:%02x:%02x\"]}, address: 10.97.%d.%d, disk: {path: /dev/vda}}\n",
			i, i>>8, i&255, 2+i/200, 1+i%200)
	}
	return siteWith(t, y.String(), nil)
}

// served is a running imagectl serve.
type served struct {
	*exec.Cmd
	errors bytes.Buffer
}

// startServe runs this test binary as imagectl and waits for its readiness line.
func startServe(t *testing.T, dir string) *served {
	t.Helper()
	return startServeOf(t, "demo", dir, nil)
}

// startServeOf does so for a cluster of any name, with more variables and arguments.
func startServeOf(t *testing.T, name, dir string, env []string, args ...string) *served {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &served{Cmd: &exec.Cmd{Path: self, Args: append([]string{"imagectl", "serve", "--state", filepath.Join(dir, "state")}, args...), Dir: dir,
		Env: append(os.Environ(), env...), SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}}
	s.Stderr = &s.errors
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Process.Kill(); _ = s.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "imagectl serve: ready: cluster "+name+", ") {
		_ = s.Process.Kill()
		_ = s.Wait()
		t.Fatalf("serve of %s says %q, %v\n%s", name, line, err, s.errors.String())
	}
	return s
}

func TestServeSurvivesKillAndStopsOnRequest(t *testing.T) {
	dir := rackSite(t, 3)
	s := startServe(t, dir)

	if out, errs, code := imagectl(t, "machines", "arm", "cp1", "w1"); code != 0 {
		t.Fatalf("arm: %d, %s%s", code, out, errs)
	}
	if err := s.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.Wait() // it was killed
	if _, errs, code := imagectl(t, "status"); code != 1 || !strings.Contains(errs, "no imagectl serve answers at 10.97.0.1:8443") {
		t.Errorf("status without a server: %d, %s", code, errs)
	}

	s = startServe(t, dir)
	out, errs, code := imagectl(t, "machines", "ls", "-o", "json")
	if code != 0 {
		t.Fatalf("ls: %s", errs)
	}
	var machines []struct{ Name, State, Address string }
	if err := json.Unmarshal([]byte(out), &machines); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(machines)
	if want := "[{cp1 armed 10.97.1.1} {w1 armed 10.97.2.2} {w2 approved 10.97.2.3}]"; got != want {
		t.Errorf("after a kill: got %s, want %s", got, want)
	}
	for name, want := range map[string]string{"w1": "w1 (armed): install (armed)", "w2": "w2 (approved): local (not-armed)", "52:54:00:00:ff:ff": "discover (unknown-machine)"} {
		if out, errs, code := imagectl(t, "why", name); code != 0 || !strings.Contains(out, want) {
			t.Errorf("why %s: %d, %s%s; want %s", name, code, out, errs, want)
		}
	}
	resp, err := http.Get("http://" + rackAddress + ":8080/ignition?mac=52:54:00:00:00:01")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte("imagectl.raw")) || bytes.Contains(body, []byte("PRIVATE")) {
		t.Errorf("ignition: %s, %s, %v", resp.Status, body, err)
	}
	resp.Body.Close()
	seenFromOutside(t)
	if out, err := exec.Command("ss", "-Hltn").Output(); err != nil || strings.Count(string(out), "\n") != 2 {
		t.Errorf("want two TCP listeners, 8080 and 8443: %v\n%s", err, out)
	}

	began := time.Now()
	if err := s.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err != nil || time.Since(began) > time.Minute {
		t.Errorf("stopping: %v after %v\n%s", err, time.Since(began), s.errors.String())
	}
}

// seenFromOutside looks at what serve shows of itself, as anybody and as operator.
func seenFromOutside(t *testing.T) {
	t.Helper()
	r, err := (&globals{}).dial()
	if err != nil {
		t.Fatal(err)
	}
	anybody := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pki.Pool(r.roots)}, ForceAttemptHTTP2: true}}
	operator := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pki.Pool(r.roots), Certificates: []tls.Certificate{r.cert}}, ForceAttemptHTTP2: true}}
	get := func(c *http.Client, url string, size int64) (int, string) {
		t.Helper()
		resp, err := c.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if size == 0 { // a stream: its first message
			line, err := bufio.NewReader(resp.Body).ReadString('}')
			if err != nil {
				t.Fatalf("%s: %v", url, err)
			}
			return resp.StatusCode, line
		}
		b, err := io.ReadAll(io.LimitReader(resp.Body, size))
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	const https, public = "https://" + rackAddress + ":8443", "http://" + rackAddress + ":8080"
	// A request is counted when its answer has left.
	const counted = `imagectl_http_requests_total{route="ignition",status="200"} 1`
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, body := get(operator, https+"/metrics", 1<<20); strings.Contains(body, counted) {
			break
		}
	}
	for _, tt := range []struct {
		client *http.Client
		url    string
		size   int64
		status int
		want   string
	}{
		{anybody, https + "/", 1 << 20, 200, "<!DOCTYPE html>"},
		{anybody, https + "/events", 0, 200, `"operator":false,"view":{"cluster":"demo"`},
		{operator, https + "/events", 0, 200, `"operator":true,"view":{"cluster":"demo"`},
		{anybody, https + "/metrics", 1 << 20, 401, "needs a client certificate"},
		{operator, https + "/metrics", 1 << 20, 200, `imagectl_machine_state_entered_timestamp_seconds{machine="w1",state="armed"}`},
		{operator, https + "/metrics", 1 << 20, 200, `imagectl_dhcp_pool_addresses{subnet="10.97.0.0/16"} 250`},
		{operator, https + "/metrics", 1 << 20, 200, counted},
		{anybody, public + "/metrics", 1 << 20, 404, ""},
		{anybody, public + "/events", 1 << 20, 404, ""},
		{anybody, public + "/", 1 << 20, 404, ""},
	} {
		if status, body := get(tt.client, tt.url, tt.size); status != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s: got %d, %.300s; want %d, %s", tt.url, status, body, tt.status, tt.want)
		}
	}
}

func TestServeWithAThousandMachinesIsSmall(t *testing.T) {
	dir := rackSite(t, 1000)
	began := time.Now()
	s := startServe(t, dir)
	t.Logf("first start with 1,000 machines: %v", time.Since(began).Round(time.Millisecond))
	for range 3 {
		if out, errs, code := imagectl(t, "machines", "ls", "-o", "json"); code != 0 || strings.Count(out, `"state"`) != 1000 {
			t.Fatalf("ls: %d, %s", code, errs)
		}
	}
	look(t)
	if got := residentMiB(t, s.Process.Pid); got > 150 {
		t.Errorf("%d MiB resident with 1,000 machines, want at most 150", got)
	} else {
		t.Logf("%d MiB resident with 1,000 machines", got)
	}
}

// look fetches the dashboard's first message and the metrics, as a viewer and a
// monitoring system would again and again.
func look(t *testing.T) {
	t.Helper()
	r, err := (&globals{}).dial()
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pki.Pool(r.roots), Certificates: []tls.Certificate{r.cert}}, ForceAttemptHTTP2: true}}
	for range 5 {
		for path, want := range map[string]string{"/events": `"name":"w999"`, "/metrics": `{machine="w999",state="approved"}`} {
			began := time.Now()
			resp, err := c.Get(r.Server + path)
			if err != nil {
				t.Fatal(err)
			}
			found, size := false, 0
			for lines := bufio.NewReaderSize(resp.Body, 1<<20); !found; {
				line, err := lines.ReadString('\n')
				size += len(line)
				if found = strings.Contains(line, want); err != nil {
					break
				}
			}
			resp.Body.Close()
			if !found {
				t.Fatalf("%s has no %s", path, want)
			}
			t.Logf("%s: %d KiB in %v", path, size>>10, time.Since(began).Round(time.Millisecond))
		}
	}
}

func residentMiB(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

func TestServeSaysWhatIsMissing(t *testing.T) {
	dir := rackSite(t, 2)
	t.Chdir(dir)
	state := filepath.Join(dir, "state")
	fails := func(want string) {
		t.Helper()
		if _, errs, code := imagectl(t, "serve", "--state", state); code == 0 || !strings.Contains(errs, want) {
			t.Errorf("got %d, %s; want %s", code, errs, want)
		}
	}
	s := startServe(t, dir)
	fails("port 67 is taken by ")
	if err := s.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = s.Wait()

	kernel, err := os.ReadFile("out/demo-pxe.vmlinuz")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("out/demo-pxe.vmlinuz", bytes.Repeat([]byte("X"), len(kernel)), 0o644); err != nil {
		t.Fatal(err)
	}
	fails("out/demo-pxe.vmlinuz was changed after it was built")
	if err := os.WriteFile("out/demo-worker.raw.zst", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("out/demo-pxe.vmlinuz", kernel, 0o644); err != nil {
		t.Fatal(err)
	}
	fails("out/demo-worker.raw.zst has 0 bytes, the manifest says 100: run imagectl build")
	if err := os.Remove("out/" + store.ManifestName); err != nil {
		t.Fatal(err)
	}
	fails("there is no out/manifest.json: run imagectl build")
	if err := os.Remove(lock.FileName); err != nil {
		t.Fatal(err)
	}
	fails("imagectl.lock is missing; run imagectl lock")
}

// Each port that is somebody else's is named, and nothing of ours stays open for it.
func TestServeLetsGoOfEverythingWhenAPortIsTaken(t *testing.T) {
	dir := rackSite(t, 2)
	t.Chdir(dir)
	certificate, key := bootCertificate(t, rackAddress, time.Now())
	for name, b := range map[string][]byte{"boot.crt": certificate, "boot.key": key} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	sockets := func() string {
		t.Helper()
		out, err := exec.Command("ss", "-Hlntuw").Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	by := fmt.Sprintf("is taken by %s (pid %d); stop it, or let it use another interface: ", strings.TrimSpace(string(self)), os.Getpid())
	for _, c := range []struct{ network, address, want string }{
		{"udp4", "0.0.0.0:67", "listening on udp 0.0.0.0:67: port 67 " + by},
		{"udp4", rackAddress + ":69", "listening on udp " + rackAddress + ":69: port 69 " + by},
		{"tcp4", rackAddress + ":8080", "listening on tcp " + rackAddress + ":8080: port 8080 " + by},
		{"tcp4", rackAddress + ":8443", "listening on tcp " + rackAddress + ":8443: port 8443 " + by},
		{"tcp4", rackAddress + ":8444", "listening on tcp " + rackAddress + ":8444: port 8444 " + by},
		{"tcp4", "127.0.0.1:9640", "listening for /metrics: listen tcp 127.0.0.1:9640: bind: address already in use; let --metrics name another port"},
	} {
		var held io.Closer
		var err error
		if c.network == "udp4" {
			held, err = net.ListenPacket(c.network, c.address)
		} else {
			held, err = net.Listen(c.network, c.address)
		}
		if err != nil {
			t.Fatal(err)
		}
		before := sockets()
		out, errs, code := imagectl(t, "serve", "--state", "state", "--boot-tls-cert", "boot.crt", "--boot-tls-key", "boot.key", "--metrics", "127.0.0.1:9640")
		if code != exitFailed || out != "" || !strings.HasPrefix(errs, "imagectl: "+c.want) {
			t.Errorf("%s: got %d, %s%s; want %s", c.address, code, out, errs, c.want)
		}
		if after := sockets(); after != before {
			t.Errorf("%s: open sockets before\n%safter\n%s", c.address, before, after)
		}
		held.Close()
	}
	for _, path := range []string{"state", "context.json"} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s was made: %v", path, err)
		}
	}
}
