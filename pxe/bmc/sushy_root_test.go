//go:build root

package bmc

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sushy is OpenStack's Redfish client, which Ironic drives BMCs with. It asks of a BMC what
// Boot, Cycle and Insert ask of one.
const sushy = `
import sys, warnings
warnings.simplefilter("ignore")
import sushy
url, user, password, image = sys.argv[1:]
bmc = sushy.Sushy(url, username=user, password=password, verify=False)
[system] = bmc.get_system_collection().get_members()
print(system.manufacturer, system.power_state.value, sorted(k.value for k in system.get_allowed_system_boot_source_values()))
system.set_system_boot_options(sushy.BOOT_SOURCE_TARGET_PXE, enabled=sushy.BOOT_SOURCE_ENABLED_ONCE)
system.refresh(force=True)
print(system.boot.enabled.value, system.boot.target.value)
system.reset_system(sushy.RESET_ON)
system.refresh(force=True)
print(system.power_state.value, system.boot.enabled.value)
[manager] = system.managers
[slot] = manager.virtual_media.get_members()
slot.insert_media(image)
slot.refresh(force=True)
print(slot.inserted, slot.image)
system.set_system_boot_options(sushy.BOOT_SOURCE_TARGET_CD, enabled=sushy.BOOT_SOURCE_ENABLED_ONCE)
system.reset_system(sushy.RESET_FORCE_RESTART)
slot.eject_media()
slot.refresh(force=True)
print(slot.inserted)
try:
    system.reset_system(sushy.RESET_ON)
except sushy.exceptions.SushyError as e:
    print("refused:", "The machine is On already" in str(e))
try:
    sushy.Sushy(url, username=user, password="guess", verify=False).get_system_collection()
except sushy.exceptions.AccessError as e:
    print("login:", e.status_code)
`

// Our fake BMC is one to a client of another hand too; else our client would only have been
// tried against its own idea of Redfish.
func TestSushyTakesTheFakeForABMC(t *testing.T) {
	f := newFake()
	f.mediaAtManager = true
	f.manufacturer, f.targets, f.resets = "Acme", []string{"None", "Pxe", "Cd", "Hdd"}, append(f.resets, "GracefulRestart")
	target := f.start(t)
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", sushy, "https://"+target.Address, f.user, f.password, installer)
	cmd.Env = []string{"PATH=/usr/bin:/bin"} // a bundle of CAs named there would count for more than verify=False
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\ncalls:\n%s", err, out, strings.Join(f.happened(""), "\n"))
	}
	want := `Acme Off ['Cd', 'Hdd', 'None', 'Pxe']
Once Pxe
On Disabled
True ` + installer + `
False
refused: True
login: 401
`
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"Pxe", "Cd"}, f.starts()); diff != "" {
		t.Error(diff)
	}
}
