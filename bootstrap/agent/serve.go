package agent

import (
	"context"
	"io"
	"strconv"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
)

// Version implements nodeapi.Node.
func (n *node) Version(context.Context) *api.VersionResponse {
	f := n.Host.Facts()
	return &api.VersionResponse{Agent: n.Agent.Version, Os: f.OS, Kernel: f.Kernel, Kubelet: n.news().kubernetes.GetKubeletVersion()}
}

// Health implements nodeapi.Node: a node is healthy when every step is done.
func (n *node) Health(context.Context) *api.HealthResponse {
	f, r := n.Host.Facts(), n.news()
	out := &api.HealthResponse{Healthy: len(r.steps) > 0, Steps: clone(r.steps), Facts: wireFacts(f), BootId: f.BootID, Warnings: append(n.keeping.warnings(), endWarnings(n.Now(), n.endings())...)}
	for _, s := range r.steps {
		if s.GetState() != api.StepStatus_STATE_DONE {
			out.Healthy = false
		}
	}
	return out
}

// Journal implements nodeapi.Node.
func (n *node) Journal(ctx context.Context, q nodeapi.Query, read func(io.Reader) error) error {
	argv := []string{"journalctl", "--output=json", "--output-fields=MESSAGE,_SYSTEMD_UNIT", "--no-pager", "--lines=" + strconv.Itoa(q.Lines)}
	if q.Unit != "" {
		argv = append(argv, "--unit="+q.Unit)
	}
	if !q.Since.IsZero() {
		argv = append(argv, "--since=@"+strconv.FormatInt(q.Since.Unix(), 10))
	}
	if q.Follow {
		argv = append(argv, "--follow")
	}
	return n.Host.Stream(ctx, host.Command{Argv: argv}, read)
}
