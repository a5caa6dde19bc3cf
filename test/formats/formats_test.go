//go:build e2e

// Package formats boots every format of a role's disk in a virtual machine, as a
// platform would that clones it, until the machine is enrolled at a real imagectl
// serve; and the installer's ISO image, which first writes the disk of a machine that
// nobody netboots. "make formats" runs it, on the test release
// (test/release/README.md).
package formats

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

var (
	bin     = flag.String("bin", "", "directory of imagectl and bootstrapd")
	release = flag.String("release", "", "directory of the test release")
	only    = flag.String("formats", "", "comma-separated formats to try; empty for all")
	cache   = flag.String("cache", "", "imagectl's cache directory; empty for a new one")
)

// clone is a virtual machine made from one format, and how the platform that uses
// this format tells it of its server. With isoFormat it is an empty machine with the
// installer in its CD drive, which knows the server.
type clone struct {
	format   string
	driver   string // QEMU's name of the format
	firmware vm.Firmware
	channel  channel
	// from is what the agent says about it.
	from string
	// as is its name where the format's is taken.
	as string
	// token: it enrols itself by a token that its platform gives it, and no operator
	// compares anything.
	token bool
	// apart: it is in a network where nobody gives addresses.
	apart bool
}

// The network without DHCP. Behind its router is the server.
const (
	apartBridge = "br1"
	apartRouter = "10.78.0.1"
	apartSubnet = "    - {cidr: 10.78.0.0/24, router: 10.78.0.1}\n"
	// apartName is what the machine is called on its platform.
	apartName = "vm-from-context"
)

const isoFormat = "iso"

func (c clone) name() string {
	if c.format == isoFormat {
		return c.format + "-" + string(c.firmware)
	}
	return cmp.Or(c.as, c.format)
}

// clones come in groups of atOnce that take equally long.
func clones() []clone {
	all := []clone{
		{format: isoFormat, firmware: vm.OVMF},
		{format: isoFormat, firmware: vm.SeaBIOS},
		{format: "ova", driver: "vmdk", firmware: vm.OVMF, channel: ovfEnvironment, from: "OVF ENV ovf-env.xml"},
		{format: "raw", driver: "raw", firmware: vm.SeaBIOS, channel: firmwareKey, from: "fw_cfg opt/org.imagectl/node"},
		{format: "qcow2", driver: "qcow2", firmware: vm.SeaBIOS, channel: openNebula, from: "CONTEXT context.sh", token: true, apart: true},
		{format: "vmdk", driver: "vmdk", firmware: vm.SeaBIOS, channel: cidata, from: "cidata user-data"},
		{format: "vhd", driver: "vpc", firmware: vm.SeaBIOS, channel: configDrive, from: "config-2 openstack/latest/user_data", token: true},
		{format: "raw", driver: "raw", firmware: vm.SeaBIOS, channel: hetzner, from: "the metadata of Hetzner", as: "cloud"},
	}
	if *only == "" {
		return all
	}
	wanted := strings.Split(*only, ",")
	return slices.DeleteFunc(all, func(c clone) bool { return !slices.Contains(wanted, c.format) && !slices.Contains(wanted, c.name()) })
}

// report has a clone print what no two clones may share.
const report = `variant: flatcar
version: 1.1.0
systemd:
  units:
    - name: clone-report.service
      enabled: true
      contents: |
        [Service]
        Type=oneshot
        ExecStartPre=/bin/sh -c 'systemctl show -p Result -p ConditionResult -p ActiveState extend-filesystems.service > /dev/console; journalctl -b -o cat -u extend-filesystems.service > /dev/console; lsblk -bo NAME,SIZE,TYPE,MOUNTPOINTS > /dev/console'
        ExecStart=/bin/sh -c 'echo "clone: machine-id=$(cat /etc/machine-id) ssh-host-keys=$(ls /etc/ssh | grep -c ssh_host_) root-MiB=$(($(stat -f -c "%%S * %%b" /) >> 20))" > /dev/console'
        [Install]
        WantedBy=multi-user.target
    # The platform has given addresses and a name; the server gives another one soon.
    - name: clone-name.path
      enabled: true
      contents: |
        [Path]
        PathExists=/etc/imagectl/addressed
        [Install]
        WantedBy=multi-user.target
    - name: clone-name.service
      contents: |
        [Service]
        Type=oneshot
        RemainAfterExit=yes
        ExecStart=/bin/sh -c 'echo "clone: hostname=$(cat /proc/sys/kernel/hostname) /etc/hostname=$(cat /etc/hostname)" > /dev/console'
`

var reported = regexp.MustCompile(`clone: machine-id=([0-9a-f]{32}) ssh-host-keys=(\d+) root-MiB=(\d+)`)

// atOnce is how many machines run at the same time; the next start when all of them are
// done.
const atOnce = 2

func TestEveryFormatBootsToEnrolled(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 80*time.Minute, fmt.Errorf("the scenario's 80 minutes are over"))
	defer cancel()
	all := clones()
	rack, machines := newRack(t, ctx, all)
	if _, err := rack.Imagectl(ctx, "validate"); err != nil {
		t.Fatal(err)
	}
	commands := [][]string{{"lock"}, {"build", "--format", "pxe,iso"}}
	if list := formatList(all); list != "" {
		commands = append(commands, []string{"build", "worker", "--format", list})
	}
	for _, args := range commands {
		began := time.Now()
		if _, err := rack.Imagectl(ctx, args...); err != nil {
			t.Fatal(err)
		}
		rack.Log("imagectl %s (%s)", strings.Join(args, " "), time.Since(began).Round(100*time.Millisecond))
	}
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	start := func(i int) {
		c := rack.Config(machines[i])
		c.DiskFirst = true
		if installs(all[i]) {
			if _, err := rack.Imagectl(ctx, "machines", "arm", c.Name); err != nil {
				t.Fatal(err)
			}
			c.Medium, c.MediumBoots = filepath.Join(rack.Site, "out", "demo-installer.iso"), true
			c.DiskFormat = "qcow2"
			run(t, "qemu-img", "create", "-q", "-f", "qcow2", c.Disk, "24G")
		} else {
			c.Disk, c.DiskFormat = overlay(t, rack, all[i]), "qcow2"
			args := []string{"machines", "config"}
			if all[i].token {
				args = append(args, "--token", c.Name, "--lifetime", "1h")
			}
			nodeJSON, err := rack.Imagectl(ctx, args...)
			if err != nil {
				t.Fatal(err)
			}
			all[i].channel(t, &c, machines[i].Address, []byte(nodeJSON))
		}
		if err := rack.Start(c); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for name, g := range rack.Guests {
			t.Logf("the last lines of %s:\n%s", name, strings.Join(g.Console.Tail(40), "\n"))
		}
	})
	seen := map[string]string{} // what clones may not share, and whose it is
	for first := 0; first < len(all); first += atOnce {
		began, last := time.Now(), min(first+atOnce, len(all))
		for i := first; i < last; i++ {
			start(i)
		}
		for i := first; i < last; i++ {
			if installs(all[i]) {
				bootsItsMedium(t, ctx, rack, machines[i])
			} else {
				findsItsServer(t, ctx, rack, machines[i], all[i])
			}
		}
		for i := first; i < last; i++ {
			m := machines[i]
			if installs(all[i]) {
				installsItself(t, ctx, rack, m)
			}
			isItself(t, ctx, rack, m, seen)
			isLetIn(t, ctx, rack, m, all[i])
			if all[i].apart {
				hasWhatItsPlatformSaid(t, ctx, rack, m)
			}
			rack.Guests[m.Name].Stop()
			rack.Log("%s: enrolled on %s, %s after power on", m.Name, m.Firmware, time.Since(began).Round(time.Second))
		}
	}
}

// installs tells whether a machine begins with an empty disk.
func installs(c clone) bool { return c.format == isoFormat }

// bootsItsMedium waits until the installer on the CD asks, and approves it.
func bootsItsMedium(t *testing.T, ctx context.Context, rack *lab.Lab, m lab.Machine) {
	line, err := rack.Guests[m.Name].Console.Wait(ctx, 0, regexp.MustCompile(`Command line: (.*)`))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(line[1], "ignition.config.url") {
		t.Errorf("%s was netbooted: %s", m.Name, line[1])
	}
	if err := rack.Approve(ctx, m); err != nil {
		t.Fatal(err)
	}
}

// installsItself waits until the disk is written, which the firmware prefers from
// then on.
func installsItself(t *testing.T, ctx context.Context, rack *lab.Lab, m lab.Machine) {
	if err := rack.WaitState(ctx, m.Name, "installed", "enrolled", "failed", "quarantined"); err != nil {
		t.Fatal(err)
	}
	views, err := rack.Views(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if v := views[m.Name]; v.State == "failed" || v.State == "quarantined" {
		t.Fatalf("%s is %s: %s", m.Name, v.State, v.Reason)
	}
	rack.Log("%s: installed", m.Name)
}

// findsItsServer waits until a clone has asked its platform and is approved.
func findsItsServer(t *testing.T, ctx context.Context, rack *lab.Lab, m lab.Machine, c clone) {
	if _, err := rack.Guests[m.Name].Console.Wait(ctx, 0, regexp.MustCompile(`which server this machine belongs to" from="?`+regexp.QuoteMeta(c.from))); err != nil {
		t.Fatal(err)
	}
	rack.Log("%s: told by %s", m.Name, c.from)
	if c.token {
		return
	}
	if err := rack.Approve(ctx, m); err != nil {
		t.Fatal(err)
	}
}

// isoBoot is what cluster.yaml needs for the ISO image: Debian's own programs.
const isoBoot = `  iso:
    stub: /usr/lib/systemd/boot/efi/linuxx64.efi.stub
    isolinux: /usr/lib/ISOLINUX/isolinux.bin
    mbr: /usr/lib/ISOLINUX/isohdpfx.bin
    ldlinux: /usr/lib/syslinux/modules/bios/ldlinux.c32
`

func newRack(t *testing.T, ctx context.Context, all []clone) (*lab.Lab, []lab.Machine) {
	t.Helper()
	for name, value := range map[string]string{"-bin": *bin, "-release": *release} {
		if value == "" {
			t.Fatalf("%s is not set; run this through make formats", name)
		}
	}
	machines := []lab.Machine{lab.Absent()}
	for i, c := range all {
		memory := 1536
		if installs(c) {
			memory = 3072 // its root file system is in memory too
		}
		network := "10.77.0"
		if c.apart {
			network = "10.78.0"
		}
		machines = append(machines, lab.Machine{
			Name: c.name(), Role: "worker", Firmware: c.firmware, CPUs: 1, MiB: memory,
			Address: fmt.Sprintf("%s.%d", network, 41+i), MAC: fmt.Sprintf("52:54:00:77:00:%d", 41+i),
		})
	}
	upstream := t.TempDir()
	if err := lab.StandIns(upstream); err != nil {
		t.Fatal(err)
	}
	rack, err := lab.New(ctx, lab.Lab{Bin: *bin, Release: *release, Upstream: upstream, Work: t.TempDir(), Cache: *cache, Butane: report, Boot: isoBoot, Subnets: apartSubnet, Identity: "token", Machines: machines,
		Log: lab.Stamped(os.Stderr)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rack.Close)
	if err := vm.Bridge(apartBridge, apartRouter+"/24"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Unplug(apartBridge) })
	for i, c := range all {
		if c.apart {
			run(t, "ip", "link", "set", rack.Config(machines[i+1]).Tap, "master", apartBridge)
		}
	}
	return rack, machines[1:]
}

func formatList(all []clone) string {
	var names []string
	for _, c := range all {
		if !installs(c) && !slices.Contains(names, c.format) {
			names = append(names, c.format)
		}
	}
	return strings.Join(names, ",")
}

// overlay is a larger disk on top of the built file, which stays as it is. QEMU
// reads the file by the format's own driver.
func overlay(t *testing.T, rack *lab.Lab, c clone) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(rack.Site, "out", "demo-worker-*."+c.format))
	if err != nil || len(found) != 1 {
		t.Fatalf("want one worker image in format %s, found %v, %v", c.format, found, err)
	}
	built, dir := found[0], t.TempDir()
	if c.format == "ova" {
		run(t, "tar", "-x", "-f", built, "-C", dir, "--wildcards", "*.vmdk")
		if found, err = filepath.Glob(filepath.Join(dir, "*.vmdk")); err != nil || len(found) != 1 {
			t.Fatalf("want one disk in %s, found %v, %v", built, found, err)
		}
		built = found[0]
	}
	disk := filepath.Join(dir, "overlay.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", c.driver, "-b", built, disk, "12G")
	return disk
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}
