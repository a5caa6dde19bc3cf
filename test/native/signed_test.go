//go:build root

package native

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// signedDir is the agent's, of what the server signed for a control plane.
const signedDir = "/var/lib/imagectl/kubernetes"

// Where the server signs, the real kubeadm makes and joins control planes and a worker,
// and no disk has the key of a CA; kubelet's certificate and those of a control plane are
// renewed, and used. openssl judges.
func TestCertificatesThatTheServerSigns(t *testing.T) {
	names := []string{"cp1", "cp2", "w1"}
	r := darkRack(t, func(c *serverapi.Config) { c.Kubernetes.CAKeyOnNodes = false }, names...)
	for i, name := range names {
		r.power(name, i+1)
	}
	began := time.Now()
	r.approve()
	r.ready(15*time.Minute, func(map[string]*api.MachineView) {})
	t.Logf("two control planes and a worker Ready %.0f s after power-on", time.Since(began).Seconds())
	r.check()
	for _, name := range []string{"cp1", "cp2"} {
		r.judge(r.nodes[name])
	}
	// Nobody asked Kubernetes for a certificate, and nobody would have signed one.
	if out, err := r.nodes["cp1"].on("kubectl", "--kubeconfig", kubeadm.AdminConf, "get", "certificatesigningrequests"); err != nil || !strings.Contains(out, "No resources found") {
		t.Errorf("requests for certificates: %v %s", err, out)
	}
	if out, err := r.nodes["cp1"].on("grep", "-h", "cluster-signing", kubeadm.Manifests+"/kube-controller-manager.yaml"); err != nil || strings.Contains(out, "=/") {
		t.Errorf("the controller-manager signs with %s (%v)", out, err)
	}
	r.noKeyOnDisks()
	r.kubeletRenews()
	r.controlPlaneRenews()
	r.ready(5*time.Minute, func(map[string]*api.MachineView) {})
	r.noKeyOnDisks()
}

// judge has openssl look at what a control plane was given.
func (r *rack) judge(m *machine) {
	r.t.Helper()
	out, err := m.on("sh", "-ec", `cd /etc/kubernetes/pki
openssl verify -CAfile ca.crt -purpose sslserver -verify_ip `+m.address+` apiserver.crt
openssl verify -CAfile ca.crt -purpose sslserver -verify_ip 127.0.0.1 apiserver.crt
openssl verify -CAfile ca.crt -purpose sslserver -verify_hostname kubernetes.default.svc apiserver.crt
openssl verify -CAfile ca.crt -purpose sslclient apiserver-kubelet-client.crt
openssl verify -CAfile front-proxy-ca.crt -purpose sslclient front-proxy-client.crt
openssl verify -CAfile ca.crt -purpose sslclient `+kubeadm.KubeletClient+`
for f in admin controller-manager scheduler; do
  sed -n 's/.*client-certificate-data: //p' ../$f.conf | base64 -d >/run/$f.crt
  openssl verify -CAfile ca.crt -purpose sslclient /run/$f.crt
done
for f in apiserver apiserver-kubelet-client front-proxy-client; do
  test "$(openssl x509 -in $f.crt -noout -pubkey)" = "$(openssl pkey -in $f.key -pubout)"
done
! openssl verify -CAfile front-proxy-ca.crt apiserver-kubelet-client.crt 2>&1
`)
	if err != nil || strings.Count(out, ": OK\n") != 9 {
		r.t.Errorf("%s: %v\n%s", m.Name, err, out)
	}
}

// authority is a CA out of the server's store.
func (r *rack) authority(name string) (*pki.CA, []byte) {
	r.t.Helper()
	text, err := r.store.Secret(r.t.Context(), "ca/"+name, func() ([]byte, error) { return nil, errors.New("there is none") }, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	var sealed struct{ Certificate, Key string }
	if err := json.Unmarshal(text, &sealed); err != nil {
		r.t.Fatal(err)
	}
	ca, err := pki.LoadCA([]byte(sealed.Certificate), []byte(sealed.Key))
	if err != nil {
		r.t.Fatal(err)
	}
	return ca, []byte(sealed.Key)
}

// noKeyOnDisks reads every node's disk from end to end, free blocks too, for the keys of
// the CAs: as PEM, as DER, and the secret number itself. The key of service accounts,
// which is there, shows that the search finds what there is.
func (r *rack) noKeyOnDisks() {
	r.t.Helper()
	run(r.t, "sync")
	for name, m := range r.nodes {
		needles := map[string][]byte{}
		for _, ca := range []string{"kubernetes", "front-proxy", "etcd", "imagectl"} {
			_, key := r.authority(ca)
			for form, b := range forms(r.t, key) {
				needles["the key of the CA "+ca+" as "+form] = b
			}
		}
		found := search(r.t, filepath.Join(r.dir, name+".disk"), needles)
		if len(found) > 0 {
			r.t.Errorf("%s: its disk has %v", name, found)
		}
		if !strings.HasPrefix(name, "cp") {
			continue
		}
		text, err := os.ReadFile(m.root(kubeadm.PKIDir + "/sa.key"))
		if err != nil {
			r.t.Fatal(err)
		}
		if found := search(r.t, filepath.Join(r.dir, name+".disk"), forms(r.t, text)); !found["PEM"] {
			r.t.Errorf("%s: the search does not find what is there: %v", name, found)
		}
	}
}

// forms are what a key would be recognised by.
func forms(t *testing.T, text []byte) map[string][]byte {
	t.Helper()
	key, err := pki.ParseKeyPEM(text)
	if err != nil {
		t.Fatal(err)
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("a key is a %T", key)
	}
	number, err := private.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	// A kubeconfig has the PEM in base64 once more, at a place of which the remainder by
	// three is known: the beginning.
	return map[string][]byte{"PEM": bytes.Split(text, []byte("\n"))[1], "number": number, "kubeconfig": []byte(base64.StdEncoding.EncodeToString(text)[:120])}
}

// search says which needles are in a file.
func search(t *testing.T, path string, needles map[string][]byte) map[string]bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const overlap = 256
	found := map[string]bool{}
	buf := make([]byte, 4<<20)
	zero := make([]byte, len(buf))
	kept := 0
	for {
		n, err := io.ReadFull(f, buf[kept:])
		have := buf[:kept+n]
		if !bytes.Equal(have, zero[:len(have)]) {
			for what, needle := range needles {
				if bytes.Contains(have, needle) {
					found[what] = true
				}
			}
		}
		if err != nil {
			return found
		}
		kept = copy(buf, have[len(have)-overlap:])
	}
}

// root is a node's file as this machine sees it.
func (m *machine) root(path string) string {
	return filepath.Join("/proc", fmt.Sprint(m.pid), "root", path)
}

// aged puts a certificate of an hour's life, with its key, in the place of one that the
// server signed. Two thirds of the hour are over.
func (r *rack) aged(m *machine, path string, make func(pki.Machine, pki.Lifetimes) (pki.Profile, error)) string {
	r.t.Helper()
	ca, _ := r.authority("kubernetes")
	profile, err := make(pki.Machine{Cluster: "native", Name: m.Name, Address: netip.MustParseAddr(m.address)}, pki.Lifetimes{Leaf: time.Hour, Backdate: -1})
	if err != nil {
		r.t.Fatal(err)
	}
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	issued, err := ca.Sign(profile, public(r.t, key), time.Now().Add(-40*time.Minute), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	text, err := pki.EncodeKey(key)
	if err != nil {
		r.t.Fatal(err)
	}
	at := m.root(path)
	if err := os.WriteFile(at+".new", append(issued.PEM, text...), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(at+".new", at); err != nil {
		r.t.Fatal(err)
	}
	return issued.Serial()
}

func public(t *testing.T, key crypto.Signer) pki.PublicKey {
	t.Helper()
	p, err := pki.OwnKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// kubeletRenews: a kubelet's certificate that is a third of its life old is renewed
// without a turn, and good at the API server.
func (r *rack) kubeletRenews() {
	r.t.Helper()
	m := r.nodes["w1"]
	before := r.aged(m, kubeadm.KubeletClient, pki.KubeletClient)
	r.wait(5*time.Minute, "another certificate of w1's kubelet", func() (bool, string) {
		out, err := m.on("openssl", "x509", "-in", kubeadm.KubeletClient, "-noout", "-serial", "-subject", "-checkend", fmt.Sprint(89*24*3600))
		return err == nil && !strings.Contains(strings.ToLower(out), strings.TrimLeft(before, "0")) && strings.Contains(out, "O = system:nodes, CN = system:node:w1"), out
	})
	if out, err := m.on("kubectl", "--kubeconfig", kubeadm.KubeletConf, "get", "node", "w1"); err != nil {
		r.t.Errorf("w1 with its new certificate: %v %s", err, out)
	}
	if out, err := m.on("kubectl", "--kubeconfig", kubeadm.KubeletConf, "get", "secrets", "--all-namespaces"); err == nil {
		r.t.Errorf("w1 reads all Secrets: %s", out)
	}
}

// controlPlaneRenews: one certificate of a control plane that ends within the hour has
// all of them signed anew, and its processes started anew.
func (r *rack) controlPlaneRenews() {
	r.t.Helper()
	cp := r.nodes["cp2"]
	pids := r.pids(cp)
	serial := r.serial(cp)
	r.aged(cp, signedDir+"/scheduler.pem", pki.Scheduler)
	began := time.Now()
	r.wait(10*time.Minute, "new certificates in use", func() (bool, string) {
		var out []string
		for _, v := range r.views()["cp2"].GetSteps() {
			if v.GetName() == "kubeadm-certificates" || v.GetName() == "control-plane-restarted" {
				out = append(out, v.GetName()+"="+v.GetState().String()+" "+v.GetDetail())
			}
		}
		now := r.serial(cp)
		_, err := cp.on("test", "!", "-e", "/var/lib/imagectl/kubeadm.renewing")
		return len(r.goodFor(cp, 89*24*time.Hour)) == 6 && now != serial && err == nil && r.shown(cp) == now, strings.Join(out, "; ")
	})
	r.t.Logf("renewed and in use after %.0f s", time.Since(began).Seconds())
	for name, pid := range r.pids(cp) {
		if pid == pids[name] || pid == "" {
			r.t.Errorf("%s has process %q, and had %q before", name, pid, pids[name])
		}
	}
	r.judge(cp)
}
