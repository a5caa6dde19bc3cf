package render

import (
	"bytes"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http/httpproxy"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
)

// networked is a cluster whose machines are connected in different ways.
func networked() plan.Plan {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	p := plan.Plan{
		Kubernetes: plan.Kubernetes{PodCIDR: prefix("10.244.0.0/16"), ServiceCIDR: prefix("10.96.0.0/12"), DNSDomain: "cluster.local", Endpoint: "api.example.org:6443"},
		Server:     plan.Server{Address: addr("10.0.0.2"), Peers: []netip.Addr{addr("10.0.0.3")}},
		Boot:       plan.Boot{Subnets: []plan.Subnet{{Prefix: prefix("10.0.0.0/24")}}},
	}
	p.Machines = []plan.Machine{
		{Name: "lacp", Address: addr("10.42.0.11"), Network: cluster.Network{
			Bonds:     []cluster.Bond{{Name: "bond0", Mode: "802.3ad", Cards: []string{"52:54:00:00:00:01", "52:54:00:00:00:02"}, MTU: 9000}},
			VLANs:     []cluster.VLAN{{Name: "nodes", ID: 42, Link: "bond0"}, {Name: "storage", ID: 43, Link: "bond0", MTU: 9000}},
			Addresses: []cluster.StaticAddress{{Link: "nodes", Address: prefix("10.42.0.11/24")}, {Link: "storage", Address: prefix("10.43.0.11/24")}},
			Routes:    []cluster.Route{{To: prefix("0.0.0.0/0"), Via: addr("10.42.0.1"), Link: "nodes"}, {To: prefix("10.50.0.0/16"), Via: addr("10.43.0.1"), Link: "storage", Metric: 50}},
			DNS:       []netip.Addr{addr("10.42.0.53"), addr("10.42.0.54")},
			NTP:       []string{"time1.example.org", "10.42.0.1"},
		}},
		{Name: "simple", Address: addr("10.0.0.12"), Network: cluster.Network{
			Bonds: []cluster.Bond{{Name: "bond0", Mode: "active-backup", Cards: []string{"eno1", "eno2"}}},
			VLANs: []cluster.VLAN{{Name: "backup", ID: 7, Link: "eno3", MTU: 4000}},
			Addresses: []cluster.StaticAddress{
				{Link: "eno4", Address: prefix("192.0.2.12/25")}, {Link: "eno4", Address: prefix("2001:db8::12/64")},
			},
			Routes: []cluster.Route{{To: prefix("198.51.100.0/24"), Via: addr("10.0.0.254"), Link: "eno5"}},
		}},
		{Name: "proxied", Address: addr("172.20.0.13"), Network: cluster.Network{
			Proxy: cluster.Proxy{HTTP: "http://proxy.example.org:3128", HTTPS: "http://proxy.example.org:3129", No: []string{".example.org", "203.0.113.0/24"}, Username: "nodes"},
			Mirrors: []cluster.RegistryMirror{
				{Name: "docker.io", Endpoints: []string{"https://mirror.example.org", "https://harbor.example.org/v2/hub"}, CA: []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")},
				{Name: "registry.example.org:5000", Endpoints: []string{"https://mirror.example.org:5001/team"}, Username: "reader", Password: cluster.Secret{Env: "MIRROR"}},
			},
		}},
		{Name: "plain", Address: addr("172.20.0.14")},
	}
	return p
}

var passwords = Passwords{Proxy: `p@ss "word"%$\`, Mirrors: map[string]string{"registry.example.org:5000": "not for strangers"}}

func TestNodesNetwork(t *testing.T) {
	t.Parallel()
	p := networked()
	n := NewNetworks(p)
	for _, m := range p.Machines {
		var b bytes.Buffer
		for _, f := range n.Files(m.Network, passwords) {
			fmt.Fprintf(&b, "-- %s %04o --\n%s", f.Path, f.Mode, f.Content)
		}
		golden(t, "network."+m.Name+".txt", b.Bytes())
	}
}

// What the installer leaves on the disk and what anybody may see holds no password; what
// holds one can be read by root only.
func TestPasswordsAreInNoFileThatOthersRead(t *testing.T) {
	t.Parallel()
	p := networked()
	n := NewNetworks(p)
	secrets := []string{"cmVhZGVyOm5vdCBmb3Igc3RyYW5nZXJz", "p%40ss"} // base64 of reader:not for strangers; the proxy's
	found := map[string]bool{}
	for _, m := range p.Machines {
		for _, f := range n.Files(m.Network, Passwords{}) {
			if bytes.Contains(f.Content, []byte("Authorization")) || f.Path == proxyEnv {
				t.Errorf("%s of %s has credentials that nobody gave it", f.Path, m.Name)
			}
		}
		for _, f := range n.Files(m.Network, passwords) {
			for _, secret := range secrets {
				if !bytes.Contains(f.Content, []byte(secret)) {
					continue
				}
				found[secret] = true
				if f.Mode != 0o600 {
					t.Errorf("%s of %s has a password and mode %04o", f.Path, m.Name, f.Mode)
				}
			}
		}
	}
	if len(found) != len(secrets) {
		t.Errorf("files have only %v of the passwords, so nothing was shown of the others", found)
	}
}

// Go's own reader of HTTPS_PROXY gets the password back as it was, whatever is in it.
func TestTheProxysPasswordArrives(t *testing.T) {
	t.Parallel()
	p := networked()
	for _, f := range NewNetworks(p).Files(p.Machines[2].Network, passwords) {
		if f.Path != proxyEnv {
			continue
		}
		for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
			_, rest, _ := strings.Cut(string(f.Content), "\n"+name+"=\"")
			value, _, _ := strings.Cut(rest, "\"\n")
			at, err := url.Parse(value)
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := at.User.Password(); at.User.Username() != "nodes" || got != passwords.Proxy || !strings.HasPrefix(at.Host, "proxy.example.org:312") {
				t.Errorf("%s is %q, with the password %q", name, value, got)
			}
			// What systemd would take for something else in a quoted value (systemd.exec(5)).
			if strings.ContainsAny(value, "\\\"` \n") {
				t.Errorf("%s is %q", name, value)
			}
		}
		return
	}
	t.Error("there is no file with it")
}

// Go's own reader of NO_PROXY, which containerd and kubelet have, judges it.
func TestNodesAndServicesAreAskedWithoutTheProxy(t *testing.T) {
	t.Parallel()
	p := networked()
	env := map[string]string{}
	for _, f := range NewNetworks(p).Files(p.Machines[2].Network, Passwords{}) {
		if !strings.HasSuffix(f.Path, "/containerd.service.d/20-imagectl-proxy.conf") {
			continue
		}
		for line := range strings.Lines(string(f.Content)) {
			if kv, ok := strings.CutPrefix(strings.TrimSpace(line), `Environment="`); ok {
				k, v, _ := strings.Cut(strings.TrimSuffix(kv, `"`), "=")
				env[k] = v
			}
		}
	}
	var urls []string
	for _, host := range []string{
		"127.0.0.1:7443", "localhost", "10.0.0.2:8443", "10.0.0.3:8443", "10.96.0.1", "10.244.3.4", "10.42.0.11:6443", "10.43.0.11", "10.0.0.12:10250",
		"192.0.2.12", "172.20.0.13", "172.20.0.14:6443", "api.example.org:6443", "kubernetes.default.svc", "a.b.svc.cluster.local", "registry.example.org", "203.0.113.9",
	} {
		urls = append(urls, "direct https://"+host+"/")
	}
	urls = append(urls, "proxy https://registry-1.docker.io/", "proxy https://8.8.8.8/", "proxy https://172.20.0.15/", "proxy https://10.45.0.1/")
	ask := (&httpproxy.Config{HTTPProxy: env["HTTP_PROXY"], HTTPSProxy: env["HTTPS_PROXY"], NoProxy: env["NO_PROXY"]}).ProxyFunc()
	for _, line := range urls {
		want, text, _ := strings.Cut(line, " ")
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		by, err := ask(u)
		if err != nil {
			t.Fatal(err)
		}
		if got := map[bool]string{true: "direct", false: "proxy"}[by == nil]; got != want {
			t.Errorf("%s: %s, want %s (NO_PROXY=%s)", text, got, want, env["NO_PROXY"])
		}
	}
}

// The list names all files but itself, each once: who brings new files takes away what it
// does not name any more.
func TestTheListNamesEveryFile(t *testing.T) {
	t.Parallel()
	p := networked()
	n := NewNetworks(p)
	for _, m := range p.Machines {
		files := n.Files(m.Network, Passwords{})
		if m.Name == "plain" {
			if len(files) != 0 {
				t.Errorf("a machine without a network of its own gets %d files", len(files))
			}
			continue
		}
		var paths []string
		for _, f := range files[:len(files)-1] {
			paths = append(paths, f.Path)
		}
		last := files[len(files)-1]
		if got := strings.Fields(string(last.Content)); last.Path != NetworkList || !slices.Equal(got, paths) {
			t.Errorf("%s: the list %s says %v, and there are %v", m.Name, last.Path, got, paths)
		}
		slices.Sort(paths)
		if len(slices.Compact(paths)) != len(files)-1 {
			t.Errorf("%s: a file is there twice: %v", m.Name, paths)
		}
	}
}
