package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/firewall"
	"github.com/imagectl/imagectl/bootstrap/host"
)

// loadedPath says which rules were loaded and how the kernel lists them. Both are
// gone after a reboot.
const loadedPath = "/run/imagectl/firewall"

// firewall loads the cluster's rules in the place of the image's baseline, and again
// whenever the cluster or the kernel's table changes.
func (n *node) firewall(run *api.Run) Step {
	script, err := firewallScript(run)
	// What nft lists is not what it was given, so both are kept to compare with.
	record := func(ctx context.Context) ([]byte, error) {
		listed, err := n.firewallListed(ctx)
		return []byte("rules " + digest([]byte(script)) + "\nlisted " + digest(listed) + "\n"), err
	}
	return Step{
		Name: "firewall",
		Observe: func(ctx context.Context) (bool, string, error) {
			if err != nil {
				return false, "", err
			}
			want, err := record(ctx)
			if err != nil {
				return false, "", err
			}
			have, err := n.Host.ReadFile(loadedPath)
			if err != nil && !notExist(err) {
				return false, "", err
			}
			return string(have) == string(want), "the rules in the kernel are not this cluster's", nil
		},
		Act: func(ctx context.Context) error {
			if _, err := n.Host.Run(ctx, host.Command{Argv: []string{"nft", "--file", "-"}, Stdin: []byte(script)}); err != nil {
				return fmt.Errorf("loading the firewall, which stays as it was: %w", err)
			}
			b, err := record(ctx)
			if err != nil {
				return err
			}
			return n.write(file{loadedPath, b, 0o600})
		},
	}
}

// firewallListed is our table as the kernel has it; nothing when there is none.
func (n *node) firewallListed(ctx context.Context) ([]byte, error) {
	tables, err := n.Host.Run(ctx, host.Command{Argv: []string{"nft", "list", "tables"}})
	if err != nil || !strings.Contains(string(tables), "table "+firewall.Table+"\n") {
		return nil, err
	}
	return n.Host.Run(ctx, host.Command{Argv: []string{"nft", "--stateless", "list", "table", "inet", "imagectl"}})
}

// firewallScript words the rules of a directive. One without a control plane would cut
// a running node off, so it changes nothing.
func firewallScript(run *api.Run) (string, error) {
	f := run.GetFirewall()
	if f.GetOff() != "" {
		return firewall.Remove(), nil
	}
	in := firewall.Input{APIServer: run.GetControlPlane()}
	for _, list := range []struct {
		text []string
		to   *[]netip.Addr
	}{{f.GetControlPlanes(), &in.ControlPlanes}, {f.GetWorkers(), &in.Workers}} {
		for _, text := range list.text {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return "", fmt.Errorf("reading the addresses of the cluster's machines: %w", err)
			}
			*list.to = append(*list.to, a)
		}
	}
	if len(in.ControlPlanes) == 0 {
		return "", waiting("no control plane of the cluster has an address yet; the firewall stays as it was")
	}
	pods, err := netip.ParsePrefix(run.GetKubernetes().GetPodCidr())
	if err != nil {
		return "", fmt.Errorf("reading the pods' network: %w", err)
	}
	in.Pods = []netip.Prefix{pods}
	for _, a := range f.GetAllow() {
		out := firewall.Allow{UDP: a.GetUdp()}
		for _, text := range a.GetFrom() {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return "", fmt.Errorf("reading whom the firewall lets in: %w", err)
			}
			out.From = append(out.From, p)
		}
		for _, p := range a.GetPorts() {
			if p < 1 || p > 65535 {
				return "", fmt.Errorf("reading what the firewall opens: %d is not a port", p)
			}
			out.Ports = append(out.Ports, uint16(p))
		}
		if len(out.Ports) == 0 {
			return "", fmt.Errorf("reading what the firewall opens: no port is given for %v", a.GetFrom())
		}
		in.Allow = append(in.Allow, out)
	}
	return firewall.Rules(in), nil
}
