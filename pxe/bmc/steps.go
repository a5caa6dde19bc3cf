package bmc

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"
)

const (
	// lookPause is between two looks at the power state; lookTries bounds them. A
	// large machine takes half a minute to be off, and after half of the time it is
	// asked once more.
	lookPause = 2 * time.Second
	lookTries = 60
)

// Switch brings a machine on or off, and returns when the BMC shows that it is. A
// machine that is there already is left alone.
func Switch(ctx context.Context, c Controller, pause Pause, want Power) error {
	act := PowerOn
	if want == Off {
		act = PowerOff
	}
	for try := range lookTries {
		now, err := c.Power(ctx)
		if err != nil || now == want {
			return err
		}
		if now != Changing && try%(lookTries/2) == 0 {
			if err := c.Act(ctx, act); err != nil && !lost(ctx, err) {
				return err
			}
		}
		if err := pause(ctx, lookPause); err != nil {
			return fmt.Errorf("waiting for the machine to be %s: %w", want, err)
		}
	}
	return fmt.Errorf("waiting for the machine to be %s: its BMC took the order and does not show that it is after %s; look at the machine", want, lookTries*lookPause)
}

// lost says that nothing came back, so that it may have been done.
func lost(ctx context.Context, err error) bool {
	var e *Error
	return ctx.Err() == nil && errors.As(err, &e) && !e.answered() && e.Err != nil
}

// Cycle takes the power away and gives it back. It does not trust a BMC's own
// cycle: what that does with a machine that is off differs.
func Cycle(ctx context.Context, c Controller, pause Pause) error {
	if err := Switch(ctx, c, pause, Off); err != nil {
		return err
	}
	return Switch(ctx, c, pause, On)
}

// Restart resets a machine that is on.
func Restart(ctx context.Context, c Controller) error {
	now, err := c.Power(ctx)
	if err != nil {
		return err
	}
	if now != On {
		return fmt.Errorf("resetting the machine: it is %s; switch it on instead", now)
	}
	return c.Act(ctx, Reset)
}

// Boot starts a machine from a device, once. A machine that is on loses its power
// only after the BMC has taken the device, and after still said that this is still
// wanted; still is asked again before the machine is switched on. tell hears of
// every step.
func Boot(ctx context.Context, c Controller, pause Pause, d Device, still func() error, tell func(string)) error {
	now, err := c.Power(ctx)
	if err != nil {
		return err
	}
	tell(fmt.Sprintf("asking for a boot from %s", d))
	if err := c.BootOnce(ctx, d); err != nil {
		return err
	}
	if now != Off {
		if err := still(); err != nil {
			return err
		}
		tell("switching it off")
		if err := Switch(ctx, c, pause, Off); err != nil {
			return err
		}
		// Some forget it with the power; the others have nothing to do.
		if err := c.BootOnce(ctx, d); err != nil {
			return err
		}
	}
	if err := still(); err != nil {
		return err
	}
	tell("switching it on")
	return Switch(ctx, c, pause, On)
}

// ejectTime bounds taking out what was put in for a start that did not come about.
const ejectTime = time.Minute

// BootMedia puts an image into the virtual CD and starts a machine from it, once; see
// Boot. The image stays in: whoever knows that it was read has it ejected. It is taken
// out again where the machine was not started.
func BootMedia(ctx context.Context, c Controller, pause Pause, image string, still func() error, tell func(string)) error {
	tell("inserting " + path.Base(image))
	err := c.InsertMedia(ctx, image)
	if err == nil {
		err = Boot(ctx, c, pause, CD, still, tell)
	}
	if err != nil {
		again, cancel := context.WithTimeout(context.WithoutCancel(ctx), ejectTime)
		defer cancel()
		_ = c.EjectMedia(again) // the first error says what is wrong
	}
	return err
}
