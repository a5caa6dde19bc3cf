package agent

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// TestKubernetesIsAskedWithKubeletsCredentials asks a server that demands them, by
// a kubeconfig as kubelet writes it: its certificate is a file that it replaces.
func TestKubernetesIsAskedWithKubeletsCredentials(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	answer := `{"kind":"Node","metadata":{"labels":{"node-role.kubernetes.io/control-plane":"","zone":"a"}},` +
		`"status":{"conditions":[{"type":"MemoryPressure","status":"False"},{"type":"Ready","status":"False","message":"no CNI"}]}}`
	status := http.StatusOK
	s := l.demanding(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/api/v1/nodes/cp1" {
			t.Errorf("asked %s %s", r.Method, r.URL)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, answer)
	})

	a := l.agent(nodeconf.Node)
	if _, err := a.getNode(t.Context(), "cp1"); err == nil || !strings.Contains(err.Error(), kubeadm.KubeletConf) {
		t.Errorf("without a kubeconfig: %v", err)
	}
	l.kubeconfigAt(kubeadm.KubeletConf, s)

	n, err := a.getNode(t.Context(), "cp1")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := n.labels[kubeadm.RoleLabel]; !ok || n.labels["zone"] != "a" || n.ready != "False" || n.why != "no CNI" {
		t.Errorf("got %+v", n)
	}
	status, answer = http.StatusNotFound, `nodes "cp1" not found`
	if _, err := a.getNode(t.Context(), "cp1"); err == nil || !strings.HasSuffix(err.Error(), `404 Not Found: nodes "cp1" not found`) {
		t.Errorf("got %v", err)
	}
}

// kubeconfigAt writes one for a server that demands certificates of the lab's CA.
func (l *lab) kubeconfigAt(name string, s *httptest.Server) {
	l.t.Helper()
	const bundle = "/var/lib/kubelet/pki/kubelet-client-current.pem"
	l.put(name, fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: %q, certificate-authority-data: %s}}]
contexts: [{name: node, context: {cluster: lab, user: node}}]
current-context: node
users: [{name: node, user: {client-certificate: %s, client-key: %s}}]
`, s.URL, base64.StdEncoding.EncodeToString(pemOf("CERTIFICATE", s.Certificate().Raw)), bundle, bundle))
	cert := l.certificate(pki.Operator("lab", "cp1", pki.RoleReader, pki.Lifetimes{Operator: time.Hour}))
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		l.t.Fatal(err)
	}
	l.put(bundle, string(pemOf("CERTIFICATE", cert.Certificate[0]))+string(pemOf("PRIVATE KEY", key)))
}

// demanding serves to those who show a certificate of the lab's CA.
func (l *lab) demanding(h http.HandlerFunc) *httptest.Server {
	clients := x509.NewCertPool()
	clients.AddCert(l.ca.Certificate())
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	s.StartTLS()
	l.t.Cleanup(s.Close)
	return s
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
