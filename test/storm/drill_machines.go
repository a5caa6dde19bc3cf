package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// live takes a machine from power-on to its own disk.
func (d *drill) live(ctx context.Context, m *machine) {
	if sleep(ctx, m.delay) != nil {
		return
	}
	for ctx.Err() == nil {
		err := d.once(ctx, m)
		m.left.close()
		if err == nil {
			m.at("done")
			return
		}
		if errors.Is(err, errRebooted) {
			_ = sleep(ctx, restart)
			continue
		}
		m.mu.Lock()
		m.failed = err
		d.gaveUp(m.doing)
		m.mu.Unlock()
		m.restarts++
		_ = sleep(ctx, restart)
	}
}

func (d *drill) once(ctx context.Context, m *machine) error {
	begin := time.Now()
	config, err := m.boot(ctx)
	if errors.Is(err, errLocal) {
		if !m.unlisted && m.writes == 0 {
			return fmt.Errorf("it is to start its disk, on which nothing is: %w", err)
		}
		m.ignition = time.Since(begin)
		return nil
	}
	if err != nil {
		return err
	}
	if m.writes > 0 {
		m.wrong("is started as an installer again")
	}
	m.kernel = time.Since(begin)
	d.kernels.Add(1)
	if err := m.configure(ctx, config); err != nil {
		return err
	}
	if m.unlisted {
		m.ignition = time.Since(begin)
		return nil
	}
	i, err := m.installer(d.rackServers)
	if err != nil {
		return err
	}
	defer i.close()
	if err := i.enrol(ctx); err != nil {
		return err
	}
	if err := i.install(ctx); err != nil {
		return err
	}
	d.installed.Add(1)
	return errRebooted
}

// errRebooted says that a machine begins again with an installed disk.
var errRebooted = errors.New("installed")
