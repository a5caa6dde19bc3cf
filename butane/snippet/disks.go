package snippet

import "github.com/coreos/ignition/v2/config/v3_4/types"

// Disks are the keys of a config that have Ignition write disks, as a Butane file has them.
func Disks(cfg types.Config) []string {
	var out []string
	for _, k := range []struct {
		key string
		n   int
	}{
		{"storage.disks", len(cfg.Storage.Disks)}, {"storage.raid", len(cfg.Storage.Raid)},
		{"storage.filesystems", len(cfg.Storage.Filesystems)}, {"storage.luks", len(cfg.Storage.Luks)},
	} {
		if k.n > 0 {
			out = append(out, k.key)
		}
	}
	return out
}
