//go:build root && clock

package native

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/agent"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// a held is a certificate in a file of a node.
type held struct {
	what, serial string
	start, end   time.Time
	// due is how much is left when somebody should renew it; zero for a fifth of its life.
	due time.Duration
}

func (c held) left() time.Duration { return time.Until(c.end) }

// certificates are all that nodes have in files, and the one that the server shows, by openssl.
func (r *rack) certificates() []held {
	r.t.Helper()
	const leaf, own, kubeadms = 60 * day, 20 * day, 240 * day
	files := func(cp bool) map[string]time.Duration {
		all := map[string]time.Duration{agent.CertPath: own, kubeadm.Serving: leaf, kubeletConf: 0}
		if cp {
			maps.Copy(all, map[string]time.Duration{
				etcd.ServerPath: leaf, etcd.PeerPath: leaf, etcd.ClientPath: leaf, kubeadm.EtcdClient: leaf,
				"/etc/kubernetes/pki/apiserver.crt": kubeadms, "/etc/kubernetes/pki/apiserver-kubelet-client.crt": kubeadms,
				"/etc/kubernetes/pki/front-proxy-client.crt": kubeadms, "/etc/kubernetes/admin.conf": kubeadms,
				"/etc/kubernetes/controller-manager.conf": kubeadms, "/etc/kubernetes/scheduler.conf": kubeadms,
			})
		}
		return all
	}
	var out []held
	for _, name := range slices.Sorted(maps.Keys(r.nodes)) {
		m, all := r.nodes[name], files(strings.HasPrefix(name, "cp"))
		for _, path := range slices.Sorted(maps.Keys(all)) {
			due := all[path]
			// A kubeconfig has the certificate in it, or the path of one.
			script := "openssl x509 -in %[1]s"
			if strings.HasSuffix(path, ".conf") {
				script = `f=$(sed -n 's/.*client-certificate: //p' %[1]s); if [ "$f" ]; then cat "$f"; else sed -n 's/.*client-certificate-data: //p' %[1]s | base64 -d; fi | openssl x509`
			}
			text, err := m.on("sh", "-c", fmt.Sprintf(script, path)+" -noout -serial -startdate -enddate")
			if err != nil {
				r.t.Fatal(err)
			}
			out = append(out, r.parse(name+" "+path, text, due))
		}
	}
	return append(out, r.parse("server at "+serverURL, r.shows(r.nodes["cp1"], strings.TrimPrefix(serverURL, "https://")), own))
}

// shows is what openssl says of the certificate at an address, seen from a node.
func (r *rack) shows(m *machine, address string) string {
	r.t.Helper()
	out, err := m.on("sh", "-c", "openssl s_client -connect "+address+" </dev/null 2>/dev/null | openssl x509 -noout -serial -startdate -enddate")
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// parse reads what openssl says.
func (r *rack) parse(what, text string, due time.Duration) held {
	r.t.Helper()
	c := held{what: what, due: due}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		at, err := time.Parse("Jan _2 15:04:05 2006 MST", value)
		switch key {
		case "serial":
			c.serial = value
			continue
		case "notBefore":
			c.start = at
		case "notAfter":
			c.end = at
		}
		if err != nil {
			r.t.Fatalf("%s: %v: %s", what, err, text)
		}
	}
	if c.serial == "" || c.start.IsZero() || c.end.IsZero() {
		r.t.Fatalf("%s: openssl says %q", what, text)
	}
	if c.due == 0 {
		c.due = c.end.Sub(c.start) / 5
	}
	return c
}

// lives is what became of each certificate.
type lives struct {
	serials map[string]map[string]bool
	least   map[string]time.Duration
}

func (l *lives) note(c held, left time.Duration) {
	if l.serials[c.what] == nil {
		l.serials[c.what], l.least[c.what] = map[string]bool{}, left
	}
	l.serials[c.what][c.serial], l.least[c.what] = true, min(left, l.least[c.what])
}

func (l *lives) String() string {
	all := 0
	for _, s := range l.serials {
		all += len(s)
	}
	least := slices.SortedFunc(maps.Keys(l.least), func(a, b string) int { return int(l.least[a] - l.least[b]) })
	return fmt.Sprintf("%d certificates in %d files, with %.0f days left at least (%s)", all, len(l.serials), l.least[least[0]].Hours()/24, least[0])
}
