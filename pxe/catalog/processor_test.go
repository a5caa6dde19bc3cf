package catalog

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
)

// Whatever a machine is, and however far: it is never sent to a kernel for another
// processor, and where that is why nothing starts, its own screen says so.
func TestNobodyGetsAKernelForAnotherProcessor(t *testing.T) {
	t.Parallel()
	states := append(machine.States(), "")
	for _, arch := range []string{"", "amd64", "arm64"} {
		for firmware, runs := range map[boot.Firmware]string{"": "", boot.BIOS: "amd64", boot.UEFIx64: "amd64", boot.UEFIarm64: "arm64", boot.OtherUEFI("riscv64"): "riscv64"} {
			for _, nbp := range []plan.NBP{plan.NBPIPXE, plan.NBPGRUB} {
				for _, state := range states {
					for _, unknown := range []plan.UnknownMachines{plan.Discover, plan.Ignore} {
						cfg := rack()
						cfg.Plan.Flatcar.Arch, cfg.Plan.Boot.NBP, cfg.Plan.Boot.Unknown = arch, nbp, unknown
						for i := range cfg.Plan.Machines {
							cfg.Plan.Machines[i].NBP = nbp
						}
						cfg.States = everybody{state}
						c := newCatalog(t, cfg)
						for _, card := range []int{1, 77} {
							m := boot.Machine{MAC: mac(card)}
							plain := c.Decide(m)
							m.Firmware = firmware
							a := c.Decide(m)
							what := fmt.Sprintf("arch %q, %q by %s, machine %q in state %q, others: %s: got %s %s", arch, firmware, nbp, a.Name, state, unknown, a.Action, a.Code)
							fits := runs == "" || runs == arch || runs == "amd64" && arch == ""
							switch {
							case fits && (a.Action != plain.Action || a.Code != plain.Code || a.Reason != plain.Reason):
								t.Errorf("%s, want the same as without a processor: %s %s", what, plain.Action, plain.Code)
							case !fits && (a.Kernel.Name != "" || len(a.Initrd) != 0 || a.Action == boot.Install || a.Action == boot.Discover):
								t.Errorf("%s with the kernel %q", what, a.Kernel.Name)
							}
							starts := plain.Kernel.Name != "" || plain.Code == "not-armed"
							if told := !fits && starts; a.Told != told || told && (a.Code != "no-image" || !a.Refused || a.LocalBoot == "" || a.Address != plain.Address || a.Name != plain.Name) {
								t.Errorf("%s: %+v", what, a)
							}
							if runs != "" && runs != "amd64" && a.Program != boot.IPXE {
								t.Errorf("%s: its program is %s", what, a.Program)
							}
						}
					}
				}
			}
		}
	}
}

// everybody is in one state.
type everybody struct{ state machine.State }

func (e everybody) State(string) machine.State { return e.state }

func TestTheReasonNamesBothProcessors(t *testing.T) {
	t.Parallel()
	c := newCatalog(t, rack())
	a := c.Decide(boot.Machine{MAC: mac(1), Firmware: boot.UEFIarm64})
	const want = "its processor is arm64, and all images of this cluster are for amd64 (flatcar.arch in cluster.yaml): nothing is started and nothing is written"
	if a.Reason != want {
		t.Errorf("got %q, want %q", a.Reason, want)
	}
	for _, firmware := range []boot.Firmware{boot.BIOS, boot.UEFIx64} {
		cfg := rack()
		cfg.Plan.Flatcar.Arch = "arm64"
		if a := newCatalog(t, cfg).Decide(boot.Machine{MAC: mac(1), Firmware: firmware}); !strings.HasPrefix(a.Reason, "its processor is amd64, and all images of this cluster are for arm64 ") || slices.Contains(a.Args, FirstBoot) {
			t.Errorf("%s: got %q with the arguments %q", firmware, a.Reason, a.Args)
		}
	}
}
