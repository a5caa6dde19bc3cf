package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

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

// nodeCall makes one call about a Node with the credentials of a kubeconfig.
func (a *Agent) nodeCall(ctx context.Context, kubeconfig, method, name string, body []byte) (answer []byte, status int, err error) {
	conf, err := a.Host.ReadFile(kubeconfig)
	if err != nil {
		return nil, 0, err
	}
	server, credentials, err := kubeadm.Credentials(conf, a.Host.ReadFile)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	t := &http.Transport{TLSClientConfig: credentials}
	defer t.CloseIdleConnections()
	at := server + "/api/v1/nodes/" + url.PathEscape(name)
	req, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := (&http.Client{Transport: t, Timeout: askKubernetes}).Do(req)
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
