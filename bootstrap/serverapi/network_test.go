package serverapi

import (
	"net/netip"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// The installer gets what may lie on a disk that anybody takes away; the node gets all.
func TestNetworksGoToInstallersAndNodes(t *testing.T) {
	t.Parallel()
	cp := cp1()
	cp.Address = netip.MustParseAddr("10.42.0.11")
	const path = "/etc/containerd/certs.d/docker.io/hosts.toml"
	cp.Files = []*api.File{{Path: path, Mode: 0o644, Content: []byte("a mirror")}}
	cp.Network = &api.Network{Files: []*api.File{{Path: path, Mode: 0o600, Content: []byte("a mirror and its password")}}}
	r := start(t, config(cp))
	machine := r.approvedMachine("cp1", "52:54:00:00:00:01")
	r.arm("cp1", false)
	has := func(files []*api.File, content string) bool {
		for _, f := range files {
			if f.GetPath() == path && string(f.GetContent()) == content {
				return true
			}
		}
		return false
	}
	if d := machine.sync(installer()); !has(d.GetInstall().GetFiles(), "a mirror") {
		t.Errorf("the installer gets %v", d)
	}
	machine.install()
	d := machine.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE, Address: "10.0.0.200"})
	if run := d.GetRun(); !has(run.GetNetwork().GetFiles(), "a mirror and its password") || run.GetAddress() != "10.42.0.11" {
		t.Errorf("the node gets %v", d)
	}
}
