//go:build e2e

package byhand

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/test/lab"
)

// kubernetes is a cluster's API, asked without kubectl: that takes more processor time
// to start than the answer does, of which the guests have none to spare.
type kubernetes struct {
	http.Client
	server string
}

// open reads a kubeconfig.
func open(kubeconfig string) (*kubernetes, error) {
	conf, err := os.ReadFile(kubeconfig)
	if err != nil {
		return nil, err
	}
	server, credentials, err := kubeadm.Credentials(conf, os.ReadFile)
	if err != nil {
		return nil, err
	}
	return &kubernetes{Client: http.Client{Transport: &http.Transport{TLSClientConfig: credentials}, Timeout: 20 * time.Second}, server: server}, nil
}

// at is the same cluster by another of its API servers.
func (k *kubernetes) at(m lab.Machine) *kubernetes {
	return &kubernetes{Client: k.Client, server: "https://" + m.Address + ":6443"}
}

func (k *kubernetes) call(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	if in == nil {
		body = nil
	}
	req, err := http.NewRequestWithContext(ctx, method, k.server+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := k.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	return json.Unmarshal(answer, out)
}

// ready lists the nodes that Kubernetes finds Ready, and why not of the others.
func (k *kubernetes) ready(ctx context.Context) (yes map[string]bool, no string, err error) {
	var list Nodes
	if err := k.call(ctx, http.MethodGet, NodesPath, nil, &list); err != nil {
		return nil, "", err
	}
	yes, no = list.Ready()
	return yes, no, nil
}

// allReady waits until Kubernetes finds every machine Ready; it tells of each that is.
func (k *kubernetes) allReady(ctx context.Context, rack *lab.Lab, tell func(name string)) error {
	said := ""
	return lab.Until(ctx, func() (bool, string, error) {
		for _, m := range rack.Machines {
			if bad := rack.Guests[m.Name].Console.Bad(); len(bad) > 0 {
				return false, "", fmt.Errorf("the console of %s shows: %s", m.Name, strings.Join(bad, "; "))
			}
		}
		yes, reason, err := k.ready(ctx)
		if err != nil {
			reason = err.Error()
		}
		count := 0
		for _, m := range rack.Machines {
			if yes[m.Name] {
				count++
				tell(m.Name)
			}
		}
		reason = fmt.Sprintf("waiting for %d nodes to be Ready, %d are; %s", len(rack.Machines), count, reason)
		if reason != said && count < len(rack.Machines) {
			rack.Log("%s", reason)
			said = reason
		}
		return count == len(rack.Machines), reason, nil
	})
}
