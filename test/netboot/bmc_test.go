//go:build e2e

package netboot

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/imagectl/imagectl/test/ipmisim"
	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

// One command installs a machine that runs from its disk, by a BMC of another hand that
// really has the power: OpenIPMI's simulator, whose chassis is a guest.
func TestIPMIProvisionsAMachine(t *testing.T) {
	ctx := scenario(t)
	m := lab.Machine{Name: "w1", Role: "worker", Firmware: vm.SeaBIOS, CPUs: 1, MiB: 2048, Address: "10.77.0.71", MAC: "52:54:00:77:00:71",
		BMC: fmt.Sprintf("{kind: ipmi, address: %q, username: %s, password: {file: bmc-password}}", ipmisim.Address, ipmisim.Username)}
	rack := newRack(ctx, t, "", m)
	imagectl := func(args ...string) string {
		t.Helper()
		out, err := rack.Imagectl(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		rack.Log("imagectl %s", strings.Join(args, " "))
		return out
	}
	if err := os.WriteFile(filepath.Join(rack.Site, "bmc-password"), []byte(ipmisim.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	imagectl("validate")
	imagectl("lock")
	imagectl("build", "--format", "pxe,raw")
	if err := vm.WriteSentinelDisk(rack.Disk(m), m.Firmware); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(rack.Disk(m), 24<<30); err != nil {
		t.Fatal(err)
	}
	chassis := startChassis(t, rack, m)
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	if err := lab.Until(ctx, func() (bool, string, error) {
		_, err := rack.Imagectl(ctx, "machines", "power", "status", m.Name)
		return err == nil, fmt.Sprintf("waiting for the BMC: %v", err), nil
	}); err != nil {
		t.Fatal(err)
	}
	imagectl("machines", "power", "on", m.Name)
	own := <-chassis.started
	if _, err := own.Console.Wait(ctx, 0, regexp.MustCompile(regexp.QuoteMeta(vm.Sentinel))); err != nil {
		t.Fatal(err)
	}
	rack.Log("it runs from its disk")

	type result struct {
		out string
		err error
	}
	provisioned := make(chan result, 1)
	go func() {
		out, err := rack.Imagectl(ctx, "machines", "provision", m.Name)
		provisioned <- result{out, err}
	}()
	select {
	case g := <-chassis.started:
		if g.DiskFirst {
			t.Fatal("its BMC has started it, and not from the network")
		}
	case r := <-provisioned:
		t.Fatalf("imagectl machines provision ends before the machine is started: %v\n%s", r.err, r.out)
	}
	select {
	case <-own.Done():
	default:
		t.Error("the machine was started without having lost its power")
	}
	rack.Log("its BMC has started it from the network")
	if err := rack.Approve(ctx, m); err != nil {
		t.Fatal(err)
	}
	rack.Log("its key is approved")
	r := <-provisioned
	if r.err != nil {
		t.Fatal(r.err)
	}
	rack.Log("imagectl machines provision:\n%s", r.out)
	for _, want := range []string{"w1: ipmi " + ipmisim.Address + ": ", "w1: boots from the network: ", "w1: writes its disk ", "w1: installed "} {
		if !strings.Contains(r.out, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if got := strings.Fields(imagectl("machines", "power", "off", m.Name)); !slices.Contains(got, "off") {
		t.Errorf("switching it off: %v", got)
	}
	<-rack.Guests[m.Name].Done()
	log, err := os.ReadFile(filepath.Join(chassis.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	// The power is taken when the BMC has the boot device, which is told again while it is off.
	if want := "power 1\nboot pxe\npower 0\nboot pxe\npower 1\npower 0\n"; string(log) != want {
		t.Errorf("the BMC was told\n%s, want\n%s", log, want)
	}
}

// chassis is what the simulator switches.
type chassis struct {
	dir string
	// started has each guest that was switched on.
	started chan *vm.Guest
}

// switchScript has the test do what switches, and waits for it.
const switchScript = `case $1 in
boot) echo "$2" >boot ;;
*) echo "$1 $2" >orders; read -r done <answers && [ "$done" = done ] ;;
esac
`

func startChassis(t *testing.T, rack *lab.Lab, m lab.Machine) *chassis {
	t.Helper()
	c := &chassis{dir: t.TempDir(), started: make(chan *vm.Guest, 8)}
	path := func(name string) string { return filepath.Join(c.dir, name) }
	for _, name := range []string{"orders", "answers"} {
		if err := syscall.Mkfifo(path(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Open for both, so that there is always somebody at the other end.
	orders, err := os.OpenFile(path("orders"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	answers, err := os.OpenFile(path("answers"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	obeyed := make(chan struct{})
	go func() {
		defer close(obeyed)
		for in := bufio.NewScanner(orders); in.Scan(); {
			answer := "done\n"
			if err := c.obey(ctx, rack, m, in.Text()); err != nil {
				t.Errorf("the chassis is told %s: %v", in.Text(), err)
				answer = "failed\n"
			}
			_, _ = answers.WriteString(answer) // else the script waits, and the test says so
		}
	}()
	t.Cleanup(func() {
		cancel()
		orders.Close()
		<-obeyed
		answers.Close()
	})
	ipmisim.Start(t, c.dir, switchScript) // ends before
	return c
}

// obey switches the guest. It starts from the network if that is its boot device, once, and
// from its disk else.
func (c *chassis) obey(ctx context.Context, rack *lab.Lab, m lab.Machine, order string) error {
	write := func(name, value string) error {
		return os.WriteFile(filepath.Join(c.dir, name), []byte(value+"\n"), 0o644)
	}
	switch order {
	case "power 1":
		device, err := os.ReadFile(filepath.Join(c.dir, "boot"))
		if err != nil {
			return err
		}
		config := rack.Config(m)
		config.DiskFirst = string(device) != "pxe\n"
		if err := rack.Start(config); err != nil {
			return err
		}
		if err := write("boot", "none"); err != nil {
			return err
		}
		c.started <- rack.Guests[m.Name]
	case "power 0":
		if g := rack.Guests[m.Name]; g != nil {
			g.Stop()
		}
	case "reset 1":
		return rack.Guests[m.Name].Reset(ctx)
	default:
		return fmt.Errorf("it knows power and reset")
	}
	return write("power", strings.Fields(order)[1])
}
