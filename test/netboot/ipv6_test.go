//go:build e2e

package netboot

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

// address6 is the server's.
const address6 = "fd77::1"

// boot6YAML is what docs/netboot.md has in cluster.yaml.
const boot6YAML = `  dhcp6:
    address: fd77::1
    subnets:
      - cidr: fd77::/64
        range: {first: fd77::1000, last: fd77::1fff}
`

// Where nobody gives out IPv4 addresses, UEFI boots the installer's kernel by IPv6, by
// PXE and by HTTP. (The installer goes on by IPv4, which this rack does not have.)
func TestKernelStartsByIPv6(t *testing.T) {
	ctx := scenario(t)
	byPXE, byHTTP := machine("pxe", "51"), machine("http", "52")
	rack := newRack(ctx, t, boot6YAML, byPXE, byHTTP)
	withoutIPv4(t, filepath.Join(rack.Site, "cluster.yaml"))
	serve6(ctx, t, rack, byPXE, byHTTP)
	for _, c := range []struct {
		machine lab.Machine
		how     string
	}{{byPXE, "fetches snponly.efi by TFTP"}, {byHTTP, "fetches snponly.efi by UEFI HTTP boot"}} {
		start6(ctx, t, rack, c.machine, c.machine.Name == byHTTP.Name)
		rack.Guests[c.machine.Name].Stop()
		whySays(ctx, t, rack, c.machine, "by IPv6: gave fd77::1", c.how, "fetches demo-pxe.vmlinuz")
	}
	log, err := os.ReadFile(filepath.Join(rack.Work, "serve.log"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), "IPv6 boot will not work here") {
		t.Errorf("the server did not hear the router:\n%s", log)
	}
}

// On a wire with both, firmware that knows IPv6 only loads the installer by it, and the
// installer enrols by IPv4.
func TestFirmwareOfIPv6GetsEnrolled(t *testing.T) {
	ctx := scenario(t)
	m := machine("w1", "53")
	rack := newRack(ctx, t, boot6YAML, m)
	serve6(ctx, t, rack, m)
	start6(ctx, t, rack, m, false)
	whySays(ctx, t, rack, m, "by IPv6: gave fd77::1", "fetches snponly.efi by TFTP", "fetches demo-pxe.vmlinuz")
	getsEnrolled(ctx, t, rack, m)
	whySays(ctx, t, rack, m, m.Address)
}

// getsEnrolled approves the key of a machine whose kernel has started.
func getsEnrolled(ctx context.Context, t *testing.T, rack *lab.Lab, m lab.Machine) {
	t.Helper()
	if err := rack.Approve(ctx, m); err != nil {
		t.Fatal(err)
	}
	if err := rack.WaitState(ctx, m.Name, "installing", "failed"); err != nil {
		t.Fatal(err)
	}
	rack.Log("%s: enrolled, and told to install", m.Name)
}

// serve6 builds, serves by IPv6 beside a router, and arms the machines.
func serve6(ctx context.Context, t *testing.T, rack *lab.Lab, machines ...lab.Machine) {
	t.Helper()
	command(ctx, t, "ip", "-6", "address", "add", address6+"/64", "dev", "br0", "nodad")
	advertise(t)
	serveArmed(ctx, t, rack, machines...)
}

// serveArmed builds, serves, and arms the machines.
func serveArmed(ctx context.Context, t *testing.T, rack *lab.Lab, machines ...lab.Machine) {
	t.Helper()
	for _, args := range [][]string{{"validate"}, {"lock"}, {"build", "--format", "pxe"}} {
		if _, err := rack.Imagectl(ctx, args...); err != nil {
			t.Fatal(err)
		}
		rack.Log("imagectl %s", strings.Join(args, " "))
	}
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	arm := []string{"machines", "arm"}
	for _, m := range machines {
		arm = append(arm, m.Name)
	}
	if _, err := rack.Imagectl(ctx, arm...); err != nil {
		t.Fatal(err)
	}
}

// start6 switches a machine on whose firmware boots by IPv6, until the kernel starts.
func start6(ctx context.Context, t *testing.T, rack *lab.Lab, m lab.Machine, http bool) {
	t.Helper()
	config := rack.Config(m)
	config.IPv6, config.HTTPBoot = true, http
	startsKernel(ctx, t, rack, m, config)
}

// startsKernel switches a machine on until the kernel starts.
func startsKernel(ctx context.Context, t *testing.T, rack *lab.Lab, m lab.Machine, config vm.Config) {
	t.Helper()
	if err := os.WriteFile(rack.Disk(m), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	kernel := regexp.MustCompile(`(Command line: .*initrd=initrd1)|BdsDxe: No bootable option`)
	const tries = 3 // UEFI waits 5 s for an answer by HTTP, and this host may stand still for longer
	for try := 1; ; try++ {
		if err := rack.Start(config); err != nil {
			t.Fatal(err)
		}
		rack.Log("%s: power on", m.Name)
		got, err := rack.Guests[m.Name].Console.Wait(ctx, 0, kernel)
		if err != nil {
			t.Fatal(err)
		}
		if got[1] != "" {
			break
		}
		rack.Guests[m.Name].Stop()
		if rack.Log("%s: its firmware found nothing to boot, try %d of %d", m.Name, try, tries); try == tries {
			t.FailNow()
		}
	}
	rack.Log("%s: the kernel started", m.Name)
}

func whySays(ctx context.Context, t *testing.T, rack *lab.Lab, m lab.Machine, wants ...string) {
	t.Helper()
	why, err := rack.Imagectl(ctx, "why", m.MAC)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range wants {
		if !strings.Contains(why, want) {
			t.Errorf("imagectl why does not say %q:\n%s", want, why)
		}
	}
}

// withoutIPv4 leaves IPv4 addresses to a DHCP server that is not there.
func withoutIPv4(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	off := strings.Replace(string(text), "  dhcp: authoritative\n", "  dhcp: off\n", 1)
	if off == string(text) {
		t.Fatal("the rack's cluster.yaml has another boot.dhcp")
	}
	if err := os.WriteFile(path, []byte(off), 0o644); err != nil {
		t.Fatal(err)
	}
}

// advertise is the site's router.
func advertise(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "radvd.conf")
	if err := os.WriteFile(config, []byte("interface br0 {\n  AdvSendAdvert on; AdvManagedFlag on; AdvOtherConfigFlag on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4;\n  prefix fd77::/64 { AdvOnLink on; AdvAutonomous off; };\n};\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	radvd := exec.Command("radvd", "--nodaemon", "--logmethod=stderr", "--config="+config, "--pidfile="+filepath.Join(dir, "pid"))
	radvd.Stderr = os.Stderr
	radvd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := radvd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = radvd.Process.Kill()
		_ = radvd.Wait()
	})
}
