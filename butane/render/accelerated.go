package render

import "github.com/coreos/ignition/v2/config/v3_4/types"

// The path sorts before what cluster.yaml says of cards (20-imagectl-): the second card has the
// first one's MAC address.
const (
	acceleratedPath = "/etc/systemd/network/10-imagectl-accelerated.network"
	accelerated     = "[Match]\nVirtualization=microsoft\nDriver=mlx4_en mlx5_core mana\n\n[Link]\nUnmanaged=yes\n"
)

// acceleratedCards keeps systemd-networkd from the second card that Hyper-V gives to a machine
// with accelerated networking: it stands behind the first, which the kernel sends by it as it
// likes (Documentation/networking/netvsc.rst). Flatcar has the same file for machines whose
// kernel's command line names Azure (init, yy-azure-sriov.network); our images name no platform,
// so this one goes by the hypervisor, and holds on Hyper-V at home too. Anywhere else it matches
// no card. The drivers are those of Azure's cards.
func acceleratedCards() types.Config {
	return types.Config{
		Ignition: types.Ignition{Version: specVersion},
		Storage: types.Storage{Files: []types.File{
			inline(acceleratedPath, 0o644, accelerated),
		}},
	}
}
