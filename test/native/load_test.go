//go:build root

package native

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// tally remembers what was acknowledged, and for how long nothing was.
type tally struct {
	mu     sync.Mutex
	acked  []string
	failed int
	last   time.Time
	worst  time.Duration
	// refused is what was said since last, and inWorst what was said in the longest time without.
	refused, inWorst []string
}

func (t *tally) note(name string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if err != nil {
		t.failed++
		t.refused = append(t.refused, fmt.Sprintf("after %.2f s: %v", now.Sub(t.last).Seconds(), err))
		return
	}
	t.acked = append(t.acked, name)
	if gap := now.Sub(t.last); !t.last.IsZero() && gap > t.worst {
		t.worst, t.inWorst = gap, append(t.refused, fmt.Sprintf("after %.2f s: taken", gap.Seconds()))
	}
	t.last, t.refused = now, nil
}

// said is what clients were told in the longest time without an answer to their liking.
func (t *tally) said() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.inWorst, "\n")
}

func (t *tally) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.acked)
}

// since returns how many were acknowledged after the first n, and the longest time
// without one since the last call.
func (t *tally) since(n int) (int, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	worst := max(t.worst, time.Since(t.last))
	t.worst = 0
	return len(t.acked) - n, worst
}

// soFar is a copy of what was acknowledged so far. Look for it after that only: the writer
// goes on.
func (t *tally) soFar() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.acked)
}

// lost counts what was acknowledged and is not there.
func lost(acked []string, have map[string]bool) int {
	n := 0
	for _, name := range acked {
		if !have[name] {
			n++
		}
	}
	return n
}

// writer puts one key after another into etcd.
type writer struct {
	*rack
	tally
	client *clientv3.Client
	cancel func()
	done   chan struct{}

	size sync.Mutex
	// padding makes values larger.
	padding int
}

func (r *rack) write() *writer {
	r.t.Helper()
	return r.writeAs(r.nodes["cp1"].certificate(r.t))
}

// writeAs is write for a client that shows something else.
func (r *rack) writeAs(conf *tls.Config) *writer {
	r.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: r.endpoints(), TLS: conf, Logger: zap.NewNop(),
		DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 5 * time.Second})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{rack: r, client: c, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for i := 0; ctx.Err() == nil; i++ {
			key := fmt.Sprintf("drill/%08d", i)
			w.size.Lock()
			value := key + strings.Repeat("x", w.padding)
			w.size.Unlock()
			// Whoever asks a member that does not answer asks the next one then.
			call, end := context.WithTimeout(ctx, time.Second)
			_, err := c.Put(call, key, value)
			end()
			w.note(key, err)
			time.Sleep(10 * time.Millisecond) // a hundred a second are plenty
		}
	}()
	r.t.Cleanup(func() { w.stop(); _ = c.Close() })
	return w
}

func (w *writer) pad(bytes int) {
	w.size.Lock()
	defer w.size.Unlock()
	w.padding = bytes
}

func (w *writer) stop() {
	w.cancel()
	<-w.done
}

// more waits for another n acknowledged writes.
func (w *writer) more(n int) {
	w.t.Helper()
	from := w.count()
	w.wait(10*time.Minute, fmt.Sprintf("%d more writes", n), func() (bool, string) { return w.count() >= from+n, "" })
}

// gone returns how many acknowledged writes are lost.
func (w *writer) gone() int {
	w.t.Helper()
	acked, have := w.soFar(), map[string]bool{}
	r, err := w.client.Get(context.Background(), "drill/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, kv := range r.Kvs {
		have[string(kv.Key)] = true
	}
	return lost(acked, have)
}

func (w *writer) verify() {
	w.t.Helper()
	lost := w.gone()
	if lost > 0 {
		w.t.Errorf("%d of %d acknowledged writes are lost", lost, len(w.acked))
	}
	w.t.Logf("%d writes acknowledged, %d failed, %d lost", len(w.acked), w.failed, lost)
}

// asker asks the API through a node's balancer, again and again.
type asker struct {
	// worst and answers are for whoever has stopped it.
	worst   time.Duration
	answers int
	cancel  func()
	done    chan struct{}
}

func (a *asker) stop() {
	a.cancel()
	<-a.done
}

func (r *rack) ask(name string) *asker {
	ctx, cancel := context.WithCancel(context.Background())
	a := &asker{cancel: cancel, done: make(chan struct{})}
	m := r.nodes[name]
	go func() {
		defer close(a.done)
		last := time.Now()
		for ctx.Err() == nil {
			if _, err := m.on("curl", "-skf", "--max-time", "2", "-o", "/dev/null", "https://127.0.0.1:7443/readyz"); err == nil {
				a.worst, last = max(a.worst, time.Since(last)), time.Now()
				a.answers++
			}
			time.Sleep(200 * time.Millisecond)
		}
		a.worst = max(a.worst, time.Since(last)) // it may never have answered again
	}()
	r.t.Cleanup(a.stop)
	return a
}

// creator makes one ConfigMap after another through a node's balancer.
type creator struct {
	tally
	via    string
	cancel func()
	done   chan struct{}
}

func (c *creator) stop() {
	c.cancel()
	<-c.done
}

// create begins to write through the balancer of a node that stays on meanwhile. All
// names begin with prefix.
func (r *rack) create(via, prefix string) *creator {
	r.t.Helper()
	client, server := r.kubernetes(via)
	return r.createBy(client, server, via, prefix)
}

// createOn is create for one whose connection leads to the API server of another node, which is
// where it will be when that one fails: a balancer that happened to lead elsewhere shows nothing.
func (r *rack) createOn(victim, via, prefix string) *creator {
	r.t.Helper()
	client, server := r.kubernetes(via)
	r.wait(5*time.Minute, "a connection from "+via+" to "+victim+"'s API server", func() (bool, string) {
		resp, err := client.Get(server + "/readyz")
		if err != nil {
			return false, err.Error()
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		// kubeadm writes the node's name into the certificate of its API server.
		names := resp.TLS.PeerCertificates[0].DNSNames
		if slices.Contains(names, victim) {
			return true, ""
		}
		client.CloseIdleConnections()
		return false, strings.Join(names, " ")
	})
	return r.createBy(client, server, via, prefix)
}

func (r *rack) createBy(client *http.Client, server, via, prefix string) *creator {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &creator{via: via, cancel: cancel, done: make(chan struct{})}
	c.last = time.Now()
	go func() {
		defer close(c.done)
		for i := 0; ctx.Err() == nil; i++ {
			name := fmt.Sprintf("%s-%s-%06d", prefix, via, i)
			c.note(name, post(ctx, client, server+"/api/v1/namespaces/default/configmaps", map[string]any{
				"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name, "labels": map[string]string{"drill": "yes"}}}))
			time.Sleep(100 * time.Millisecond)
		}
	}()
	r.t.Cleanup(c.stop)
	return c
}

// kubernetes is a client of Kubernetes that calls from a node, through its balancer.
func (r *rack) kubernetes(via string) (*http.Client, string) {
	r.t.Helper()
	pid := r.nodes[via].pid
	read := func(path string) ([]byte, error) { return os.ReadFile(fmt.Sprintf("/proc/%d/root%s", pid, path)) }
	conf, err := read(kubeadm.AdminConf)
	if err != nil {
		r.t.Fatal(err)
	}
	server, credentials, err := kubeadm.Credentials(conf, read)
	if err != nil {
		r.t.Fatal(err)
	}
	t := &http.Transport{TLSClientConfig: credentials, DialContext: dialFrom(pid), ForceAttemptHTTP2: true}
	r.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 2 * time.Second}, server
}

// dialFrom dials in the network namespace of a process, whose addresses are numbers.
func dialFrom(pid int) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (_ net.Conn, err error) {
		there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			return nil, err
		}
		defer there.Close()
		runtime.LockOSThread()
		here, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			return nil, err
		}
		defer here.Close()
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			return nil, err
		}
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, address)
		if back := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); back != nil {
			return nil, back // the thread is of no more use, and ends with its goroutine
		}
		runtime.UnlockOSThread()
		return c, err
	}
}

func post(ctx context.Context, client *http.Client, to string, object any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusCreated {
		err = fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return err
}

// created are the names of all ConfigMaps that drills made.
func (r *rack) created(t *testing.T, via string) map[string]bool {
	t.Helper()
	client, server := r.kubernetes(via)
	client.Timeout = time.Minute
	resp, err := client.Get(server + "/api/v1/namespaces/default/configmaps?labelSelector=drill%3Dyes")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var list struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		} `json:"items"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, i := range list.Items {
		have[i.Metadata.Name] = true
	}
	return have
}
