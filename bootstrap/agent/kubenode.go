package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// kubeNode is what the agent wants to know of its Node object.
type kubeNode struct {
	labels map[string]string
	// ready is the status of the condition Ready: True, False, Unknown, or empty
	// before kubelet has said anything; why is its message.
	ready, why string
}

// nodeObject is the part of v1.Node that is read.
type nodeObject struct {
	Metadata struct {
		Labels          map[string]string `json:"labels"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
	} `json:"metadata"`
	Status struct {
		NodeInfo struct {
			BootID string `json:"bootID"`
		} `json:"nodeInfo"`
		Conditions []struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Message string `json:"message"`
		} `json:"conditions"`
	} `json:"status"`
}

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

// nodeCall makes one call about a Node with the credentials of a kubeconfig.
func (a *Agent) nodeCall(ctx context.Context, kubeconfig, method, name string, body []byte) (answer []byte, status int, err error) {
	k, err := a.kubeClient(kubeconfig)
	if err != nil {
		return nil, 0, err
	}
	at := k.server + "/api/v1/nodes/" + url.PathEscape(name)
	req, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(io.LimitReader(resp.Body, nodeMax)); err != nil {
		return nil, 0, fmt.Errorf("reading %s: %w", at, err)
	}
	return answer, resp.StatusCode, nil
}

func refusedCall(method, name string, status int, answer []byte) error {
	return fmt.Errorf("calling %s of node %s: %d %s: %s", method, name, status, http.StatusText(status), strings.TrimSpace(string(answer[:min(len(answer), 300)])))
}

// nodeMax bounds a Node object, in bytes: each image on the node is listed in it.
const nodeMax = 4 << 20

// getNode asks Kubernetes about a Node with kubelet's credentials. A kubectl for
// each look would take more of the processor than everything else the agent does.
func (a *Agent) getNode(ctx context.Context, name string) (kubeNode, error) {
	b, status, err := a.nodeCall(ctx, kubeadm.KubeletConf, http.MethodGet, name, nil)
	if err == nil && status != http.StatusOK {
		err = refusedCall(http.MethodGet, name, status, b)
	}
	if err != nil {
		return kubeNode{}, err
	}
	var o nodeObject
	if err := json.Unmarshal(b, &o); err != nil {
		return kubeNode{}, fmt.Errorf("reading node %s: %w", name, err)
	}
	out := kubeNode{labels: o.Metadata.Labels}
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" {
			out.ready, out.why = c.Status, c.Message
		}
	}
	return out, nil
}
