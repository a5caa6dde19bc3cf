//go:build root

package native

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// etcd's certificates are renewed while etcd runs, and those who call it use their new ones:
// openssl sees others on both of etcd's ports, etcd is the process that it was, and when
// the first ones have ended the API server and the agent reach an etcd that was started
// anew, which asks for certificates that are good now.
func TestCertificatesOfEtcdAreRenewed(t *testing.T) {
	// A third of it is when they are due, and the agent tries every ten minutes.
	const life = 12 * time.Minute
	r := darkRack(t, func(c *serverapi.Config) { c.Lifetimes.Leaf = life }, "cp1")
	r.power("cp1", 1)
	r.approve()
	r.ready(15*time.Minute, func(map[string]*api.MachineView) {})
	cp := r.nodes["cp1"]
	pids := cp.programs(t, "etcd")
	if len(pids) != 1 {
		t.Fatalf("etcd's processes: %v", pids)
	}
	ports := []string{"2379", "2380"}
	files := []string{etcd.ServerPath, etcd.PeerPath, etcd.ClientPath}
	first, firstFiles := map[string]string{}, map[string]string{}
	var ends time.Time
	for _, port := range ports {
		first[port] = cp.presents(t, port, "-serial")
		end, err := time.Parse("Jan _2 15:04:05 2006 MST", strings.TrimPrefix(cp.presents(t, port, "-enddate"), "notAfter="))
		if err != nil {
			t.Fatal(err)
		}
		if end.After(ends) {
			ends = end
		}
	}
	for _, f := range files {
		firstFiles[f] = cp.serialOf(t, f)
	}
	t.Logf("the first ones end in %.0f s", time.Until(ends).Seconds())

	asked := r.ask("cp1")
	r.wait(life, "others in the files", func() (bool, string) {
		for _, f := range files {
			if cp.serialOf(t, f) == firstFiles[f] {
				return false, f + " is the first one"
			}
		}
		return true, ""
	})
	for _, port := range ports {
		if now := cp.presents(t, port, "-serial"); now == first[port] {
			t.Errorf("etcd shows its first certificate on %s, and has another", port)
		}
	}
	if now := cp.programs(t, "etcd"); len(now) != 1 || now[0] != pids[0] {
		t.Errorf("etcd has processes %v, and had %v", now, pids)
	}
	r.wait(life+time.Minute, "the end of the first ones", func() (bool, string) { return time.Now().After(ends.Add(5 * time.Second)), "" })
	asked.stop()
	if asked.worst > apiGap {
		t.Errorf("the API did not answer for %.1f s while certificates were renewed", asked.worst.Seconds())
	}
	t.Logf("longest time without an answer of the API meanwhile: %.1f s", asked.worst.Seconds())
	if now := cp.programs(t, "etcd"); len(now) != 1 || now[0] != pids[0] {
		t.Errorf("etcd has processes %v, and had %v", now, pids)
	}

	cp.killProgram(t, "etcd")
	r.wait(5*time.Minute, "the API server to reach the etcd of now", func() (bool, string) {
		if now := cp.programs(t, "etcd"); len(now) != 1 || now[0] == pids[0] {
			return false, fmt.Sprintf("etcd's processes: %v", now)
		}
		out, err := cp.on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "create", "configmap", fmt.Sprintf("after-%d", time.Now().UnixNano()))
		return err == nil, out
	})
	r.ready(5*time.Minute, func(map[string]*api.MachineView) {})
}

// presents is what openssl says of the certificate that a port of the machine presents.
func (m *machine) presents(t *testing.T, port, what string) string {
	t.Helper()
	out, err := m.on("sh", "-c", fmt.Sprintf("openssl s_client -connect %s:%s </dev/null 2>/dev/null | openssl x509 -noout %s", m.address, port, what))
	if err != nil {
		t.Fatalf("%s:%s: %v %s", m.address, port, err, out)
	}
	return strings.TrimSpace(out)
}

// serialOf is what openssl says of the first certificate in a file of the machine.
func (m *machine) serialOf(t *testing.T, path string) string {
	t.Helper()
	out, err := m.on("openssl", "x509", "-in", path, "-noout", "-serial")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
