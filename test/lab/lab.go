// Package lab is a rack in a network namespace: a bridge, imagectl serve and
// empty QEMU machines. The end-to-end tests and the demonstration drive it the
// way an operator would, with the imagectl binary and the machines' consoles.
//
// The process must run in a network and a process namespace of its own (the
// Makefile sees to it), so that nothing outlives it.
package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/imagectl/imagectl/test/vm"
)

// The rack's network.
const (
	bridgeName    = "br0"
	ServerAddress = "10.77.0.1"
	serverCIDR    = "10.77.0.1/24"
)

// Machine is one empty machine of the rack.
type Machine struct {
	Name     string
	Role     string
	Firmware vm.Firmware
	Address  string
	MAC      string
	CPUs     int
	MiB      int
	// EK is the TPM that cluster.yaml says it has; empty for none. TPM is the control
	// socket of the one that it has.
	EK, TPM string
	// BMC is what cluster.yaml says of its BMC; empty for none.
	BMC string
	// Clock is what its own clock says at power-on, as of a machine whose battery is dead;
	// empty for the time of now. See vm.Config.
	Clock string
	// Idle machines stand in cluster.yaml but are never armed: Form leaves them
	// alone.
	Idle bool
	// Diskless machines run in their memory, and have a disk that nobody is to write.
	Diskless bool
	// Unlisted machines do not stand in cluster.yaml.
	Unlisted bool
}

// Rack is the rack of the scenario: the smallest cluster with both roles and
// both kinds of firmware. The worker's clock has no battery.
func Rack() []Machine {
	return []Machine{
		{Name: "cp1", Role: "control-plane", Firmware: vm.SeaBIOS, Address: "10.77.0.11", MAC: "52:54:00:77:00:11", CPUs: 2, MiB: 3584},
		{Name: "w1", Role: "worker", Firmware: vm.OVMF, Address: "10.77.0.21", MAC: "52:54:00:77:00:21", CPUs: 1, MiB: 3072, Clock: "2001-02-03T04:05:06"},
	}
}

// IdleMachines are known to the cluster and not armed, one per firmware.
func IdleMachines() []Machine {
	return []Machine{
		{Name: "idle-bios", Role: "worker", Firmware: vm.SeaBIOS, Address: "10.77.0.31", MAC: "52:54:00:77:00:31", CPUs: 1, MiB: 512, Idle: true},
		{Name: "idle-uefi", Role: "worker", Firmware: vm.OVMF, Address: "10.77.0.32", MAC: "52:54:00:77:00:32", CPUs: 1, MiB: 512, Idle: true},
	}
}

// Absent is a control plane that is never switched on: every cluster has one.
func Absent() Machine {
	return Machine{Name: "cp1", Role: "control-plane", Firmware: vm.SeaBIOS, Address: "10.77.0.11", MAC: "52:54:00:77:00:11", Idle: true}
}

// Stamped is a Lab's Log that begins each line with the time since now.
func Stamped(w io.Writer) func(format string, args ...any) {
	began := time.Now()
	return func(format string, args ...any) {
		fmt.Fprintf(w, "%6s  %s\n", time.Since(began).Round(time.Second), fmt.Sprintf(format, args...))
	}
}

// Lab is a running rack.
type Lab struct {
	// Bin holds imagectl and bootstrapd, Release the test release, Upstream the
	// programs of others, Site cluster.yaml and what belongs to it, Work all else.
	Bin, Release, Upstream, Site, Work string
	// Cache is imagectl's cache directory; New sets it to one below Work.
	Cache    string
	Accel    vm.Accel
	Machines []Machine
	Guests   map[string]*vm.Guest
	// Powered is when Launch switched the first machine on.
	Powered time.Time
	// Deaths makes every node kill its agent once in the middle of kubeadm's work.
	Deaths bool
	// Butane is a file that every role has besides; none when empty.
	Butane string
	// Identity is cluster.yaml's identity.policy; empty for its default.
	Identity string
	// Boot are more lines of cluster.yaml's boot, indented by two; Subnets are more of its
	// subnets, indented by four.
	Boot, Subnets string
	// Etcd are more lines of cluster.yaml's etcd, indented by two.
	Etcd string
	// ServeArgs are more flags of imagectl serve.
	ServeArgs []string
	// Log receives one line per step; it may be nil.
	Log func(format string, args ...any)

	serve *Process
}

// New makes the site's files and the network. Work must be an empty directory.
func New(ctx context.Context, l Lab) (*Lab, error) {
	l.Guests = map[string]*vm.Guest{}
	l.Site = filepath.Join(l.Work, "site")
	if l.Cache == "" {
		l.Cache = filepath.Join(l.Work, "cache")
	}
	if l.Log == nil {
		l.Log = func(string, ...any) {}
	}
	if err := l.writeSite(); err != nil {
		return nil, fmt.Errorf("writing the site's files: %w", err)
	}
	if err := vm.Bridge(bridgeName, serverCIDR); err != nil {
		return nil, fmt.Errorf("making the rack's network (run through make, as root): %w", err)
	}
	for _, m := range l.Machines {
		if err := vm.Tap(tap(m), bridgeName); err != nil {
			return nil, err
		}
	}
	if l.Accel == "" {
		l.Accel = vm.ProbeAccel(ctx, l.releaseFile("flatcar_production_pxe.vmlinuz"))
	}
	return &l, nil
}

func (l *Lab) releaseFile(name string) string {
	return filepath.Join(l.Release, "stable", "amd64-usr", "current", name)
}

// Close pulls every plug and takes the rack's network away.
func (l *Lab) Close() {
	for _, g := range l.Guests {
		g.Stop()
	}
	if l.serve != nil {
		l.serve.Kill()
	}
	for _, m := range l.Machines {
		vm.Unplug(tap(m))
	}
	vm.Unplug(bridgeName)
}

func tap(m Machine) string { return "tap-" + m.Name }

// environment is what every imagectl command of this lab sees.
func (l *Lab) environment() []string {
	return append(os.Environ(),
		"IMAGECTL_CONFIG="+filepath.Join(l.Work, "context.json"),
		"IMAGECTL_CACHE="+l.Cache)
}

// Imagectl runs one command in the site's directory and returns its standard
// output. The error carries what the command said.
func (l *Lab) Imagectl(ctx context.Context, args ...string) (string, error) {
	return l.run(ctx, filepath.Join(l.Bin, "imagectl"), args...)
}

// Kubectl runs kubectl with the operator's kubeconfig.
func (l *Lab) Kubectl(ctx context.Context, args ...string) (string, error) {
	return l.run(ctx, filepath.Join(l.Work, "kubectl"), append([]string{"--kubeconfig", l.Kubeconfig()}, args...)...)
}

// Kubeconfig is where the operator's kubeconfig is written.
func (l *Lab) Kubeconfig() string { return filepath.Join(l.Work, "kubeconfig") }

func (l *Lab) run(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = l.Site
	cmd.Env = l.environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("running %s %s: %w\n%s%s", filepath.Base(program), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// diskSize is that of an empty disk, in bytes.
const diskSize = 24 << 30

// PowerOn starts a machine; a machine that has no disk yet gets an empty one.
func (l *Lab) PowerOn(m Machine) error { return l.Start(l.Config(m)) }

// Config is a machine as QEMU is told of it.
func (l *Lab) Config(m Machine) vm.Config {
	last := m.Address[strings.LastIndexByte(m.Address, '.')+1:]
	return vm.Config{Name: m.Name, Firmware: m.Firmware, Accel: l.Accel, CPUs: m.CPUs, MemoryMiB: m.MiB,
		Disk: l.Disk(m), DiskSerial: "disk-" + m.Name, MAC: m.MAC, Tap: tap(m),
		UUID: "77000000-0000-4000-8000-0000000000" + last, Serial: "SN-" + m.Name, TPM: m.TPM, Clock: m.Clock, Dir: l.Work}
}

// Start starts a machine; Close stops it. One that has no disk yet gets an empty one.
func (l *Lab) Start(c vm.Config) error {
	if _, err := os.Stat(c.Disk); os.IsNotExist(err) {
		if err := os.WriteFile(c.Disk, nil, 0o644); err != nil {
			return err
		}
		if err := os.Truncate(c.Disk, diskSize); err != nil {
			return err
		}
	}
	g, err := vm.Start(c)
	if err != nil {
		return err
	}
	l.Guests[c.Name] = g
	return nil
}

// Disk is a machine's disk, a sparse raw file.
func (l *Lab) Disk(m Machine) string { return filepath.Join(l.Work, m.Name+".disk") }

// Until calls f every second until it returns true, an error, or ctx ends; the
// last reason stands in the error.
func Until(ctx context.Context, f func() (done bool, reason string, err error)) error {
	for {
		done, reason, err := f()
		if err != nil || done {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w while %s", context.Cause(ctx), reason)
		case <-time.After(time.Second):
		}
	}
}
