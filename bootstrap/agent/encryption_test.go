package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func secretKeys(names ...string) []*api.EncryptionKey {
	var out []*api.EncryptionKey
	for i, name := range names {
		k := &api.EncryptionKey{Name: name}
		if name != kubeadm.PlainKey {
			k.Secret = bytes.Repeat([]byte{byte(i + 1)}, 32)
		}
		out = append(out, k)
	}
	return out
}

// want has the server say these keys and hand them out.
func (l *lab) want(run *api.Run, names ...string) {
	run.Kubernetes.EncryptionKeys = names
	l.set(func() { l.keys = secretKeys(names...) })
}

func (l *lab) haveKeys() string {
	l.t.Helper()
	names, err := kubeadm.EncryptionKeyNames([]byte(l.read(kubeadm.EncryptionPath)))
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.Join(names, ",")
}

// kubeadm finds keys and policy before it starts the API server, which is then known to have
// loaded them without being asked.
func TestTheAPIServerBeginsWithItsPolicy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l)
	run := initRun(l)
	run.Kubernetes.Policy = &api.APIServerPolicy{Enforce: "baseline", Audit: "restricted", Warn: "restricted", Exempt: []string{"rook-ceph"}}
	l.want(run, "k-1")
	n := l.newNode()
	n.askEncryption = func(context.Context, string) (string, error) {
		t.Error("the API server is asked")
		return "", nil
	}
	out := once(n, run)
	if i, j, k := slices.Index(out.changed, "encryption-keys"), slices.Index(out.changed, "api-server-policy"), slices.Index(out.changed, "kubeadm-init"); i < 0 || j < 0 || k < max(i, j) || !out.done {
		t.Fatalf("changed %v: %s\n%s", out.changed, states(out), l.log)
	}
	if mode, err := l.node.Mode(kubeadm.EncryptionPath); err != nil || mode != 0o600 {
		t.Errorf("the keys have mode %v, %v", mode, err)
	}
	if conf := l.read(kubeadmConf); !strings.Contains(conf, "patches:\n  directory: "+kubeadm.PatchDir) {
		t.Errorf("kubeadm is not told of the patch: %s", conf)
	}
	policy, _ := policyOf(run)
	patches, err := policy.Patches()
	if err != nil || len(patches) != 3 {
		t.Errorf("%d patches: %v", len(patches), err)
	}
	for _, patch := range patches {
		if l.read(patch.Path) != string(patch.Content) {
			t.Errorf("the patch %s is not there", patch.Path)
		}
	}
	files, err := policy.Files()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if l.read(f.Path) != string(f.Content) {
			t.Errorf("%s is not there", f.Path)
		}
	}
	run.Kubernetes.Action = api.KubernetesWanted_ACTION_RUN
	applied, err := policy.Apply([]byte("kind: Pod\nmetadata: {name: x}\nspec: {containers: [{command: [kube-apiserver]}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	l.put(kubeadm.APIServerManifest, string(applied))
	if got := n.observe(t.Context(), run, once(n, run)).kubernetes; got.GetApiServerOutdated() || !slices.Equal(got.GetEncryptionLoaded(), []string{"k-1"}) {
		t.Errorf("it reports %v", got)
	}
	if again := once(n, run); len(again.changed) > 0 || !again.done {
		t.Errorf("a second run changed %v: %s", again.changed, states(again))
	}
}

// Keys follow the server's, and are said to be loaded when the API server says so.
func TestKeysAreLoadedWhenTheAPIServerSaysSo(t *testing.T) {
	t.Parallel()
	c, _ := policedLab(t)
	n := c.newNode()
	loaded, asked := "", 0
	n.askEncryption = func(context.Context, string) (string, error) {
		asked++
		if loaded == "" {
			return "", errors.New("connection refused")
		}
		return loaded, nil
	}
	report := func() []string { return n.observe(t.Context(), c.run, outcome{}).kubernetes.GetEncryptionLoaded() }
	if got := report(); !slices.Equal(got, []string{"k-1"}) || asked != 0 {
		t.Fatalf("at first: %v, asked %d times", got, asked)
	}
	c.want(c.run, "k-1", "k-2")
	if out := once(n, c.run); !slices.Equal(out.changed, []string{"balancer", "encryption-keys"}) || c.haveKeys() != "k-1,k-2" {
		t.Fatalf("changed %v: %s", out.changed, c.haveKeys())
	}
	if got := report(); got != nil || asked != 1 {
		t.Errorf("before it is loaded: %v, asked %d times", got, asked)
	}
	loaded = "sha256:" + strings.Repeat("0", 64)
	if got := report(); got != nil {
		t.Errorf("another file is loaded: %v", got)
	}
	loaded, _ = n.encryptionDigest()
	if got := report(); !slices.Equal(got, []string{"k-1", "k-2"}) || asked != 3 {
		t.Errorf("after it is loaded: %v, asked %d times", got, asked)
	}
	n = c.newNode() // another process
	n.askEncryption = func(context.Context, string) (string, error) {
		t.Error("the API server is asked again")
		return "", nil
	}
	if got := report(); !slices.Equal(got, []string{"k-1", "k-2"}) {
		t.Errorf("after a restart: %v", got)
	}
	// What it runs without, it has not loaded.
	c.run.Kubernetes.Policy.Enforce = "restricted"
	if got := n.observe(t.Context(), c.run, outcome{}).kubernetes; !got.GetApiServerOutdated() || got.GetEncryptionLoaded() != nil {
		t.Errorf("it reports %v", got)
	}
}

// Without the key that Secrets are encrypted with nobody could read them, whatever the server
// says that was restored from a backup.
func TestTheKeyInUseIsNotGivenUp(t *testing.T) {
	t.Parallel()
	c, _ := policedLab(t)
	c.want(c.run, "k-2")
	out := once(c.newNode(), c.run)
	const want = "Secrets are encrypted with key k-1 here, and the server says k-2: it was restored from a backup that is older than that key; restore a newer one"
	if got := detailOf(out, "encryption-keys"); got != want || c.haveKeys() != "k-1" {
		t.Errorf("got %s, the keys are %s", got, c.haveKeys())
	}
	// What the server hands out is what it said, or nothing is written.
	c.want(c.run, "k-1", "k-2")
	c.set(func() { c.keys = secretKeys("k-2", "k-1") })
	if out := once(c.newNode(), c.run); c.haveKeys() != "k-1" || detailOf(out, "encryption-keys") != "the server has other keys for Secrets by now than it said; it says so next" {
		t.Errorf("%s: %s", c.haveKeys(), states(out))
	}
}

// policedLab is a control plane that runs with a policy and the key k-1.
func policedLab(t *testing.T) (*controlPlane, kubeadm.Policy) {
	t.Helper()
	c := &controlPlane{lab: newLab(t), pid: 100}
	c.cluster = programs(c.lab)
	c.run = initRun(c.lab)
	c.run.Kubernetes.Policy = &api.APIServerPolicy{Enforce: "baseline", Audit: "restricted", Warn: "restricted"}
	c.want(c.run, "k-1")
	if out := once(c.newNode(), c.run); !out.done {
		t.Fatalf("%s\n%s", states(out), c.log)
	}
	c.run.Kubernetes.Action = api.KubernetesWanted_ACTION_RUN
	for i := range c.paths() {
		c.renew(i, year)
	}
	for _, comp := range components() {
		c.put(comp.manifest(), "kind: Pod\nmetadata: {name: "+comp.name+"}\nspec: {containers: [{command: ["+comp.name+"]}]}\n")
		c.start(comp)
	}
	policy, _ := policyOf(c.run)
	text, err := policy.Apply([]byte(c.read(kubeadm.APIServerManifest)))
	if err != nil {
		t.Fatal(err)
	}
	c.put(kubeadm.APIServerManifest, string(text))
	c.cluster.shows = c.serving()
	c.node.Program("kubeadm", func(cmd host.Command) ([]byte, error) {
		t.Errorf("%s was run", strings.Join(cmd.Argv, " "))
		return nil, nil
	})
	return c, policy
}

// Another policy is written in turn only, and has come to its end when nothing runs with the
// one before.
func TestAnotherPolicyIsTakenInTurn(t *testing.T) {
	t.Parallel()
	c, _ := policedLab(t)
	c.run.Kubernetes.Policy.Enforce = "restricted"
	before := c.manifests()
	n := c.newNode()
	if out := once(n, c.run); !slices.Equal(out.changed, []string{"balancer", "api-server-policy"}) || c.read(kubeadm.APIServerManifest) != before["kube-apiserver"] {
		t.Fatalf("out of turn it changed %v", out.changed)
	}
	if got := n.observe(t.Context(), c.run, outcome{}).kubernetes; !got.GetApiServerOutdated() {
		t.Errorf("it reports %v", got)
	}
	c.run.Kubernetes.RenewBefore = timestamppb.New(c.clock().Add(time.Hour))
	out := once(n, c.run)
	if !slices.Equal(out.changed, []string{"api-server-policy-in-use"}) || out.done {
		t.Fatalf("in turn it changed %v: %s", out.changed, states(out))
	}
	if got := n.observe(t.Context(), c.run, outcome{}).kubernetes; got.GetApiServerOutdated() || !got.GetCertificatesStale() {
		t.Errorf("while the old one runs it reports %v", got)
	}
	c.kubelet(before)
	if out = once(n, c.run); !slices.Equal(out.changed, []string{"control-plane-restarted"}) || !out.done {
		t.Errorf("then it changed %v: %s", out.changed, states(out))
	}
}

// All Secrets are written anew once for each key.
func TestSecretsAreWrittenAnewOnce(t *testing.T) {
	t.Parallel()
	c, _ := policedLab(t)
	c.run.Kubernetes.EncryptionRewrite = true
	n := c.newNode()
	times, fails := 0, true
	n.rewriteSecrets = func(context.Context) (int, error) {
		times++
		if fails {
			return 3, errors.New("refused")
		}
		return 5, nil
	}
	out := once(n, c.run)
	if got := detailOf(out, "secrets-rewritten"); got != "writing Secrets anew, 3 of them done: refused" || c.exists(encryptionRewrittenPath) {
		t.Errorf("got %s", got)
	}
	fails = false
	once(n, c.run)
	once(c.newNode(), c.run)
	if times != 2 {
		t.Errorf("it was done %d times", times)
	}
	if got := n.observe(t.Context(), c.run, outcome{}).kubernetes.GetEncryptionRewritten(); got != "k-1" {
		t.Errorf("it reports %q", got)
	}
}

// serveKubernetes serves calls of the agent's own client.
func (l *lab) serveKubernetes(h http.HandlerFunc) (address string) {
	l.t.Helper()
	srv := httptest.NewUnstartedServer(h)
	p, err := pki.KubeletServing(pki.Machine{Cluster: "lab", Name: "cp1", Address: netip.MustParseAddr("127.0.0.1")}, pki.Lifetimes{})
	pair := l.certificateOf(l.kube, p, err)
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	srv.StartTLS()
	l.t.Cleanup(srv.Close)
	conf, err := kubeadm.Kubeconfig(srv.URL, "kubernetes-admin", l.kube.CertificatePEM(), pki.EncodeCertificate(pair.Leaf.Raw), keyPEM(l.t, pair))
	if err != nil {
		l.t.Fatal(err)
	}
	l.put(kubeadm.AdminConf, string(conf))
	return strings.TrimPrefix(srv.URL, "https://")
}

func keyPEM(t *testing.T, pair tls.Certificate) []byte {
	t.Helper()
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		t.Fatal("it signs nothing")
	}
	b, err := pki.EncodeKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The agent sees the names of Secrets and nothing else of them, page by page; one that is gone
// or that another changes is no mistake.
func TestSecretsAreWrittenAnewUnseen(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var calls []string
	conflicts := 2
	l.serveKubernetes(func(w http.ResponseWriter, r *http.Request) {
		calls = append(calls, r.Method+" "+r.URL.String())
		want := onlyHeads
		if r.Method == http.MethodGet {
			want = onlyHeadsList
		}
		if got := r.Header.Get("Accept"); got != want {
			t.Errorf("%s asks for %s", r.Method, got)
		}
		switch {
		case r.Method == http.MethodGet && r.URL.Query().Get("continue") == "":
			fmt.Fprint(w, `{"metadata":{"continue":"a b"},"items":[{"metadata":{"name":"one","namespace":"x"}},{"metadata":{"name":"gone","namespace":"x"}}]}`)
		case r.Method == http.MethodGet:
			fmt.Fprint(w, `{"metadata":{},"items":[{"metadata":{"name":"two","namespace":"y"}}]}`)
		case strings.HasSuffix(r.URL.Path, "/gone"):
			w.WriteHeader(http.StatusNotFound)
		case strings.HasSuffix(r.URL.Path, "/two") && conflicts > 0:
			conflicts--
			w.WriteHeader(http.StatusConflict)
		default:
			body, err := io.ReadAll(r.Body)
			if err != nil || string(body) != "{}" || r.Header.Get("Content-Type") != "application/merge-patch+json" {
				t.Errorf("%s with %s, %v", r.Header.Get("Content-Type"), body, err)
			}
			fmt.Fprint(w, `{}`)
		}
	})
	a := l.agent("node")
	if n, err := a.patchSecrets(t.Context()); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	const patch = "PATCH /api/v1/namespaces/"
	if want := []string{"GET /api/v1/secrets?limit=500", patch + "x/secrets/one", patch + "x/secrets/gone", "GET /api/v1/secrets?limit=500&continue=a+b", patch + "y/secrets/two", patch + "y/secrets/two", patch + "y/secrets/two"}; !slices.Equal(calls, want) {
		t.Errorf("got %q", calls)
	}
	conflicts = 100
	if n, err := a.patchSecrets(t.Context()); n != 2 || err == nil || !strings.HasPrefix(err.Error(), "calling PATCH /api/v1/namespaces/y/secrets/two: 409 Conflict") {
		t.Errorf("%d, %v", n, err)
	}
}

func TestTheAPIServersMetricsSayWhichKeysItHas(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	digest := "sha256:" + strings.Repeat("ab", 32)
	// As kube-apiserver 1.36.3 says it.
	text := "# TYPE apiserver_encryption_config_controller_last_config_info gauge\n" +
		`apiserver_encryption_config_controller_last_config_info{apiserver_id_hash="sha256:` + strings.Repeat("0", 64) + `",hash="` + digest + `"} 1` + "\n"
	status := http.StatusOK
	address := l.serveKubernetes(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			t.Errorf("asked for %s", r.URL)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, text)
	})
	a := l.agent("node")
	ask := func() (string, error) { return a.getEncryption(t.Context(), address) }
	if got, err := ask(); got != digest || err != nil {
		t.Errorf("got %s, %v", got, err)
	}
	text = "# nothing\n"
	if _, err := ask(); err == nil || !strings.HasSuffix(err.Error(), "it does not say which keys for Secrets it has loaded") {
		t.Error(err)
	}
	status = http.StatusForbidden
	if _, err := ask(); err == nil || !strings.HasSuffix(err.Error(), "403 Forbidden") {
		t.Error(err)
	}
}
