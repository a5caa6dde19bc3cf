package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
)

// The drill of docs/two-servers.md: two imagectl serve on an etcd cluster of three
// members, each in a network namespace of its own; machines that boot, enrol, install and
// boot again. In the middle of it a server is killed, and a member of etcd: in one round
// the server that coordinates and etcd's leader, both at once, and in another round the
// other server, and later a member that follows. Every machine must get there by itself,
// no address may be given twice, and no disk may be written twice. The second server has
// nothing of the build but its manifest, and the rest from a registry. At the end the state
// goes back into the first server's directory with one command, and a server that is alone
// has all of it.

const (
	secondAddress = "10.97.0.2"
	// etcdNet connects servers and etcd, apart from the machines.
	etcdNet = "10.98.0."
	members = 3
	// registryAddress is that of the store which the servers share.
	registryAddress = etcdNet + "30:5000"
)

// rackServers is what machines know of the servers: what is in their node.json.
type rackServers struct {
	urls     []string
	roots    *x509.CertPool
	ca       *x509.Certificate
	consoles chan console
}

// console is a machine's screen with its code.
type console struct{ machine, code string }

// drill is the site.
type drill struct {
	*storm
	*rackServers
	dir, imagectl, etcdDir string
	etcd, serve            []*process
	registry               *process
	// installed counts machines whose disk is written, kernels those whose kernel ran.
	installed, kernels atomic.Int64
}

func runDrill(ctx context.Context, imagectl, etcdDir, counts string, seed uint64, limit time.Duration) error {
	count, err := strconv.Atoi(counts)
	if err != nil || count < 8 || count > 240 {
		return fmt.Errorf("-machines %q: the drill takes one number from 8 to 240", counts)
	}
	if imagectl, err = filepath.Abs(imagectl); err != nil {
		return err
	}
	for _, leading := range []bool{true, false} {
		if err := drillRound(ctx, imagectl, etcdDir, count, leading, seed, limit); err != nil {
			return err
		}
	}
	return nil
}

// drillRound makes a site, and takes from it who leads or who follows.
func drillRound(ctx context.Context, imagectl, etcdDir string, count int, leading bool, seed uint64, limit time.Duration) (err error) {
	dir, err := os.MkdirTemp("/var/tmp", "imagectl-drill-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d := &drill{dir: dir, imagectl: imagectl, etcdDir: etcdDir, rackServers: &rackServers{consoles: make(chan console)}}
	if d.storm, err = newStorm(count, netip.MustParseAddr(serverAddress), netip.MustParseAddr(secondAddress)); err != nil {
		return err
	}
	for i, m := range d.machines {
		if i%4 == 3 { // one that nobody has heard of gets an address of the pool
			m.unlisted, m.address = true, netip.Addr{}
		}
	}
	if err := writeSite(dir, d.machines, secondAddress); err != nil {
		return err
	}
	defer func() {
		for _, p := range slices.Concat(d.serve, d.etcd, []*process{d.registry}) {
			if p != nil {
				err = errors.Join(err, p.kill())
			}
		}
		if d.wire != nil {
			d.wire.close()
		}
		for _, bridge := range []string{"bootbr", "storebr"} {
			// One that was not made is not there.
			_ = run(context.WithoutCancel(ctx), "ip", "link", "delete", bridge)
		}
	}()
	if err := d.build(ctx); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return d.run(within, leading, seed)
}

func (d *drill) run(ctx context.Context, leading bool, seed uint64) error {
	err := d.operator(ctx, func(o apiconnect.OperatorServiceClient) error {
		resp, err := o.ArmMachine(ctx, connect.NewRequest(&api.ArmMachineRequest{Selection: &api.Selection{All: true}}))
		if err != nil {
			return err
		}
		return refused(resp.Msg.GetOutcomes())
	})
	if err != nil {
		return fmt.Errorf("arming: %w", err)
	}
	d.wire.set(faults{}, seed)
	begin := time.Now()
	fmt.Printf("\ntwo servers, three members of etcd, %d machines, a quarter of them unlisted\n", len(d.machines))
	r := mathrand.New(mathrand.NewPCG(seed, 2))
	operating, stop := context.WithCancel(ctx)
	var hands sync.WaitGroup
	for range 4 {
		hands.Go(func() { d.approve(operating) })
	}
	hands.Go(func() {
		if err := d.strike(operating, begin, leading); err != nil && operating.Err() == nil {
			d.note("killing: %v", err)
		}
	})
	var all sync.WaitGroup
	for _, m := range d.machines {
		m.delay = time.Duration(r.Int64N(int64(10 * time.Second)))
		all.Go(func() { d.live(ctx, m) })
	}
	all.Wait()
	stop()
	hands.Wait()
	if err := d.judge(begin); err != nil {
		return err
	}
	if err := d.home(ctx, begin); err != nil {
		return fmt.Errorf("moving the state back: %w", err)
	}
	return nil
}
