// Command flannel is the CNI plugin between flanneld and the bridge plugin: it
// reads the subnet that flanneld was given for this node and delegates to
// bridge and host-local, as upstream's flannel-io/cni-plugin does. Upstream's
// module is not on the module proxy, so this is our own, with the part of its
// configuration that test/upstream/images/flannel.yaml uses.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// subnetFile is where flanneld writes its lease.
const subnetFile = "/run/flannel/subnet.env"

// stateDir holds host-local's addresses. It vanishes with a reboot, as the
// lease in subnetFile does, so that a DEL without a lease leaks nothing.
const stateDir = "/run/cni/networks"

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check}, version.All,
		"flannel: delegates to bridge with flanneld's subnet")
}

func add(args *skel.CmdArgs) error {
	conf, delegate, err := delegation(args.StdinData, subnetFile)
	if err != nil {
		return err
	}
	result, err := invoke.DelegateAdd(context.Background(), "bridge", delegate, nil)
	if err != nil {
		return fmt.Errorf("delegating ADD to bridge: %w", err)
	}
	return types.PrintResult(result, conf.CNIVersion)
}

func del(args *skel.CmdArgs) error {
	_, delegate, err := delegation(args.StdinData, subnetFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no lease since the reboot: nothing of this pod is left
	}
	if err != nil {
		return err
	}
	return invoke.DelegateDel(context.Background(), "bridge", delegate, nil)
}

func check(args *skel.CmdArgs) error {
	_, delegate, err := delegation(args.StdinData, subnetFile)
	if err != nil {
		return err
	}
	return invoke.DelegateCheck(context.Background(), "bridge", delegate, nil)
}

// config is what the plugin reads on its standard input.
type config struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	Delegate   map[string]any  `json:"delegate"`
	PrevResult json.RawMessage `json:"prevResult,omitempty"`
}

// delegation returns the parsed configuration and bridge's, which is the
// "delegate" object completed from the lease in the file named lease.
func delegation(stdin []byte, lease string) (config, []byte, error) {
	var c config
	if err := json.Unmarshal(stdin, &c); err != nil {
		return c, nil, fmt.Errorf("reading the network configuration: %w", err)
	}
	env, err := readLease(lease)
	if err != nil {
		return c, nil, fmt.Errorf("reading flanneld's lease: %w", err)
	}
	// flanneld writes the gateway's address with the subnet's length.
	subnet, err := netip.ParsePrefix(env["FLANNEL_SUBNET"])
	if err != nil {
		return c, nil, fmt.Errorf("reading FLANNEL_SUBNET in %s: %w", lease, err)
	}
	mtu, err := strconv.Atoi(env["FLANNEL_MTU"])
	if err != nil {
		return c, nil, fmt.Errorf("reading FLANNEL_MTU in %s: %w", lease, err)
	}
	d := map[string]any{
		"isGateway": true,
		"ipMasq":    env["FLANNEL_IPMASQ"] != "true",
		"mtu":       mtu,
	}
	for k, v := range c.Delegate {
		d[k] = v
	}
	d["cniVersion"], d["name"], d["type"] = c.CNIVersion, c.Name, "bridge"
	d["ipam"] = map[string]any{
		"type":    "host-local",
		"dataDir": stateDir,
		"ranges":  [][]map[string]string{{{"subnet": subnet.Masked().String()}}},
		"routes":  []map[string]string{{"dst": env["FLANNEL_NETWORK"]}},
	}
	if len(c.PrevResult) > 0 {
		d["prevResult"] = c.PrevResult
	}
	b, err := json.Marshal(d)
	return c, b, err
}

func readLease(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	env := make(map[string]string)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if k, v, ok := strings.Cut(lines.Text(), "="); ok {
			env[k] = v
		}
	}
	return env, lines.Err()
}
