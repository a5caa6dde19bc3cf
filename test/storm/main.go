// Command storm switches on a thousand machines and more within one second, and
// watches them boot: simulated BIOS, UEFI and iPXE machines with the time-outs of
// their firmware, against the real imagectl serve, over a wire that loses, doubles
// and delays frames. Every machine must reach its kernel and its Ignition config,
// and nobody may get another's answer. Run it with "make storm": it needs root and
// a network namespace of its own.
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	imagectl := flag.String("imagectl", "bin/imagectl", "the program")
	drill := flag.String("drill", "", "the directory of etcd's programs: two servers on an etcd cluster, which lose one of each in the middle of a storm")
	counts := flag.String("machines", "1000,10000", "how many machines, one storm after the other")
	losses := flag.String("loss", "0,1,5", "percent of the frames that are lost; as many are doubled and as many come late")
	seed := flag.Uint64("seed", 1, "of the faults and of the moments of power-on")
	limit := flag.Duration("limit", 15*time.Minute, "how long one storm may last")
	flag.Parse()
	if *drill != "" {
		if err := runDrill(ctx, *imagectl, *drill, *counts, *seed, *limit); err != nil {
			fmt.Fprintln(os.Stderr, "storm:", err)
			os.Exit(1)
		}
		return
	}
	if err := storms(ctx, *imagectl, *counts, *losses, *seed, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "storm:", err)
		os.Exit(1)
	}
}

// storm is one rack with its wire.
type storm struct {
	wire *wire
	// servers are the addresses of imagectl serve.
	servers  []netip.Addr
	machines []*machine
	byMAC    map[[6]byte]*machine
	// programs are the digests of what TFTP has to send.
	programs map[string][32]byte
	// neighbours is a file for ip -batch, or empty.
	neighbours string

	mu    sync.Mutex
	notes []string
	// where counts the steps at which firmware gave up and began again.
	where map[string]int
	// owners are who was given which address last.
	owners map[netip.Addr]*machine
}

func (s *storm) gaveUp(where string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.where[where]++
}

// note records what must not happen.
func (s *storm) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

func storms(ctx context.Context, imagectl, counts, losses string, seed uint64, limit time.Duration) error {
	imagectl, err := filepath.Abs(imagectl)
	if err != nil {
		return err
	}
	// A machine has up to two sockets. Where the limit may not be raised the one that
	// there is may do.
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 17, Max: 1 << 17})
	load, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(load), " ")
	fmt.Printf("%d processors, shared by imagectl serve and the machines; load %s before the run\n", runtime.NumCPU(), one)
	fmt.Printf("%8s %5s %8s  %-24s %-24s %8s %9s %6s %6s %7s %8s %6s\n", "machines", "loss", "booted", "to the kernel p50/p99/max", "to Ignition p50/p99/max", "restarts", "come back", "wrong", "ready", "peak", "now", "cpu")
	var failed []error
	for _, n := range strings.Split(counts, ",") {
		count, err := strconv.Atoi(n)
		if err != nil || count < 1 || count > 16000 {
			return fmt.Errorf("-machines %q: not a number from 1 to 16000", n)
		}
		dir, err := os.MkdirTemp("/var/tmp", "imagectl-storm-")
		if err != nil {
			return err
		}
		err = rack(ctx, imagectl, dir, count, losses, seed, limit)
		if rmErr := os.RemoveAll(dir); rmErr != nil {
			err = errors.Join(err, rmErr)
		}
		if ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// rack runs one storm after the other on the same machines.
func rack(ctx context.Context, imagectl, dir string, count int, losses string, seed uint64, limit time.Duration) error {
	s, err := newStorm(count, netip.MustParseAddr(serverAddress))
	if err != nil {
		return err
	}
	if err := writeSite(dir, s.machines, ""); err != nil {
		return err
	}
	for i, text := range strings.Split(losses, ",") {
		percent, err := strconv.ParseFloat(text, 64)
		if err != nil || percent < 0 || percent > 50 {
			return fmt.Errorf("-loss %q: not a percentage from 0 to 50", text)
		}
		if err := s.blow(ctx, imagectl, dir, i == 0, percent, seed, limit); err != nil {
			return fmt.Errorf("%d machines at %s%% loss: %w", count, text, err)
		}
	}
	return nil
}

// newStorm makes machines, all switched off.
func newStorm(count int, servers ...netip.Addr) (*storm, error) {
	s := &storm{servers: servers, byMAC: map[[6]byte]*machine{}, programs: map[string][32]byte{}, where: map[string]int{}, owners: map[netip.Addr]*machine{}}
	for _, name := range []string{biosProgram, uefiProgram} {
		content, err := os.ReadFile(filepath.Join(ipxeDir, name))
		if err != nil {
			return nil, fmt.Errorf("%w (the Debian package ipxe has it)", err)
		}
		s.programs[name] = sha256.Sum256(content)
	}
	first := netip.MustParsePrefix(machinesNet).Addr().Next()
	for i := range count {
		m := &machine{storm: s, name: fmt.Sprintf("m%d", i), mac: net.HardwareAddr{0x52, 0x54, 0, byte(i >> 16), byte(i >> 8), byte(i)},
			address: first, kind: kind(i) % kinds, replies: make(chan *dhcpv4.DHCPv4, 64)}
		copy(m.uuid[:], fmt.Sprintf("storm%011d", i))
		s.machines = append(s.machines, m)
		s.byMAC[[6]byte(m.mac)] = m
		first = first.Next()
	}
	return s, nil
}

// manyNeighbours is the number of machines above which the kernel's table of
// neighbours, 1024 by default and the same in every namespace, would decide.
const manyNeighbours = 1000

// plug makes the machines' end of the wire: the kernel answers for all their
// addresses.
func (s *storm) plug(ctx context.Context, dir string) error {
	for _, args := range [][]string{
		{"link", "set", "probe", "addrgenmode", "none", "txqueuelen", "20000", "up"},
		{"route", "add", "local", machinesNet, "dev", "probe"},
	} {
		if err := run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	for _, server := range s.servers {
		if err := run(ctx, "ip", "route", "add", server.String()+"/32", "dev", "probe"); err != nil {
			return err
		}
	}
	if len(s.machines) <= manyNeighbours {
		return nil
	}
	card, err := net.InterfaceByName("probe")
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, m := range s.machines {
		fmt.Fprintf(&b, "neighbour add %s lladdr %s dev rack nud permanent\n", m.address, card.HardwareAddr)
	}
	s.neighbours = filepath.Join(dir, "neighbours")
	return os.WriteFile(s.neighbours, []byte(b.String()), 0o644)
}

// blow is one storm.
func (s *storm) blow(ctx context.Context, imagectl, dir string, first bool, percent float64, seed uint64, limit time.Duration) error {
	var err error
	if s.wire, err = newWire(s.heard); err != nil {
		return err
	}
	defer s.wire.close()
	if err := s.plug(ctx, dir); err != nil {
		return err
	}
	go s.wire.run()
	if err := os.RemoveAll(filepath.Join(dir, "state", "leases")); err != nil {
		return err
	}
	v, err := s.serve(ctx, imagectl, dir)
	if err != nil {
		return err
	}
	if first {
		if err := v.arm(ctx, imagectl, dir); err != nil {
			return errors.Join(err, v.kill())
		}
	}
	chance := percent / 100
	s.wire.set(faults{loss: chance, double: chance, late: chance}, seed)
	s.notes, s.where = nil, map[string]int{}
	r := rand.New(rand.NewPCG(seed, 2))
	worked := v.processor()
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var all sync.WaitGroup
	for _, m := range s.machines {
		*m = machine{storm: s, name: m.name, mac: m.mac, uuid: m.uuid, address: m.address, kind: m.kind, replies: m.replies,
			delay: time.Duration(r.Int64N(int64(time.Second)))}
		all.Go(func() { m.run(within) })
	}
	all.Wait()
	peak, now, err := v.memory()
	if err != nil {
		return errors.Join(err, v.kill())
	}
	s.print(percent, v, peak, now, v.processor()-worked)
	for _, m := range s.machines {
		m.left.close()
	}
	return errors.Join(s.verdict(v), v.stop())
}

func (s *storm) print(percent float64, v *served, peak, now int, worked time.Duration) {
	var kernel, ignition []time.Duration
	restarts, told := 0, 0
	for _, m := range s.machines {
		if m.kernel > 0 {
			kernel = append(kernel, m.kernel)
		}
		if m.ignition > 0 {
			ignition = append(ignition, m.ignition)
		}
		restarts += m.restarts
		told += m.told
	}
	fmt.Printf("%8d %4g%% %8d  %-25s %-24s %8d %9d %6d %5.1fs %4d MB %5d MB %5.1fs\n", len(s.machines), percent, len(ignition),
		spread(kernel), spread(ignition), restarts, told, len(s.notes), v.ready.Seconds(), peak, now, worked.Seconds())
	last := slices.MaxFunc(s.machines, func(a, b *machine) int { return cmp.Compare(a.ignition, b.ignition) })
	fmt.Printf("%14s the last, %s with %s, spent %.0f s of it in time-outs of its firmware", "", last.name, last.kind, last.waited.Seconds())
	for _, where := range slices.Sorted(maps.Keys(s.where)) {
		fmt.Printf("; %d began again at %s", s.where[where], where)
	}
	fmt.Println()
}

// spread is median, 99th percentile and maximum in seconds.
func spread(d []time.Duration) string {
	if len(d) == 0 {
		return "-"
	}
	slices.Sort(d)
	return fmt.Sprintf("%.1f / %.1f / %.1f s", d[len(d)/2].Seconds(), d[len(d)*99/100].Seconds(), d[len(d)-1].Seconds())
}

// verdict says what went wrong, with examples.
func (s *storm) verdict(v *served) error {
	const examples = 5
	var errs []error
	missing := 0
	for _, m := range s.machines {
		if m.ignition > 0 {
			continue
		}
		if missing++; missing <= examples {
			errs = append(errs, fmt.Errorf("%s did not get there: it was at %s; before: %v", m.name, m.doing, m.failed))
		}
	}
	if missing > 0 {
		errs = append(errs, fmt.Errorf("%d of %d machines did not get there; the end of the server's log:\n%s", missing, len(s.machines), v.tail()))
	}
	for i, n := range s.notes {
		if i == examples {
			errs = append(errs, fmt.Errorf("and %d more", len(s.notes)-i))
			break
		}
		errs = append(errs, errors.New(n))
	}
	return errors.Join(errs...)
}
