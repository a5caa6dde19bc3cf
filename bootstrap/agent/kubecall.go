package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// kubeClient is a client of Kubernetes by a kubeconfig.
type kubeClient struct {
	// digest is of all that it was made of.
	digest, server string
	client         *http.Client
}

// kubeClients are by kubeconfig. The zero value has none.
type kubeClients struct {
	mu sync.Mutex
	by map[string]*kubeClient
}

// kubeClient keeps a client while its kubeconfig and the files that this names are the same: a
// handshake for each look costs both sides more than the look.
func (a *Agent) kubeClient(kubeconfig string) (*kubeClient, error) {
	sum := sha256.New()
	read := func(path string) ([]byte, error) {
		b, err := a.Host.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n%s", path, len(b), b)
		return b, err
	}
	conf, err := read(kubeconfig)
	if err != nil {
		return nil, err
	}
	server, credentials, err := kubeadm.Credentials(conf, read)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	now := hex.EncodeToString(sum.Sum(nil))
	a.kubernetes.mu.Lock()
	defer a.kubernetes.mu.Unlock()
	k := a.kubernetes.by[kubeconfig]
	if k != nil && k.digest == now {
		return k, nil
	}
	if k != nil {
		k.client.CloseIdleConnections()
	}
	if a.kubernetes.by == nil {
		a.kubernetes.by = map[string]*kubeClient{}
	}
	k = &kubeClient{digest: now, server: server, client: &http.Client{Timeout: askKubernetes, Transport: &http.Transport{TLSClientConfig: credentials, IdleConnTimeout: 2 * resettle}}}
	a.kubernetes.by[kubeconfig] = k
	return k, nil
}

// A kubeCall is one call to Kubernetes' API.
type kubeCall struct {
	// as is the kubeconfig with whose rights it is made.
	as string
	// path may have a query.
	method, path string
	// accept and contentType are media types; empty is JSON.
	accept, contentType string
	// body is what is sent, nil for nothing.
	body []byte
}

// mergePatch is the media type of RFC 7396.
const mergePatch = "application/merge-patch+json"

// answerMax bounds an answer, in bytes. A page of 200 pods is the largest: some hundred
// kilobytes, and a Node lists each image that it has.
const answerMax = 16 << 20

// callKubernetes makes a call; a status that says no is no error.
func (a *Agent) callKubernetes(ctx context.Context, c kubeCall) (answer []byte, status int, err error) {
	k, err := a.kubeClient(c.as)
	if err != nil {
		return nil, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, c.method, k.server+c.path, bytes.NewReader(c.body))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Accept", cmp.Or(c.accept, "application/json"))
	if c.body != nil {
		req.Header.Set("Content-Type", cmp.Or(c.contentType, "application/json"))
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(io.LimitReader(resp.Body, answerMax)); err != nil {
		return nil, 0, fmt.Errorf("reading %s: %w", c.path, err)
	}
	return answer, resp.StatusCode, nil
}

// refused is the error for an answer that is a no.
func (c kubeCall) refused(status int, answer []byte) error {
	path, _, _ := strings.Cut(c.path, "?")
	return fmt.Errorf("calling %s %s: %d %s: %s", c.method, path, status, http.StatusText(status), strings.TrimSpace(string(answer[:min(len(answer), 300)])))
}
