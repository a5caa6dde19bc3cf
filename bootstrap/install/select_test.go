package install

import (
	"errors"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
)

func TestSelectTakesExactlyOneDiskOrSaysWhyNot(t *testing.T) {
	t.Parallel()
	const gb = 1_000_000_000
	disks := []host.Disk{
		{Path: "/dev/nvme0n1", Size: 960 * gb, Serial: "S1", Model: "SAMSUNG MZQL2960", WWN: "eui.01"},
		{Path: "/dev/nvme1n1", Size: 960 * gb, Serial: "S2", Model: "SAMSUNG MZQL2960", WWN: "eui.02"},
		{Path: "/dev/sda", Size: 64 * gb, Serial: "BOOT", Model: "SATADOM", InUse: "sda3 is mounted at /usr"},
		{Path: "/dev/sdb", Size: 32 * gb, Serial: "STICK", Model: "USB", Removable: true},
	}
	for name, tc := range map[string]struct {
		rule *api.DiskRule
		want string
		code Code
		err  string
	}{
		"a path":             {rule: &api.DiskRule{Path: "/dev/nvme1n1"}, want: "/dev/nvme1n1"},
		"a serial":           {rule: &api.DiskRule{Serial: "S1"}, want: "/dev/nvme0n1"},
		"model and wwn":      {rule: &api.DiskRule{Model: "SAMSUNG*", Wwn: "eui.02"}, want: "/dev/nvme1n1"},
		"a stick, by serial": {rule: &api.DiskRule{Serial: "STICK"}, want: "/dev/sdb"},
		"no rule": {rule: nil, code: EmptyRule,
			err: "the disk rule is empty and so matches no disk: set installDisk for this machine in cluster.yaml"},
		"a stick, by size": {rule: &api.DiskRule{MaxSizeBytes: 40 * gb}, code: NoDisk,
			err: `no disk matches the rule (size at most 40000000000); this machine has /dev/nvme0n1 (960000000000 bytes, model "SAMSUNG MZQL2960", serial "S1"), /dev/nvme1n1 (960000000000 bytes, model "SAMSUNG MZQL2960", serial "S2"), /dev/sda (64000000000 bytes, model "SATADOM", serial "BOOT"), /dev/sdb (32000000000 bytes, model "USB", serial "STICK")`},
		"two of a kind": {rule: &api.DiskRule{MinSizeBytes: 100 * gb}, code: ManyDisks,
			err: `2 disks match the rule (size at least 100000000000), which must select exactly one: /dev/nvme0n1 (960000000000 bytes, model "SAMSUNG MZQL2960", serial "S1"), /dev/nvme1n1 (960000000000 bytes, model "SAMSUNG MZQL2960", serial "S2")`},
		"the disk in use": {rule: &api.DiskRule{Model: "SATA*"}, code: DiskInUse,
			err: "the disk /dev/sda that the rule (model SATA*) selects is in use: sda3 is mounted at /usr"},
		"a pattern that is none": {rule: &api.DiskRule{Model: "["}, code: BadRule,
			err: `the disk rule's model "[" is not a shell pattern: syntax error in pattern`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Select(tc.rule, disks)
			if tc.err == "" {
				if err != nil || got.Path != tc.want {
					t.Errorf("got %q, %v, want %q", got.Path, err, tc.want)
				}
				return
			}
			var r *RefusedError
			if !errors.As(err, &r) || r.Code != tc.code || r.Error() != tc.err {
				t.Errorf("got  %v\nwant %s: %s", err, tc.code, tc.err)
			}
		})
	}
	if _, err := Select(&api.DiskRule{Path: "/dev/vda"}, nil); err == nil || err.Error() != "no disk matches the rule (path /dev/vda); this machine has no disk at all" {
		t.Errorf("got %v", err)
	}
}
