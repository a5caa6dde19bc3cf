package render

import (
	"fmt"
	"slices"
	"strings"

	ignition "github.com/coreos/ignition/v2/config/v3_4"
	"github.com/coreos/ignition/v2/config/v3_4/types"

	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/butane/snippet"
)

// DisklessInput is what the Ignition of a diskless machine needs.
type DisklessInput struct {
	Machine string
	Role    plan.Role
	// NodeConfig is node.json in mode node, without a token.
	NodeConfig []byte
	// Network is what Networks.Files returned without passwords.
	Network []File
	// Extensions are those of its role, with the agent's.
	Extensions []ExtensionFile
}

// ExtensionFile is where a system extension is served, and what it is: the way there need
// not be trusted.
type ExtensionFile struct {
	Name, URL string
	// SHA256 in hexadecimal.
	SHA256 string
}

// Diskless returns the Ignition config of a machine that runs in its memory: that of its
// role, with what others find in ROOT, where the installer left it.
func Diskless(in DisklessInput) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("rendering the Ignition of %s: %w", in.Machine, err)
	}
	conf, err := nodeconf.Parse(in.NodeConfig)
	if err != nil {
		return fail(err)
	}
	if conf.Mode != nodeconf.Node || conf.Token != "" {
		return fail(fmt.Errorf("node.json is for mode %q, want %q without a token", conf.Mode, nodeconf.Node))
	}
	cfg, err := role(in.Role)
	if err != nil {
		return fail(err)
	}
	// It has been read before; here it would be done again at every start.
	for _, s := range in.Role.Butane {
		child, _ := snippet.Translate(s.File, s.Content, s.Dir)
		if keys := snippet.Disks(child); len(keys) > 0 {
			return fail(fmt.Errorf("%s writes disks: %s", s.File, strings.Join(keys, ", ")))
		}
	}
	own := types.Config{Ignition: types.Ignition{Version: specVersion}}
	own.Storage.Files = append(own.Storage.Files,
		inline(nodeconf.Path, 0o644, string(in.NodeConfig)),
		inline("/etc/hostname", 0o644, in.Machine+"\n"))
	for _, f := range in.Network {
		own.Storage.Files = append(own.Storage.Files, inline(f.Path, int(f.Mode), string(f.Content)))
	}
	if !slices.ContainsFunc(in.Extensions, func(e ExtensionFile) bool { return e.Name == agentExtension }) {
		return fail(fmt.Errorf("the extension %s is missing: nothing would enrol the machine", agentExtension))
	}
	for _, e := range in.Extensions {
		own.Storage.Files = append(own.Storage.Files, file("/etc/extensions/"+e.Name+".raw", 0o644, types.Resource{
			Source: &e.URL, Verification: types.Verification{Hash: ptr("sha256-" + strings.ToLower(e.SHA256))},
		}))
	}
	b, err := encode(ignition.Merge(cfg, own))
	if err != nil {
		return fail(err)
	}
	return b, nil
}

// agentExtension is the name of the extension that brings bootstrapd (images/sysext).
const agentExtension = "imagectl"
