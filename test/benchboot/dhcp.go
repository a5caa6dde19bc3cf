package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// offered are the exchanges per second that perfdhcp asks for; the best that comes
// back counts for a round. Beyond a server's limit less comes back, not more.
func offered() []int { return []int{6000, 9000, 12000, 16000} }

// sweepTime is how many seconds each rate is offered.
const sweepTime = 3

// perfdhcpTries is for "Sent packet's timestamp must not be greater than received packet's",
// with which it ends where two processors' clocks differ by some microseconds.
const perfdhcpTries = 3

const keaConfig = `{"Dhcp4": {
  "interfaces-config": {"interfaces": ["rack"], "dhcp-socket-type": "udp"},
  "control-socket": {"socket-type": "unix", "socket-name": "%[1]s/kea.socket"},
  "lease-database": {"type": "memfile", "persist": true, "name": "%[1]s/kea-leases.csv", "lfc-interval": 0},
  "multi-threading": {"enable-multi-threading": true},
  "valid-lifetime": 3600,
  "subnet4": [{"subnet": "10.96.0.0/12", "interface": "rack", "pools": [{"pool": "%[2]s - %[3]s"}]}],
  "loggers": [{"name": "kea-dhcp4", "severity": "ERROR", "output_options": [{"output": "stderr"}]}]
}}`

func (b *bench) dhcp(ctx context.Context) error {
	if err := missing("perfdhcp", "kea-dhcp4"); err != nil {
		b.skip("DHCP exchanges", "Kea", err)
		return nil
	}
	config := filepath.Join(b.dir, "kea.json")
	if err := os.WriteFile(config, fmt.Appendf(nil, keaConfig, b.dir, firstAddress, lastAddress), 0o644); err != nil {
		return err
	}
	ours := func(leases int) func() (*daemon, error) {
		return func() (*daemon, error) {
			if err := preload(filepath.Join(b.dir, "leases"), leases); err != nil {
				return nil, err
			}
			return b.ours(ctx, 1000)
		}
	}
	kea := func() (*daemon, error) {
		if err := os.Remove(filepath.Join(b.dir, "kea-leases.csv")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		return b.space.start(ctx, b.space.bound(ctx, 67), "env", "KEA_LOCKFILE_DIR=none", "KEA_PIDFILE_DIR="+b.dir, "kea-dhcp4", "-c", config)
	}
	type side struct {
		name  string
		start func() (*daemon, error)
		best  []float64
	}
	empty, theirs, full := &side{name: "ours", start: ours(0)}, &side{name: "Kea", start: kea}, &side{name: "ours with 50,000 leases", start: ours(50000)}
	for range b.runs {
		for _, s := range []*side{empty, theirs, full} {
			d, err := s.start()
			if err != nil && s == theirs {
				b.skip("DHCP exchanges", "Kea", err)
				return nil
			}
			if err != nil {
				return err
			}
			done, err := b.sweep(ctx, s.name, d)
			d.stop()
			if err != nil {
				return err
			}
			s.best = append(s.best, slices.Max(done))
		}
	}
	b.row("DHCP exchanges", "Kea, memfile, threads", empty.best, theirs.best, "/s", 1.5)
	b.row("  with 50,000 leases", "ours when empty", full.best, empty.best, "/s", 0.8)
	return nil
}

var rateLine = regexp.MustCompile(`Rate: ([0-9.e+]+) `)

// sweep offers more and more exchanges and returns what was done.
func (b *bench) sweep(ctx context.Context, name string, d *daemon) ([]float64, error) {
	var done []float64
	for i, r := range offered() {
		spent := d.spent()
		rate, err := perfdhcp(ctx, i, r)
		for range perfdhcpTries - 1 {
			if err == nil || ctx.Err() != nil {
				break
			}
			spent = d.spent()
			rate, err = perfdhcp(ctx, i, r)
		}
		if err != nil {
			return nil, err
		}
		b.say("%s: offered %d/s, done %.0f/s, %.1f µs of the server each", name, r, rate, (d.spent()-spent).Seconds()*1e6/(rate*sweepTime))
		done = append(done, rate)
	}
	return done, nil
}

// perfdhcp offers so many exchanges a second, of clients that nth tells from others, and
// returns how many were done.
func perfdhcp(ctx context.Context, nth, rate int) (float64, error) {
	cmd := exec.CommandContext(ctx, "perfdhcp", "-4", "-r", strconv.Itoa(rate), "-R", "10000", "-p", strconv.Itoa(sweepTime), "-W", "500000",
		"-b", fmt.Sprintf("mac=00:0c:0%d:00:00:00", nth), "-l", clientAddress, serverAddress)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	m := rateLine.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("running perfdhcp: %v\n%s", err, out) // it exits with 3 after any lost packet
	}
	return strconv.ParseFloat(string(m[1]), 64)
}
