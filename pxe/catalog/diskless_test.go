package catalog

import (
	"fmt"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/pxe/boot"
)

// disklessRack is rack with a diskless a.
func disklessRack(state machine.State) Config {
	cfg := rack()
	cfg.Plan.Machines[0].Diskless = true
	cfg.Initrd, cfg.Configured = append(cfg.Initrd, blob("installer.cpio.gz", 4)), true
	cfg.Diskless = map[string]Diskless{"a": {Archive: blob("a.cpio.gz", 5), Args: []string{"isolcpus=1"}}}
	cfg.States = states{"a": state, "b": machine.Armed}
	return cfg
}

// What a diskless machine boots, nobody has to allow at each start, and nobody can make it
// an installation: only its key says whether it is let in.
func TestADisklessMachineRunsInWhateverState(t *testing.T) {
	for _, tt := range []struct {
		state machine.State
		want  string
	}{
		{"", "run diskless false"}, {machine.Discovered, "run diskless false"}, {machine.Approved, "run diskless false"},
		{machine.Installed, "run diskless false"}, {machine.Enrolled, "run diskless false"}, {machine.Member, "run diskless false"}, {machine.Ready, "run diskless false"},
		{machine.Quarantined, "run diskless false"}, {machine.Failed, "run diskless false"},
		{machine.Armed, "local armed true"}, {machine.Installing, "local installing true"}, {machine.Retired, "local retired true"},
	} {
		c := newCatalog(t, disklessRack(tt.state))
		a := c.Decide(boot.Machine{MAC: mac(1)})
		if got := fmt.Sprintf("%s %s %t", a.Action, a.Code, a.Refused); got != tt.want {
			t.Errorf("%s: got %q, want %q (%s)", tt.state, got, tt.want, a.Reason)
		}
		if _, err := c.Ignition(boot.Machine{MAC: mac(1)}); (err == nil) != (a.Action == boot.Run) {
			t.Errorf("%s: action %s, but Ignition says %v", tt.state, a.Action, err)
		}
		if (a.Kernel.Name != "") != (a.Action == boot.Run) {
			t.Errorf("%s: action %s with the kernel %q", tt.state, a.Action, a.Kernel.Name)
		}
	}
}

func TestADisklessMachineBootsItsOwnArchive(t *testing.T) {
	c := newCatalog(t, disklessRack(machine.Ready))
	a := c.Decide(boot.Machine{MAC: mac(1)})
	var names []string
	for _, b := range a.Initrd {
		names = append(names, b.Name)
	}
	if got, want := fmt.Sprint(names, a.Args, a.Configured), "[initrd.cpio.gz a.cpio.gz] [flatcar.first_boot=1 console=ttyS0 quiet isolcpus=1] true"; got != want {
		t.Errorf("it boots %s, want %s", got, want)
	}
	if _, ok := c.Blob(blob("", 5).SHA256); !ok {
		t.Error("its archive is not served")
	}
	// Others have the installer's as before.
	if a := c.Decide(boot.Machine{MAC: mac(2)}); a.Action != boot.Install || a.Initrd[1].Name != "installer.cpio.gz" {
		t.Errorf("a machine with a disk boots %+v", a)
	}
	cfg := disklessRack(machine.Ready)
	cfg.Diskless = nil
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "machine a: it is diskless, and there is nothing for it to boot") {
		t.Errorf("without what it boots: %v", err)
	}
	cfg = disklessRack(machine.Ready)
	cfg.Diskless["a"] = Diskless{Archive: blob("a.cpio.gz", 5), Args: []string{"a b"}}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "machine a: kernelArgs of its role") {
		t.Errorf("an argument that iPXE cannot pass on: %v", err)
	}
	// A release that loses archives: the kernel asks for its config.
	cfg = disklessRack(machine.Ready)
	cfg.Initrd, cfg.Configured, cfg.Diskless["a"] = cfg.Initrd[:1], false, Diskless{}
	if a := newCatalog(t, cfg).Decide(boot.Machine{MAC: mac(1)}); a.Configured || len(a.Initrd) != 1 || a.Action != boot.Run {
		t.Errorf("it boots %+v", a)
	}
}
