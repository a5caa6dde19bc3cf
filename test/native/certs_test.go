//go:build root

package native

import (
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// What kubeadm made for a year is renewed by itself: a control plane whose certificates
// are made to end tomorrow has others soon after, by openssl, and every process of it
// was started after that.
func TestCertificatesOfKubeadmAreRenewed(t *testing.T) {
	r := darkRack(t, func(c *serverapi.Config) { c.Kubernetes.CAKeyOnNodes = true }, "cp1")
	r.power("cp1", 1)
	r.approve()
	r.ready(15*time.Minute, func(map[string]*api.MachineView) {})
	cp := r.nodes["cp1"]
	const conf = "/run/short.yaml"
	short := "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: " + kubernetesVersion() + "\nencryptionAlgorithm: ECDSA-P256\ncertificateValidityPeriod: 24h0m0s\n"
	if err := os.WriteFile(filepath.Join("/proc", fmt.Sprint(cp.pid), "root", conf), []byte(short), 0o600); err != nil {
		t.Fatal(err)
	}
	before := r.pids(cp)
	if out, err := cp.on("kubeadm", "certs", "renew", "all", "--config", conf); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if year := r.goodFor(cp, 2*24*time.Hour); len(year) > 0 {
		t.Fatalf("these are good for two days already: %v", year)
	}
	began := time.Now()
	r.wait(10*time.Minute, "new certificates in use", func() (bool, string) {
		var out []string
		for _, v := range r.views()["cp1"].GetSteps() {
			if v.GetName() == "kubeadm-certificates" || v.GetName() == "control-plane-restarted" {
				out = append(out, v.GetName()+"="+v.GetState().String()+" "+v.GetDetail())
			}
		}
		_, err := cp.on("test", "!", "-e", "/var/lib/imagectl/kubeadm.renewing")
		return len(r.goodFor(cp, 360*24*time.Hour)) == 6 && err == nil && r.shown(cp) == r.serial(cp), strings.Join(out, "; ")
	})
	t.Logf("renewed and in use after %.0f s", time.Since(began).Seconds())
	for name, pid := range r.pids(cp) {
		if pid == before[name] || pid == "" {
			t.Errorf("%s has process %q, and had %q before", name, pid, before[name])
		}
	}
	r.ready(5*time.Minute, func(map[string]*api.MachineView) {})
	r.check()
}

// pids are those of the control plane by name.
func (r *rack) pids(m *machine) map[string]string {
	r.t.Helper()
	out := map[string]string{}
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		pid, err := m.on("sh", "-c", "pidof "+name+" || true")
		if err != nil {
			r.t.Fatal(err)
		}
		out[name] = strings.TrimSpace(pid)
	}
	return out
}

// goodFor asks openssl which of kubeadm's certificates are good that long.
func (r *rack) goodFor(m *machine, d time.Duration) []string {
	r.t.Helper()
	out, err := m.on("sh", "-c", fmt.Sprintf(`cd /etc/kubernetes
for f in pki/apiserver.crt pki/apiserver-kubelet-client.crt pki/front-proxy-client.crt; do
  openssl x509 -in $f -noout -checkend %[1]d >/dev/null && echo $f; done
for f in admin.conf controller-manager.conf scheduler.conf; do
  sed -n 's/.*client-certificate-data: //p' $f | base64 -d | openssl x509 -noout -checkend %[1]d >/dev/null && echo $f; done; true`, int(d.Seconds())))
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Fields(out)
}

// serial is that of the API server's certificate on disk, by openssl.
func (r *rack) serial(m *machine) string {
	r.t.Helper()
	out, err := m.on("openssl", "x509", "-in", "/etc/kubernetes/pki/apiserver.crt", "-noout", "-serial")
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.ToLower(strings.TrimPrefix(strings.TrimSpace(out), "serial="))
}

// shown is that of the certificate that the API server shows; empty for none.
func (r *rack) shown(m *machine) string {
	c, err := tls.Dial("tcp", m.address+":6443", &tls.Config{InsecureSkipVerify: true}) // which one is the question
	if err != nil {
		return ""
	}
	defer c.Close()
	return hex.EncodeToString(c.ConnectionState().PeerCertificates[0].SerialNumber.Bytes())
}
