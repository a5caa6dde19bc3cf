package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
)

// state is what operators see of it.
type state struct {
	// machines have the state, the certificate and the key that waits, by name.
	machines map[string]string
	log      []audit.Tip
}

// home moves the state back into the first server's directory, whether that server ended by
// itself or was killed, and starts a server there that is alone.
func (d *drill) home(ctx context.Context, begin time.Time) error {
	// What is armed stays so: two machines that were installed are to be installed again.
	armed, idle := []*machine{d.machines[2], d.machines[5]}, d.machines[1]
	err := d.operator(ctx, func(o apiconnect.OperatorServiceClient) error {
		resp, err := o.ArmMachine(ctx, connect.NewRequest(&api.ArmMachineRequest{Reinstall: true,
			Selection: &api.Selection{Names: []string{armed[0].name, armed[1].name}}}))
		if err != nil {
			return err
		}
		for _, out := range resp.Msg.GetOutcomes() {
			if out.GetState() != "armed" {
				return fmt.Errorf("arming %s: %s", out.GetMachine(), out.GetMessage())
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	before, err := d.seen(ctx)
	if err != nil {
		return err
	}
	move := []string{"server", "move", "--to-embedded", "--state", "state1"}
	if out, err := d.command(ctx, move...); err == nil {
		return fmt.Errorf("it can be moved away while a server runs: %s", out)
	} else if !strings.Contains(err.Error(), "servers use it: ") && !strings.Contains(err.Error(), "another imagectl serve is using it") {
		return err
	}
	if err := d.survivor().stop(); err != nil {
		return err
	}
	moved, err := d.command(ctx, move...)
	if err != nil {
		return err
	}
	if err := d.empty(ctx); err != nil {
		return err
	}
	if err := d.alone(ctx); err != nil {
		return err
	}
	after, err := d.seen(ctx)
	if err != nil {
		return err
	}
	if err := before.same(after); err != nil {
		return err
	}
	leases, err := d.renew(ctx)
	if err != nil {
		return err
	}
	for _, m := range append(armed, idle) {
		if err := d.starts(ctx, m, slices.Contains(armed, m)); err != nil {
			return err
		}
	}
	if len(d.notes) > 0 {
		return errors.New(d.notes[0])
	}
	_, said, _ := strings.Cut(moved, "moved: ") // behind what cluster.yaml is warned of
	said, _, _ = strings.Cut(said, ", and no longer on etcd")
	fmt.Printf("%6.1f s: moved back: %s\n%10s %d machines, %d of them armed, %d leases and %d entries of the log are as before\n",
		time.Since(begin).Seconds(), said, "", len(after.machines), len(armed), leases, len(before.log))
	return nil
}

// seen asks the server that coordinates.
func (d *drill) seen(ctx context.Context) (state, error) {
	var s state
	err := d.operator(ctx, func(o apiconnect.OperatorServiceClient) error {
		s = state{machines: map[string]string{}}
		resp, err := o.ListMachines(ctx, connect.NewRequest(&api.ListMachinesRequest{}))
		if err != nil {
			return err
		}
		for _, m := range resp.Msg.GetMachines() {
			s.machines[m.GetName()] = strings.Join([]string{m.GetState(), m.GetCertificateSerial(), m.GetPendingCode()}, " ")
		}
		lines, err := o.ReadAudit(ctx, connect.NewRequest(&api.ReadAuditRequest{}))
		if err != nil {
			return err
		}
		defer lines.Close()
		var at audit.Tip
		for lines.Receive() {
			for _, line := range lines.Msg().GetLines() {
				if _, at, err = audit.Open(at, line); err != nil {
					return err
				}
				s.log = append(s.log, at)
			}
		}
		return lines.Err()
	})
	return s, err
}

// same says what is missing or other than it was. The log may have grown.
func (s state) same(after state) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s.machines)) {
		if was, is := s.machines[name], after.machines[name]; was != is {
			errs = append(errs, fmt.Errorf("%s is %q, and was %q", name, is, was))
		}
	}
	if len(after.machines) != len(s.machines) {
		errs = append(errs, fmt.Errorf("there are %d machines, and were %d", len(after.machines), len(s.machines)))
	}
	if n := len(s.log); n == 0 || len(after.log) < n || !slices.Equal(after.log[:n], s.log) {
		errs = append(errs, fmt.Errorf("the log had %d entries; its %d entries now do not begin with them", n, len(after.log)))
	}
	return errors.Join(errs...)
}

// empty checks that etcd has nothing more of it.
func (d *drill) empty(ctx context.Context) error {
	client, err := d.etcdClient(strings.Split(d.endpoints(), ",")...)
	if err != nil {
		return err
	}
	defer client.Close()
	for _, prefix := range []string{"/imagectl/storm/", "/imagectl-servers/storm/"} {
		r, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(5))
		if err != nil {
			return err
		}
		if r.Count > 0 {
			return fmt.Errorf("etcd has %d keys left, such as %s", r.Count, r.Kvs[0].Key)
		}
	}
	return nil
}

// alone starts a server without peers, as the command says.
func (d *drill) alone(ctx context.Context) error {
	path := filepath.Join(d.dir, "cluster.yaml")
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	const peers = ", peers: [" + secondAddress + "], artefacts: shop"
	if !strings.Contains(string(b), peers) {
		return fmt.Errorf("%s has no %q", path, peers)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), peers, "", 1)), 0o644); err != nil {
		return err
	}
	if err := d.start(ctx, "home", d.dir, 0); err != nil {
		return err
	}
	d.urls = d.urls[:1]
	// Its card is another one than that of the server which had this address.
	return run(ctx, "ip", "neighbour", "flush", "dev", "probe")
}

// renew has every machine that got an address of the pool ask anew. Who asks first has the
// last address: a server that has forgotten would give another one.
func (d *drill) renew(ctx context.Context) (leases int, err error) {
	var pooled []*machine
	for _, m := range d.machines {
		if m.unlisted {
			pooled = append(pooled, m)
		}
	}
	slices.SortFunc(pooled, func(a, b *machine) int { return b.address.Compare(a.address) })
	for _, m := range pooled {
		had := m.address
		if _, err := m.lease(ctx, linuxAsks(m)); err != nil {
			return 0, fmt.Errorf("%s asks for its address: %w", m.name, err)
		}
		if m.address != had {
			return 0, fmt.Errorf("%s is given %s, and had %s", m.name, m.address, had)
		}
	}
	return len(pooled), nil
}

// starts switches a machine on, which is told to install or to start its disk.
func (d *drill) starts(ctx context.Context, m *machine, installer bool) error {
	for try := 0; ; try++ {
		_, err := m.boot(ctx)
		m.left.close()
		switch {
		case installer && err == nil, !installer && errors.Is(err, errLocal):
			return nil
		case err == nil, errors.Is(err, errLocal), try == 5:
			return fmt.Errorf("%s does not start what it has to (the installer: %v): %v", m.name, installer, err)
		}
		if err := sleep(ctx, restart); err != nil {
			return err
		}
	}
}
