//go:build e2e

package e2e

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

var bootOption = regexp.MustCompile(`BdsDxe: loading Boot[0-9A-F]{4} "([^"]*)"`)

// diskRightAfterNetwork looks at what the firmware of each UEFI machine tried since
// it was powered on: the network first, and then, if the server said so, the disk's
// entry that the installer made. Anything else would run into a time-out first.
func diskRightAfterNetwork(t *testing.T, rack *lab.Lab) {
	seen := 0
	for _, m := range rack.Machines {
		if m.Idle || m.Firmware != vm.OVMF {
			continue
		}
		seen++
		ours := "imagectl " + m.Name + "/disk"
		var tried []string
		for _, line := range rack.Guests[m.Name].Console.Tail(1 << 20) {
			if found := bootOption.FindStringSubmatch(line); found != nil {
				tried = append(tried, found[1])
			}
		}
		other := func(option string) bool { return option != ours && !strings.HasPrefix(option, "UEFI PXEv4") }
		if slices.ContainsFunc(tried, other) || !slices.Contains(tried, ours) {
			t.Errorf("the firmware of %s tried %q, want its first network entry and then %q only", m.Name, tried, ours)
		}
	}
	if seen == 0 {
		t.Error("the rack has no machine with UEFI")
	}
}
