package agent

import (
	"context"
	"sync"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/ipmi"
)

// controller is what the machine's BMC said of itself. The zero value is ready; it is
// safe for concurrent use.
type controller struct {
	mu   sync.Mutex
	said *ipmi.Controller
}

func (c *controller) get() *ipmi.Controller {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said
}

// lookForBMC asks once: a controller's address seldom changes, and some take seconds.
func (a *Agent) lookForBMC(ctx context.Context) {
	found, err := a.askBMC(ctx)
	if err != nil {
		a.Log.Debug("no BMC", "err", err)
		return
	}
	a.controller.mu.Lock()
	defer a.controller.mu.Unlock()
	a.controller.said = &found
}

// askMachinesBMC is how a real machine's is asked.
func (a *Agent) askMachinesBMC(ctx context.Context) (ipmi.Controller, error) {
	// The kernel loads its driver where firmware shows a controller, but not the device.
	// Where that fails, opening it says so.
	_, _ = a.Host.Run(ctx, host.Command{Argv: []string{"modprobe", "--quiet", "ipmi_devintf"}})
	device, err := a.Host.IPMI()
	if err != nil {
		return ipmi.Controller{}, err
	}
	defer device.Close()
	return ipmi.Find(device.Ask)
}
