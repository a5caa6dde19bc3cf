package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// The drill of docs/two-servers.md: two imagectl serve on an etcd cluster of three
// members, each in a network namespace of its own; machines that boot, enrol, install and
// boot again. In the middle of it the server that coordinates is killed, and then a
// member of etcd. Every machine must get there, no address may be given twice, and no
// disk may be written twice.

const (
	secondAddress = "10.97.0.2"
	// etcdNet connects servers and etcd, apart from the machines.
	etcdNet = "10.98.0."
	members = 3
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
	// installed counts machines whose disk is written, kernels those whose kernel ran.
	installed, kernels atomic.Int64
	// resets counts machines that were switched off and on by hand.
	resets atomic.Int64
}

func runDrill(ctx context.Context, imagectl, etcdDir, counts string, seed uint64, limit time.Duration) (err error) {
	count, err := strconv.Atoi(counts)
	if err != nil || count < 8 || count > 240 {
		return fmt.Errorf("-machines %q: the drill takes one number from 8 to 240", counts)
	}
	if imagectl, err = filepath.Abs(imagectl); err != nil {
		return err
	}
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
		for _, p := range append(d.serve, d.etcd...) {
			err = errors.Join(err, p.kill())
		}
	}()
	if err := d.build(ctx); err != nil {
		return err
	}
	defer d.wire.close()
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return d.run(within, seed)
}

// build makes networks, etcd, and both servers.
func (d *drill) build(ctx context.Context) error {
	var err error
	if d.wire, err = newWire(d.heard); err != nil {
		return err
	}
	if err := d.plug(ctx, d.dir); err != nil {
		return err
	}
	go d.wire.run()
	for _, args := range [][]string{
		// This namespace has the machines' addresses, so its bridges must not speak.
		{"link", "add", "bootbr", "type", "bridge"}, {"link", "set", "bootbr", "arp", "off", "addrgenmode", "none", "up"},
		{"link", "set", "rack", "master", "bootbr", "addrgenmode", "none", "txqueuelen", "20000", "up"},
		{"link", "add", "storebr", "type", "bridge"}, {"address", "add", etcdNet + "1/24", "dev", "storebr"}, {"link", "set", "storebr", "up"},
	} {
		if err := run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	if err := d.certificates(); err != nil {
		return err
	}
	var initial []string
	for i := range members {
		initial = append(initial, fmt.Sprintf("e%d=https://%s:2380", i, d.member(i)))
	}
	for i := range members {
		p, err := spawn(ctx, fmt.Sprintf("e%d", i), d.dir, `ip address add `+d.member(i)+`/24 dev store && ip link set store up || exit 1
exec `+filepath.Join(d.etcdDir, "etcd")+` --name e`+strconv.Itoa(i)+` --data-dir e`+strconv.Itoa(i)+` --log-level warn --initial-cluster "$INITIAL" \
 --listen-client-urls https://0.0.0.0:2379 --advertise-client-urls https://`+d.member(i)+`:2379 \
 --listen-peer-urls https://0.0.0.0:2380 --initial-advertise-peer-urls https://`+d.member(i)+`:2380 \
 --cert-file etcd.pem --key-file etcd.key --client-cert-auth --trusted-ca-file ca.pem \
 --peer-cert-file etcd.pem --peer-key-file etcd.key --peer-client-cert-auth --peer-trusted-ca-file ca.pem`,
			[]string{"INITIAL=" + strings.Join(initial, ",")}, link{"store", "storebr"})
		if err != nil {
			return err
		}
		d.etcd = append(d.etcd, p)
	}
	if _, err := d.command(ctx, "server", "move", "--to-etcd", d.endpoints(), "--etcd-ca", "ca.pem", "--etcd-cert", "etcd.pem", "--etcd-key", "etcd.key", "--state", "state1"); err != nil {
		return fmt.Errorf("%w\n%s", err, d.etcd[0].tail())
	}
	if _, err := d.command(ctx, "server", "join", "--etcd", d.endpoints(), "--etcd-ca", "ca.pem", "--etcd-cert", "etcd.pem", "--etcd-key", "etcd.key", "--identity", "state1/identity.age", "--state", "state2"); err != nil {
		return err
	}
	for i, a := range d.servers {
		n := strconv.Itoa(i + 1)
		p, err := spawn(ctx, "s"+n, d.dir, `ip address add `+a.String()+`/16 dev rack && ip link set rack addrgenmode none txqueuelen 20000 up || exit 1
ip address add `+etcdNet+"1"+n+`/24 dev store && ip link set store up || exit 1
exec `+d.imagectl+` serve --state state`+n, []string{"IMAGECTL_CONFIG=" + d.context(i), "IMAGECTL_CACHE=" + filepath.Join(d.dir, "cache")}, link{"rack", "bootbr"}, link{"store", "storebr"})
		if err != nil {
			return err
		}
		d.serve = append(d.serve, p)
		if err := p.says("imagectl serve: ready: "); err != nil {
			return err
		}
	}
	return d.learn()
}

func (d *drill) member(i int) string { return etcdNet + "2" + strconv.Itoa(i) }
func (d *drill) context(i int) string {
	return filepath.Join(d.dir, fmt.Sprintf("context%d.json", i+1))
}

func (d *drill) endpoints() string {
	var all []string
	for i := range members {
		all = append(all, "https://"+d.member(i)+":2379")
	}
	return strings.Join(all, ",")
}

// certificates are one for all members and clients of etcd.
func (d *drill) certificates() error {
	now := time.Now()
	ca, err := pki.NewCA("etcd of the servers", 24*time.Hour, time.Hour, now, rand.Reader)
	if err != nil {
		return err
	}
	caKeyPEM, err := ca.KeyPEM()
	if err != nil {
		return err
	}
	caKey, err := pki.ParseKeyPEM(caKeyPEM)
	if err != nil {
		return err
	}
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for i := range members {
		leaf.IPAddresses = append(leaf.IPAddresses, net.ParseIP(d.member(i)))
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca.Certificate(), key.Public(), caKey)
	if err != nil {
		return err
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		return err
	}
	for name, b := range map[string][]byte{"ca.pem": ca.CertificatePEM(), "etcd.pem": pki.EncodeCertificate(der), "etcd.key": keyPEM} {
		if err := os.WriteFile(filepath.Join(d.dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// command runs imagectl in this namespace.
func (d *drill) command(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.imagectl, args...)
	cmd.Dir = d.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("imagectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// learn reads a server's context file: what machines find in node.json, and what the
// operator calls with.
func (d *drill) learn() error {
	b, err := os.ReadFile(d.context(0))
	if err != nil {
		return err
	}
	var c struct {
		Servers              []string
		CA, Certificate, Key string
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return err
	}
	if d.ca, err = pki.ParseCertificatePEM([]byte(c.CA)); err != nil {
		return err
	}
	d.roots = x509.NewCertPool()
	d.roots.AddCert(d.ca)
	if d.urls = c.Servers; len(d.urls) != len(d.servers) {
		return fmt.Errorf("the context file names the servers %v", c.Servers)
	}
	return nil
}

// operator calls whichever server answers.
func (d *drill) operator(ctx context.Context, f func(apiconnect.OperatorServiceClient) error) error {
	b, err := os.ReadFile(d.context(0))
	if err != nil {
		return err
	}
	var c struct{ Certificate, Key string }
	if err := json.Unmarshal(b, &c); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair([]byte(c.Certificate), []byte(c.Key))
	if err != nil {
		return err
	}
	// From a machine's address, which is what the wire carries.
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: d.machines[0].address.AsSlice()}, Timeout: 5 * time.Second}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: dialer.DialContext, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: d.roots, Certificates: []tls.Certificate{pair}}}}
	defer client.CloseIdleConnections()
	for i := 0; ; i++ {
		err := f(apiconnect.NewOperatorServiceClient(client, d.urls[i%len(d.urls)]))
		if err == nil || ctx.Err() != nil || !elsewhere(err) {
			return err
		}
		if err := sleep(ctx, 300*time.Millisecond); err != nil {
			return err
		}
	}
}

// approve plays the operator, who compares codes and types them.
func (d *drill) approve(ctx context.Context) {
	for {
		select {
		case c := <-d.consoles:
			err := d.operator(ctx, func(o apiconnect.OperatorServiceClient) error {
				resp, err := o.ApproveMachine(ctx, connect.NewRequest(&api.ApproveMachineRequest{
					Selection: &api.Selection{Names: []string{c.machine}}, Codes: map[string]string{c.machine: c.code}}))
				if err != nil {
					return err
				}
				return refused(resp.Msg.GetOutcomes())
			})
			if err != nil && ctx.Err() == nil {
				d.note("approving %s: %v", c.machine, err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// refused is an error where something was not done for another reason than that it had
// been done before.
func refused(outcomes []*api.Outcome) error {
	var errs []error
	for _, o := range outcomes {
		if o.GetReasonCode() == "storage" {
			errs = append(errs, fmt.Errorf("%s: %s", o.GetMachine(), o.GetMessage()))
		}
	}
	return errors.Join(errs...)
}

func (d *drill) run(ctx context.Context, seed uint64) error {
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
	fmt.Printf("two servers, three members of etcd, %d machines, a quarter of them unlisted\n", len(d.machines))
	r := mathrand.New(mathrand.NewPCG(seed, 2))
	operating, stop := context.WithCancel(ctx)
	var hands sync.WaitGroup
	for range 4 {
		hands.Go(func() { d.approve(operating) })
	}
	dead := make(chan struct{})
	hands.Go(func() { d.strike(operating, begin, dead) })
	var all sync.WaitGroup
	for _, m := range d.machines {
		m.delay = time.Duration(r.Int64N(int64(10 * time.Second)))
		all.Go(func() { d.live(ctx, m, dead) })
	}
	all.Wait()
	stop()
	hands.Wait()
	return d.judge(begin)
}

// strike kills the server that coordinates when a third of the machines are installed,
// and a member of etcd when half of them are.
func (d *drill) strike(ctx context.Context, begin time.Time, dead chan struct{}) {
	listed := int64(len(d.machines) - len(d.machines)/4)
	await := func(n int64) bool {
		for d.installed.Load() < n {
			if sleep(ctx, 50*time.Millisecond) != nil {
				return false
			}
		}
		return true
	}
	if !await(listed / 3) {
		return
	}
	// The first to start coordinates.
	if err := d.serve[0].kill(); err != nil {
		d.note("killing a server: %v", err)
	}
	close(dead)
	fmt.Printf("%6.1f s: %s is killed, which coordinates; %d machines are installed, %d have started their kernel\n", time.Since(begin).Seconds(), d.urls[0], d.installed.Load(), d.kernels.Load())
	if !await(listed / 2) {
		return
	}
	if err := d.etcd[0].kill(); err != nil {
		d.note("killing a member of etcd: %v", err)
	}
	fmt.Printf("%6.1f s: a member of etcd is killed; %d machines are installed\n", time.Since(begin).Seconds(), d.installed.Load())
}

// live takes a machine from power-on to its own disk.
func (d *drill) live(ctx context.Context, m *machine, dead <-chan struct{}) {
	if sleep(ctx, m.delay) != nil {
		return
	}
	for ctx.Err() == nil {
		err := d.once(ctx, m, dead)
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

func (d *drill) once(ctx context.Context, m *machine, dead <-chan struct{}) error {
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
	// Ignition asks the address in its kernel's arguments for ever. Where that server has
	// died, somebody has to switch the machine off and on.
	configuring, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if m.server == d.servers[0] {
		done := make(chan struct{})
		defer close(done)
		go func() {
			select {
			case <-dead:
			case <-done:
				return
			}
			select {
			case <-time.After(20 * time.Second):
				cancel(errHand)
			case <-done:
			}
		}()
	}
	if err := m.configure(configuring, config); err != nil {
		if context.Cause(configuring) == errHand {
			d.resets.Add(1)
			return errHand
		}
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

var (
	errHand     = errors.New("switched off and on by hand: it waited for its Ignition config of the server that died")
	errRebooted = errors.New("installed")
)

func (d *drill) judge(begin time.Time) error {
	var errs []error
	restarts, retries, last := 0, 0, 0
	for _, m := range d.machines {
		restarts += m.restarts
		retries += m.retries
		switch {
		case m.doing != "done":
			errs = append(errs, fmt.Errorf("%s did not get there: it was at %s; before: %v", m.name, m.doing, m.failed))
		case !m.unlisted && m.writes != 1:
			errs = append(errs, fmt.Errorf("%s has its disk written %d times", m.name, m.writes))
		}
		last = max(last, int(m.ignition.Seconds()))
	}
	for _, n := range d.notes {
		errs = append(errs, errors.New(n))
	}
	fmt.Printf("%6.1f s: %d of %d machines are where they belong, %d disks written; %d starts again, %d of them by hand; %d requests repeated; %d complaints\n",
		time.Since(begin).Seconds(), len(d.machines)-len(errs)+len(d.notes), len(d.machines), d.installed.Load(), restarts, d.resets.Load(), retries, len(d.notes))
	fmt.Printf("%10s %d addresses given, none twice\n", "", len(d.owners))
	if len(errs) > 5 {
		errs = append(errs[:5], fmt.Errorf("and %d more", len(errs)-5))
	}
	if len(errs) > 0 {
		errs = append(errs, fmt.Errorf("the end of the second server's log:\n%s", d.serve[1].tail()))
	}
	return errors.Join(errs...)
}
