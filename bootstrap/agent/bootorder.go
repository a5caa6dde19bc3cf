package agent

import (
	"context"
	"errors"
	"runtime"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/efiboot"
	"github.com/imagectl/imagectl/bootstrap/install"
)

// slowBoot says what a boot order costs that could not be changed, and what a
// person can do about it.
const slowBoot = "the machine boots its disk all the same, by way of the firmware's other network entries; to save that time move the disk's entry behind the first network entry in the firmware's setup"

// bootFrom puts the installed disk behind the entry that this machine netbooted
// from in its firmware's boot order. Nothing hangs on it but time, so what goes
// wrong is said and ends no installation. It returns no step on a machine without
// such an order.
func (a *Agent) bootFrom(ctx context.Context, machine string, done install.Done) []*api.StepStatus {
	const name = "boot-order"
	vars, ok, err := a.Host.EFIVariables(ctx)
	if err == nil && !ok {
		return nil
	}
	var change efiboot.Change
	program := efiboot.Program(runtime.GOARCH)
	switch {
	case err != nil:
	case done.ESP == nil || program == "":
		err = errors.New("the image has no boot program for this machine's firmware")
	default:
		p := efiboot.Partition{Number: done.ESP.Number, First: done.ESP.First, Sectors: done.ESP.Sectors, GUID: done.ESP.GUID}
		change, err = efiboot.Arrange(vars, efiboot.DiskOption(efiboot.Prefix+machine+"/disk", p, program))
	}
	if err != nil {
		a.Log.Warn("the firmware's boot order stays as it is", "err", err, "hint", slowBoot)
		a.Host.Print("imagectl: the firmware's boot order stays as it is: " + err.Error())
		return []*api.StepStatus{step(name, api.StepStatus_STATE_FAILED, err.Error()+": "+slowBoot)}
	}
	if change.Empty() {
		a.Log.Info("boot order: no changes", "order", efiboot.Numbers(change.Before))
	} else {
		a.Log.Info("boot order changed", "before", efiboot.Numbers(change.Before), "after", efiboot.Numbers(change.After()), "disk", efiboot.Numbers([]uint16{change.Number}), "deleted", efiboot.Numbers(change.Delete))
	}
	return []*api.StepStatus{step(name, api.StepStatus_STATE_DONE, "")}
}
