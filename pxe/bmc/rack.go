package bmc

import (
	"context"
	"fmt"
)

// Rack opens the BMCs of many machines, one login at a time for each: they have
// few sessions, and what two do at once to one machine is nobody's wish. It is
// safe for concurrent use.
type Rack struct {
	pause Pause
	slots map[string]*slot
}

// Member is one machine's BMC.
type Member struct {
	Target
	// Secret reads the password, at every login, so that it can be changed where it
	// lies.
	Secret func() (Password, error)
	// Device is what a boot for an installation uses: the network, or CD.
	Device Device
	// Media is the URL of the image for CD.
	Media string
}

type slot struct {
	Member
	free chan struct{} // holds a token while nobody is logged in
}

// NewRack takes BMCs by machine name.
func NewRack(members map[string]Member, pause Pause) *Rack {
	r := &Rack{pause: pause, slots: map[string]*slot{}}
	for name, m := range members {
		s := &slot{Member: m, free: make(chan struct{}, 1)}
		s.free <- struct{}{}
		r.slots[name] = s
	}
	return r
}

// Names tells how a machine's BMC is called; false where there is none.
func (r *Rack) Names(machine string) (string, bool) {
	s, ok := r.slots[machine]
	if !ok {
		return "", false
	}
	return s.Target.String(), true
}

// Power reads a machine's power state.
func (r *Rack) Power(ctx context.Context, machine string) (Power, error) {
	var p Power
	err := r.with(ctx, machine, func(c Controller, _ Member) error {
		var err error
		p, err = c.Power(ctx)
		return err
	})
	return p, err
}

// Switch brings a machine on or off.
func (r *Rack) Switch(ctx context.Context, machine string, want Power) error {
	return r.with(ctx, machine, func(c Controller, _ Member) error { return Switch(ctx, c, r.pause, want) })
}

// Shutdown asks a machine's operating system to switch off, and does not wait.
func (r *Rack) Shutdown(ctx context.Context, machine string) error {
	return r.with(ctx, machine, func(c Controller, _ Member) error {
		if now, err := c.Power(ctx); err != nil || now == Off {
			return err
		}
		return c.Act(ctx, Shutdown)
	})
}

// Cycle takes a machine's power away and gives it back.
func (r *Rack) Cycle(ctx context.Context, machine string) error {
	return r.with(ctx, machine, func(c Controller, _ Member) error { return Cycle(ctx, c, r.pause) })
}

// Reset resets a machine that is on.
func (r *Rack) Reset(ctx context.Context, machine string) error {
	return r.with(ctx, machine, func(c Controller, _ Member) error { return Restart(ctx, c) })
}

// Boot starts a machine for its installation, once; see Boot and BootMedia.
func (r *Rack) Boot(ctx context.Context, machine string, still func() error, tell func(string)) error {
	return r.with(ctx, machine, func(c Controller, m Member) error {
		if m.Device == CD {
			return BootMedia(ctx, c, r.pause, m.Media, still, tell)
		}
		return Boot(ctx, c, r.pause, m.Device, still, tell)
	})
}

// Media says whether a machine is started from virtual media, which stay in until
// Eject.
func (r *Rack) Media(machine string) bool {
	s, ok := r.slots[machine]
	return ok && s.Device == CD
}

// Eject takes the virtual media out.
func (r *Rack) Eject(ctx context.Context, machine string) error {
	return r.with(ctx, machine, func(c Controller, _ Member) error { return c.EjectMedia(ctx) })
}

func (r *Rack) with(ctx context.Context, machine string, do func(Controller, Member) error) error {
	s, ok := r.slots[machine]
	if !ok {
		return fmt.Errorf("cluster.yaml names no BMC for %s", machine)
	}
	select {
	case <-s.free:
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s, which somebody else uses: %w", s.Target, ctx.Err())
	}
	defer func() { s.free <- struct{}{} }()
	t := s.Target
	var err error
	if t.Password, err = s.Secret(); err != nil {
		return fmt.Errorf("reading the password of %s: %w", s.Target, err)
	}
	c, err := Open(ctx, t, r.pause)
	if err != nil {
		return err
	}
	defer c.Close()
	return do(c, s.Member)
}
