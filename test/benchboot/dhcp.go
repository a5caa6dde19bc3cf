package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// windows are how many clients ask at once: what the best of them does counts for a round, and
// beside it the last, a room of racks that is switched on.
func windows() []int { return []int{32, 64, 128, 256, 512, 1000} }

// exchanges is how many clients get an address each time; for all windows there are addresses.
// Who writes one lease after the other to the disk gets fewer, or would take minutes.
const exchanges, slowExchanges = 20000, 2000

const keaConfig = `{"Dhcp4": {
  "interfaces-config": {"interfaces": ["rack"], "dhcp-socket-type": "udp"},
  "control-socket": {"socket-type": "unix", "socket-name": "%[1]s/kea.socket"},
  "lease-database": {"type": "memfile", "persist": true, "name": "%[4]s/kea-leases.csv", "lfc-interval": 0},
  "multi-threading": {"enable-multi-threading": true},
  "valid-lifetime": 3600,
  "subnet4": [{"subnet": "10.96.0.0/12", "interface": "rack", "pools": [{"pool": "%[2]s - %[3]s"}]}],
  "loggers": [{"name": "kea-dhcp4", "severity": "ERROR", "output_options": [{"output": "stderr"}]}]
}}`

func (b *bench) dhcp(ctx context.Context) error {
	if err := missing("kea-dhcp4"); err != nil {
		b.skip("DHCP exchanges", "Kea", err)
		return nil
	}
	ours := func(leases int) func() (*daemon, error) {
		return func() (*daemon, error) {
			if err := preload(filepath.Join(b.dir, "leases"), leases); err != nil {
				return nil, err
			}
			return b.ours(ctx, 1000)
		}
	}
	// Kea writes each lease and leaves it to the kernel. In a directory whose files are written
	// synchronously it keeps what it has acknowledged, as ours does.
	durable := filepath.Join(b.dir, "durable")
	if err := os.Mkdir(durable, 0o755); err != nil {
		return err
	}
	unsynced := exec.CommandContext(ctx, "chattr", "+S", durable).Run()
	kea := func(leases string) func() (*daemon, error) {
		return func() (*daemon, error) {
			config := filepath.Join(b.dir, "kea.json")
			if err := os.WriteFile(config, fmt.Appendf(nil, keaConfig, b.dir, firstAddress, lastAddress, leases), 0o644); err != nil {
				return nil, err
			}
			if err := os.Remove(filepath.Join(leases, "kea-leases.csv")); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
			return b.space.start(ctx, b.space.bound(ctx, 67), "env", "KEA_LOCKFILE_DIR=none", "KEA_PIDFILE_DIR="+b.dir, "kea-dhcp4", "-c", config)
		}
	}
	r, err := newRack(ctx, b.space, relayAddress, 1)
	if err != nil {
		return err
	}
	defer r.close()
	type side struct {
		name      string
		start     func() (*daemon, error)
		exchanges int
		best      []float64
		all       []float64
	}
	empty, full := &side{name: "ours", start: ours(0), exchanges: exchanges}, &side{name: "ours with 50,000 leases", start: ours(50000), exchanges: exchanges}
	theirs, synced := &side{name: "Kea", start: kea(b.dir), exchanges: exchanges}, &side{name: "Kea, durable", start: kea(durable), exchanges: slowExchanges}
	sides := []*side{empty, theirs, full}
	if unsynced == nil {
		sides = append(sides, synced)
	}
	for range b.runs {
		for _, s := range sides {
			d, err := s.start()
			if err != nil && (s == theirs || s == synced) {
				b.skip("DHCP exchanges", s.name, err)
				return nil
			}
			if err != nil {
				return err
			}
			done, err := b.sweep(ctx, s.name, d, r, s.exchanges)
			d.stop()
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", s.name, err, d.said.Bytes())
			}
			s.best, s.all = append(s.best, slices.Max(done)), append(s.all, done[len(done)-1])
		}
	}
	if unsynced == nil {
		b.row("DHCP exchanges", "Kea, memfile synced", empty.best, synced.best, "/s", 1.5)
	} else {
		b.skip("DHCP exchanges", "Kea, memfile synced", fmt.Errorf("making %s synchronous: %w", durable, unsynced))
	}
	b.row("DHCP exchanges", "Kea, memfile, threads", empty.best, theirs.best, "/s", 1.5)
	b.row("  of 1,000 at once", "Kea, memfile, threads", empty.all, theirs.all, "/s", 1.5)
	b.row("  with 50,000 leases", "ours when empty", full.best, empty.best, "/s", 0.8)
	return nil
}

// sweep has more and more clients ask at once, so many each time, and returns how many exchanges
// a second were done with each.
func (b *bench) sweep(ctx context.Context, name string, d *daemon, r *rack, exchanges int) ([]float64, error) {
	var done []float64
	for _, window := range windows() {
		spent := d.spent()
		span, again, err := r.exchange(ctx, exchanges, window)
		if err != nil {
			return nil, err
		}
		took, count := span.Seconds(), float64(exchanges)
		b.say("%s: %d clients at once, %.0f/s, %.1f µs of the server each, %d times asked again", name, window,
			count/took, (d.spent()-spent).Seconds()*1e6/count, again)
		done = append(done, count/took)
	}
	return done, nil
}
