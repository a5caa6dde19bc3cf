//go:build root

package native

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// A cluster from before Secrets were encrypted: encryption, audit log and Pod Security are
// turned on by one call, the key is replaced by another, and agents are killed at every step of
// it. Meanwhile Secrets are written and read through all three API servers: none is unreadable
// for any of them at any time, and in the end etcd has none under an older key.
func TestEncryptionIsTurnedOnAndItsKeyReplaced(t *testing.T) {
	r := darkRack(t, func(*serverapi.Config) {}, "cp1", "cp2", "cp3")
	r.fromBefore()
	for i, name := range []string{"cp1", "cp2", "cp3"} {
		r.power(name, i+1)
	}
	r.approve()
	r.ready(30*time.Minute, func(map[string]*api.MachineView) {})
	r.threeAPIServers()
	r.secret("before")
	plain := r.rawSecrets()["default/before"]
	if !strings.Contains(plain, "k8s\x00") {
		t.Fatalf("a Secret of a cluster from before: %.40q", plain)
	}
	if out, err := r.privileged(); err != nil {
		t.Fatalf("a privileged pod is refused before anything is turned on: %s", out)
	}

	k := &killer{done: map[string]bool{}}
	users := r.useSecrets()
	first := r.rotateKey("turned on", k)
	r.encryptedWith(first)
	r.policed()
	underFirst := r.rawSecrets()["default/logged"]
	second := r.rotateKey("replaced", k)
	users.stop()
	if first == second {
		t.Errorf("the key is %s still", second)
	}
	r.encryptedWith(second)
	users.judge()
	t.Logf("agents killed %d times meanwhile", len(k.done))

	// What a snapshot from before brings back cannot be read, until the server is told so.
	r.putRaw("default/before", plain)
	r.putRaw("default/logged", underFirst)
	for _, name := range []string{"before", "logged"} {
		// An API server looks for keys once a minute, and may have the older one until then.
		r.wait(5*time.Minute, "Secret "+name+" of before to be unreadable", func() (bool, string) {
			word, err := r.wordOf(name)
			return err != nil, word
		})
	}
	third := r.rotateKey("replaced after a snapshot was restored", &killer{done: map[string]bool{}}, coordinator.PlainKey, first)
	r.encryptedWith(third)
	for _, name := range []string{"before", "logged"} {
		if word, err := r.wordOf(name); err != nil || word != bodyOf(name) {
			t.Errorf("Secret %s of a restored snapshot is %q: %v", name, word, err)
		}
	}
	r.ready(10*time.Minute, func(map[string]*api.MachineView) {})
	r.check()
}

// fromBefore has the server take its cluster for one of a server that knew no encryption.
func (r *rack) fromBefore() {
	r.t.Helper()
	r.stop()
	st, err := store.Open(r.t.Context(), store.Config{Dir: filepath.Join(r.dir, "state"), Cluster: r.conf.Cluster, Log: os.Stderr, Volatile: true})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := st.Change(r.t.Context(), func(tx *store.Tx) error {
		return tx.PutValue("choices", coordinator.Choices{EtcdFirst: "cp1", KubernetesFirst: "cp1"})
	}); err != nil {
		r.t.Fatal(err)
	}
	st.Close()
	r.up()
}

// rotateKey replaces the key and waits until that is done; it returns the new key's name.
func (r *rack) rotateKey(what string, k *killer, alsoRead ...string) string {
	r.t.Helper()
	began := time.Now()
	resp, err := r.op.RotateEncryption(r.t.Context(), connect.NewRequest(&api.RotateEncryptionRequest{AlsoRead: alsoRead}))
	if err != nil || !resp.Msg.GetChanged() {
		r.t.Fatalf("%v %v", err, resp)
	}
	again, err := r.op.RotateEncryption(r.t.Context(), connect.NewRequest(&api.RotateEncryptionRequest{}))
	if err != nil || again.Msg.GetChanged() {
		r.t.Errorf("a rotation is begun within another: %v %v", err, again)
	}
	var keys []string
	r.wait(20*time.Minute, "the key to be "+what, func() (bool, string) {
		k.look(r, r.views())
		now, err := r.op.ShowEncryption(r.t.Context(), connect.NewRequest(&api.ShowEncryptionRequest{}))
		if err != nil {
			return false, err.Error()
		}
		e := now.Msg.GetEncryption()
		keys = e.GetKeys()
		return e.GetStage() == "settled", e.GetStage() + " " + strings.Join(keys, ",") + ": " + strings.Join(e.GetWaits(), "; ")
	})
	if len(keys) != 1 {
		r.t.Fatalf("the keys are %v", keys)
	}
	// Nobody keeps the old key when it is not needed any more.
	for name, m := range r.nodes {
		r.wait(5*time.Minute, name+" to have the new key only", func() (bool, string) {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", m.pid, kubeadm.EncryptionPath))
			if err != nil {
				return false, err.Error()
			}
			have, err := kubeadm.EncryptionKeyNames(b)
			return err == nil && slices.Equal(have, keys), strings.Join(have, ",")
		})
		if out, err := m.on("stat", "-c", "%a %u", kubeadm.EncryptionPath); err != nil || strings.TrimSpace(out) != "600 0" {
			r.t.Errorf("%s: the file with the keys: %v %s", name, err, out)
		}
	}
	r.t.Logf("the key is %s after %.0f s", what, time.Since(began).Seconds())
	return keys[0]
}

// secret makes a Secret whose body nobody else has.
func (r *rack) secret(name string) {
	r.t.Helper()
	if out, err := r.nodes["cp1"].on("kubectl", "--kubeconfig", kubeadm.AdminConf, "create", "secret", "generic", name, "--from-literal=word="+bodyOf(name)); err != nil {
		r.t.Fatalf("%v %s", err, out)
	}
}

func bodyOf(name string) string { return "swordfish-of-" + name }

// patiently: etcdctl gives up after five seconds, and a machine may stand still for as long.
const patiently = "--command-timeout=2m"

// rawSecrets are the values of all Secrets as they are in etcd, by etcdctl.
func (r *rack) rawSecrets() map[string]string {
	r.t.Helper()
	out, err := r.nodes["cp1"].on("etcdctl", patiently, "--endpoints", "https://127.0.0.1:2379", "--cacert", etcd.CAPath, "--cert", etcd.ClientPath, "--key", etcd.ClientPath, "get", "--prefix", "/registry/secrets/", "--write-out", "json")
	if err != nil {
		r.t.Fatal(err)
	}
	var got struct {
		KVs []struct {
			Key   []byte `json:"key"`
			Value []byte `json:"value"`
		} `json:"kvs"`
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &got); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	all := map[string]string{}
	for _, kv := range got.KVs {
		all[strings.TrimPrefix(string(kv.Key), "/registry/secrets/")] = string(kv.Value)
	}
	return all
}

// putRaw makes a Secret's value in etcd what it was, as a restored snapshot does.
func (r *rack) putRaw(name, value string) {
	r.t.Helper()
	command := fmt.Sprintf("echo %s | base64 -d | etcdctl %s --endpoints https://127.0.0.1:2379 --cacert %s --cert %s --key %s put /registry/secrets/%s",
		base64.StdEncoding.EncodeToString([]byte(value)), patiently, etcd.CAPath, etcd.ClientPath, etcd.ClientPath, name)
	if out, err := r.nodes["cp1"].on("sh", "-c", command); err != nil {
		r.t.Fatalf("%v %s", err, out)
	}
	if now := r.rawSecrets()[name]; now != value {
		r.t.Fatalf("%s in etcd is %.60q, want %.60q", name, now, value)
	}
}

// wordOf is what a Secret holds, through an API server.
func (r *rack) wordOf(name string) (string, error) {
	out, err := r.nodes["cp1"].on("kubectl", "--kubeconfig", kubeadm.AdminConf, "get", "secret", name, "-o", "jsonpath={.data.word}")
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	word, err := base64.StdEncoding.DecodeString(strings.TrimSpace(out))
	return string(word), err
}

// encryptedWith: there are Secrets, and each is encrypted with this key.
func (r *rack) encryptedWith(key string) {
	r.t.Helper()
	all := r.rawSecrets()
	for name, value := range all {
		if !strings.HasPrefix(value, "k8s:enc:secretbox:v1:"+key+":") {
			r.t.Errorf("%s in etcd is %.60q, want it encrypted with %s", name, value, key)
		}
		if strings.Contains(value, "swordfish") {
			r.t.Errorf("the body of %s can be read in etcd", name)
		}
	}
	if len(all) == 0 {
		r.t.Error("there is no Secret in etcd")
	}
	r.t.Logf("%d Secrets in etcd are encrypted with %s", len(all), key)
}

// privileged asks for a privileged pod, without making it.
func (r *rack) privileged() (string, error) {
	return r.nodes["cp1"].on("kubectl", "--kubeconfig", kubeadm.AdminConf, "run", "wide-open", "--image=example.org/none", "--privileged", "--dry-run=server")
}

// patient: kubelet gives what kubeadm has made with our patches four minutes. A control plane from
// before them gets them with the next manifests that kubeadm writes.
func (r *rack) patient() {
	r.t.Helper()
	for _, pod := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		if out, err := r.nodes["cp1"].on("sed", "-n", "/livenessProbe/,/failureThreshold/p", kubeadm.Manifests+"/"+pod+".yaml"); err != nil || !strings.HasSuffix(out, " failureThreshold: 24\n") {
			r.t.Errorf("%s's liveness probe: %v\n%s", pod, err, out)
		}
	}
}

// policed: API servers keep a log that has who touched a Secret and not what is in it, and
// refuse privileged pods.
func (r *rack) policed() {
	r.t.Helper()
	r.secret("logged")
	raw := r.rawSecrets()["default/logged"]
	if !strings.HasPrefix(raw, "k8s:enc:secretbox:v1:k-") {
		r.t.Errorf("a Secret in etcd: %.40q", raw)
	}
	user := "kubernetes-admin" // as kubeadm calls it on every control plane
	if !r.conf.Kubernetes.CAKeyOnNodes {
		user = pki.NodeAdminUser + "cp1"
	}
	r.wait(time.Minute, "the audit log's word of a Secret", func() (bool, string) {
		for _, m := range r.nodes {
			if !strings.HasPrefix(m.Name, "cp") {
				continue
			}
			out, err := m.on("sh", "-c", `grep -h '"verb":"create"' `+kubeadm.AuditLog+` | grep '"resource":"secrets"' | grep '"name":"logged"'`)
			if err == nil && strings.Contains(out, `"username":"`+user+`"`) {
				return true, m.Name
			}
		}
		return false, "nothing yet"
	})
	encoded := base64.StdEncoding.EncodeToString([]byte(bodyOf("logged")))
	for _, m := range r.nodes {
		if !strings.HasPrefix(m.Name, "cp") {
			continue
		}
		log, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", m.pid, kubeadm.AuditLog))
		if err != nil {
			r.t.Error(err)
		}
		for _, body := range []string{"swordfish", encoded[:12]} {
			if bytes.Contains(log, []byte(body)) {
				r.t.Errorf("%s's audit log has the body of a Secret", m.Name)
			}
		}
		r.t.Logf("%s's audit log has %d entries", m.Name, bytes.Count(log, []byte("\n")))
	}
	if out, err := r.privileged(); err == nil || !strings.Contains(out, `violates PodSecurity "baseline:latest": privileged`) {
		r.t.Errorf("a privileged pod: %v %s", err, out)
	}
	if out, err := r.nodes["cp1"].on("kubectl", "--kubeconfig", kubeadm.AdminConf, "run", "ordinary", "--image=example.org/none", "--dry-run=server"); err != nil || !strings.Contains(out, `would violate PodSecurity "restricted:latest"`) {
		r.t.Errorf("an ordinary pod is taken, with a warning: %v %s", err, out)
	}
	if out, err := r.nodes["cp1"].on("kubectl", "--kubeconfig", kubeadm.AdminConf, "--namespace", "kube-system", "run", "wide-open", "--image=example.org/none", "--privileged", "--dry-run=server"); err != nil {
		r.t.Errorf("a privileged pod in kube-system: %v %s", err, out)
	}
}

// users write Secrets and read all of them, past the balancers, through every API server.
type users struct {
	*rack
	stop func()

	mu      sync.Mutex
	written map[string]string
	reads   int
	bad     []string
}

func (r *rack) useSecrets() *users {
	r.t.Helper()
	u := &users{rack: r, written: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for name, m := range r.nodes {
		conf, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", m.pid, kubeadm.AdminConf))
		if err != nil {
			r.t.Fatal(err)
		}
		_, credentials, err := kubeadm.Credentials(conf, os.ReadFile)
		if err != nil {
			r.t.Fatal(err)
		}
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: credentials}}
		all.Go(func() { u.use(ctx, name, "https://"+m.address+":6443", client) })
	}
	u.stop = sync.OnceFunc(func() {
		cancel()
		all.Wait()
	})
	r.t.Cleanup(u.stop)
	return u
}

// use writes one Secret after the other and lists all after each. An API server that is started
// anew does not answer for a while; that is no mistake, an answer that says "no" is.
func (u *users) use(ctx context.Context, via, at string, client *http.Client) {
	call := func(method, path string, body any) (int, []byte) {
		b, _ := json.Marshal(body)
		req, err := http.NewRequestWithContext(ctx, method, at+path, bytes.NewReader(b))
		if err != nil {
			return 0, nil
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			return 0, nil
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			return 0, nil
		}
		return resp.StatusCode, answer
	}
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("by-%s-%d", via, i)
		word := base64.StdEncoding.EncodeToString([]byte(bodyOf(name)))
		status, answer := call(http.MethodPost, "/api/v1/namespaces/default/secrets", map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": name}, "data": map[string]any{"word": word}})
		u.mu.Lock()
		if status == http.StatusCreated {
			u.written[name] = word
		}
		want := len(u.written)
		u.mu.Unlock()
		// From etcd, not from what the API server remembers: it has to decrypt them.
		status, answer = call(http.MethodGet, "/api/v1/namespaces/default/secrets?limit=5000", nil)
		var list struct {
			Items []struct{} `json:"items"`
		}
		u.mu.Lock()
		switch {
		case status == http.StatusOK && json.Unmarshal(answer, &list) == nil && len(list.Items) >= want:
			u.reads++
		case status == http.StatusInternalServerError:
			u.bad = append(u.bad, fmt.Sprintf("%s: %.200s", via, answer))
		case status == http.StatusOK:
			u.bad = append(u.bad, fmt.Sprintf("%s: it lists %d Secrets of %d", via, len(list.Items), want))
		}
		u.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// judge: nothing was unreadable at any time, and every Secret has its word.
func (u *users) judge() {
	u.t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, b := range u.bad {
		if i == 10 {
			u.t.Errorf("and %d more", len(u.bad)-i)
			break
		}
		u.t.Errorf("a Secret could not be read: %s", b)
	}
	out, err := u.nodes["cp2"].on("kubectl", "--kubeconfig", kubeadm.AdminConf, "get", "secrets", "-o", `jsonpath={range .items[*]}{.metadata.name}={.data.word}{"\n"}{end}`)
	if err != nil {
		u.t.Fatal(err)
	}
	have := map[string]string{}
	for line := range strings.Lines(out) {
		name, word, _ := strings.Cut(strings.TrimSpace(line), "=")
		have[name] = word
	}
	for name, word := range u.written {
		if have[name] != word {
			u.t.Errorf("Secret %s has %q, want %q", name, have[name], word)
		}
	}
	if len(u.written) < 30 || u.reads < 30 {
		u.t.Errorf("only %d Secrets were written and %d times all were read", len(u.written), u.reads)
	}
	u.t.Logf("%d Secrets written and all of them read %d times meanwhile", len(u.written), u.reads)
}
