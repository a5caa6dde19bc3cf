//go:build root

package native

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/agent"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
)

// drained are two pods that somebody would start elsewhere, with a budget that lets neither go, and one
// that nobody would. Their owner is an object that no controller acts for.
const drained = `
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: default}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: default, labels: {app: web}, ownerReferences: [OWNER]}
spec: {nodeName: w1, automountServiceAccountToken: false, containers: [{name: web, image: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: default, labels: {app: web}, ownerReferences: [OWNER]}
spec: {nodeName: w1, automountServiceAccountToken: false, containers: [{name: web, image: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: default}
spec: {nodeName: w1, automountServiceAccountToken: false, containers: [{name: alone, image: alone}]}
`

// admin runs kubectl on cp1 with the administrator's rights; what it reads is in /run/stdin.yaml.
func (r *rack) admin(stdin string, args ...string) (string, error) {
	file := fmt.Sprintf("/proc/%d/root/run/stdin.yaml", r.nodes["cp1"].pid)
	if err := os.WriteFile(file, []byte(stdin), 0o600); err != nil {
		return "", err
	}
	return r.nodes["cp1"].on(append([]string{"kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf"}, args...)...)
}

// retires: a worker is drained, against a budget that the real API server keeps, and retired. Its pods
// leave when the budget lets them and not before, Kubernetes forgets it, and it is no machine of this
// cluster any more.
func (r *rack) retires(name string) {
	r.t.Helper()
	must := func(out string, err error) string {
		r.t.Helper()
		if err != nil {
			r.t.Fatalf("%v %s", err, out)
		}
		return out
	}
	must(r.admin("", "create", "configmap", "owner"))
	uid := must(r.admin("", "get", "configmap", "owner", "-o", "jsonpath={.metadata.uid}"))
	owner := fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, name: owner, uid: %s, controller: true}", uid)
	must(r.admin(strings.ReplaceAll(drained, "OWNER", owner), "apply", "-f", "/run/stdin.yaml"))
	for _, pod := range []string{"web-1", "web-2", "alone"} { // kubelet is ours, and runs no pods
		must(r.admin("", "patch", "pod", pod, "--subresource=status", "--type=merge", "-p", `{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`))
	}
	r.wait(5*time.Minute, "the budget to count its pods", func() (bool, string) {
		out, err := r.admin("", "get", "pdb", "web", "-o", "jsonpath={.status.currentHealthy} {.status.disruptionsAllowed}")
		return err == nil && out == "2 0", out
	})

	drain := func(req *api.DrainMachineRequest) *api.DrainMachineResponse {
		r.t.Helper()
		resp, err := r.op.DrainMachine(r.t.Context(), connect.NewRequest(req))
		if err != nil {
			r.t.Fatal(err)
		}
		return resp.Msg
	}
	began := time.Now()
	id := drain(&api.DrainMachineRequest{Machine: name, TimeoutSeconds: 600}).GetId()
	// Both were asked to go, more than once, and the API server let neither.
	r.wait(5*time.Minute, "the drain to be held by the budget", func() (bool, string) {
		d := drain(&api.DrainMachineRequest{Machine: name, Id: id})
		if d.GetDone() {
			r.t.Fatalf("it is over, against the budget: %v", d)
		}
		s := d.GetDetail()
		return strings.HasPrefix(s, "2 pods are left, of which may not go now: ") && strings.Count(s, "disruption budget") == 2, s
	})
	ending := func() string {
		return must(r.admin("", "get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name}={.metadata.deletionTimestamp} {end}`))
	}
	if got := ending(); got != "alone= web-1= web-2= " {
		r.t.Errorf("held by the budget, these end: %s", got)
	}
	if got := must(r.admin("", "get", "node", name, "-o", "jsonpath={.spec.unschedulable}")); got != "true" {
		r.t.Errorf("%s takes pods while it is drained: %q", name, got)
	}
	must(r.admin("", "patch", "pdb", "web", "--type=merge", "-p", `{"spec":{"minAvailable":1}}`))
	// One may go, and the other stays until there is another that is well, or nobody wants one.
	r.wait(5*time.Minute, "one pod to end", func() (bool, string) {
		got := ending()
		return strings.Count(got, "Z ") == 1 && strings.Contains(got, "alone= "), got
	})
	must(r.admin("", "patch", "pdb", "web", "--type=merge", "-p", `{"spec":{"minAvailable":0}}`))
	r.wait(5*time.Minute, "both pods to end", func() (bool, string) {
		got := ending()
		return strings.Count(got, "Z ") == 2 && strings.Contains(got, "alone= "), got
	})
	must(r.admin("", "delete", "pod", "web-1", "web-2", "--grace-period=0", "--force")) // as kubelet does when they have ended
	r.wait(5*time.Minute, "the end of the drain", func() (bool, string) {
		d := drain(&api.DrainMachineRequest{Machine: name, Id: id})
		if d.GetProblem() != "" {
			r.t.Fatalf("it ended with %q", d.GetProblem())
		}
		return d.GetDone(), d.GetDetail()
	})
	r.t.Logf("%s is drained against a budget in %.1f s", name, time.Since(began).Seconds())

	m := r.nodes[name]
	call := m.asServerSees(r.t, r.server.CAPEM())
	if err := call(); connect.CodeOf(err) == connect.CodeUnauthenticated {
		r.t.Fatalf("before it is retired: %v", err)
	}
	began = time.Now()
	resp, err := r.op.RetireMachine(r.t.Context(), connect.NewRequest(&api.RetireMachineRequest{Selection: &api.Selection{Names: []string{name}}, Reason: "the rack shrinks"}))
	if err != nil || !resp.Msg.GetOutcomes()[0].GetOk() {
		r.t.Fatalf("retiring %s: %v %v", name, err, resp)
	}
	if err := call(); connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "revoked") {
		r.t.Errorf("with the certificate of a retired machine: %v", err)
	}
	r.nodeGone(name, began, 1)
	r.wait(time.Minute, "its state", func() (bool, string) {
		now := r.views()[name].GetState()
		return now == "retired", now
	})
}

// asServerSees is a call to the server with a machine's own key and certificate; a worker gets nothing by
// it, but an answer.
func (m *machine) asServerSees(t *testing.T, ca []byte) func() error {
	t.Helper()
	root := fmt.Sprintf("/proc/%d/root", m.pid)
	pair, err := tls.LoadX509KeyPair(root+agent.CertPath, root+agent.KeyPath)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, DisableKeepAlives: true}}
	return func() error {
		_, err := apiconnect.NewAgentServiceClient(client, serverURL).FetchKubernetesSecrets(t.Context(), connect.NewRequest(&api.FetchKubernetesSecretsRequest{}))
		return err
	}
}
