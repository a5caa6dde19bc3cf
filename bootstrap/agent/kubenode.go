package agent

import (
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
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
	Status struct {
		Conditions []struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Message string `json:"message"`
		} `json:"conditions"`
	} `json:"status"`
}

// nodeMax bounds a Node object, in bytes: each image on the node is listed in it.
const nodeMax = 4 << 20

// getNode asks Kubernetes about a Node with kubelet's credentials. A kubectl for
// each look would take more of the processor than everything else the agent does.
func (a *Agent) getNode(ctx context.Context, name string) (kubeNode, error) {
	conf, err := a.Host.ReadFile(kubeadm.KubeletConf)
	if err != nil {
		return kubeNode{}, err
	}
	server, credentials, err := kubeadm.Credentials(conf, a.Host.ReadFile)
	if err != nil {
		return kubeNode{}, fmt.Errorf("%s: %w", kubeadm.KubeletConf, err)
	}
	t := &http.Transport{TLSClientConfig: credentials}
	defer t.CloseIdleConnections()
	at := server + "/api/v1/nodes/" + url.PathEscape(name)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return kubeNode{}, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := (&http.Client{Transport: t, Timeout: askKubernetes}).Do(req)
	if err != nil {
		return kubeNode{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, nodeMax))
	if err != nil {
		return kubeNode{}, fmt.Errorf("reading %s: %w", at, err)
	}
	if resp.StatusCode != http.StatusOK {
		return kubeNode{}, fmt.Errorf("asking %s: %s: %s", at, resp.Status, strings.TrimSpace(string(b[:min(len(b), 300)])))
	}
	var o nodeObject
	if err := json.Unmarshal(b, &o); err != nil {
		return kubeNode{}, fmt.Errorf("reading %s: %w", at, err)
	}
	out := kubeNode{labels: o.Metadata.Labels}
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" {
			out.ready, out.why = c.Status, c.Message
		}
	}
	return out, nil
}
