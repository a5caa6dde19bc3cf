package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/bootstrap/ipmi"
)

func TestTheBMCIsPartOfTheFacts(t *testing.T) {
	t.Parallel()
	a := &Agent{Log: slog.New(slog.DiscardHandler)}
	a.askBMC = func(context.Context) (ipmi.Controller, error) { return ipmi.Controller{}, errors.New("none") }
	a.lookForBMC(t.Context())
	if got := a.wireFacts(host.Facts{}).GetBmc(); got != nil {
		t.Errorf("without one: %v", got)
	}
	a.askBMC = func(context.Context) (ipmi.Controller, error) {
		return ipmi.Controller{Address: netip.MustParseAddr("10.9.0.12"), MAC: net.HardwareAddr{0, 0x25, 0x90, 1, 2, 3}, VLAN: 9}, nil
	}
	a.lookForBMC(t.Context())
	if got := a.wireFacts(host.Facts{}).GetBmc(); got.GetAddress() != "10.9.0.12" || got.GetMac() != "00:25:90:01:02:03" || got.GetVlan() != 9 {
		t.Errorf("got %v", got)
	}
}

// Most machines have none: virtual ones, and those whose kernel lacks the driver.
func TestAMachineWithoutABMCSaysSo(t *testing.T) {
	t.Parallel()
	n := hosttest.New(t)
	a := &Agent{Host: n.Host, Log: slog.New(slog.DiscardHandler)}
	if _, err := a.askMachinesBMC(t.Context()); err == nil {
		t.Error("one is found")
	}
	if ran := n.Ran(); len(ran) != 1 || ran[0] != "modprobe --quiet ipmi_devintf" {
		t.Errorf("it ran %q", ran)
	}
}
