//go:build e2e

// Package vagrant brings the machines of the Vagrantfile up with vagrant and a
// libvirtd of its own, on a bridge where imagectl serve listens, and waits until they
// are the example cluster. "make vagrant-test" runs it.
package vagrant

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/daemon"
	"github.com/imagectl/imagectl/test/lab"
	"github.com/imagectl/imagectl/test/vm"
)

var (
	bin      = flag.String("bin", "", "directory of imagectl and bootstrapd")
	release  = flag.String("release", "", "directory of the test release")
	upstream = flag.String("upstream", "", "directory of Kubernetes and companions")
	root     = flag.String("root", "", "directory of the Vagrantfile")
)

func TestVagrantUpFormsTheCluster(t *testing.T) {
	for name, value := range map[string]string{"-bin": *bin, "-release": *release, "-upstream": *upstream, "-root": *root} {
		if value == "" {
			t.Fatalf("%s is not set; run this through make vagrant-test", name)
		}
	}
	// It covers libvirt's directories, and somebody must reap libvirt's children, which
	// it leaves behind and waits for: the shell that is process 1.
	if os.Getppid() != 1 {
		t.Fatal("this is not a child of process 1 of a namespace; run this through make vagrant-test")
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 80*time.Minute, fmt.Errorf("the scenario's 80 minutes are over"))
	defer cancel()
	start, machines := time.Now(), lab.Rack()
	for i := range machines {
		machines[i].Firmware = vm.SeaBIOS
	}
	work := t.TempDir()
	rack, err := lab.New(ctx, lab.Lab{Bin: *bin, Release: *release, Upstream: *upstream, Work: work, Machines: machines,
		Log: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%6s  %s\n", time.Since(start).Round(time.Second), fmt.Sprintf(format, args...))
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rack.Close)
	if err := rack.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := rack.Imagectl(ctx, "machines", "arm", "cp1", "w1"); err != nil {
		t.Fatal(err)
	}
	startLibvirt(t, ctx)
	// As a desktop's libvirt has it, see the Vagrantfile.
	if out, err := exec.CommandContext(ctx, "virsh", "--connect", "qemu:///system", "pool-create-as", "default", "dir", "--target", t.TempDir()).CombinedOutput(); err != nil {
		t.Fatalf("making the storage pool: %v: %s", err, out)
	}

	v := vagrant{t: t, home: filepath.Join(work, "vagrant"), driver: "qemu"}
	if rack.Accel == "kvm" {
		v.driver = "kvm"
	}
	t.Cleanup(func() { v.run(context.Background(), "destroy", "--force") })
	v.run(ctx, "up", "--provider", "libvirt")
	rack.Log("vagrant up is done")
	for _, m := range machines {
		rack.Guests[m.Name] = &vm.Guest{Console: follow(t, filepath.Join(v.consoles(), m.Name))}
		// They are vagrant's to stop.
		t.Cleanup(func() { delete(rack.Guests, m.Name) })
	}
	for _, m := range machines {
		if err := rack.Approve(ctx, m); err != nil {
			t.Fatal(err)
		}
		rack.Log("%s: approved by the code on its console", m.Name)
	}
	if err := rack.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	rack.Log("the cluster is Ready")
}

// vagrant runs vagrant on the Vagrantfile, with all its state below home.
type vagrant struct {
	t            *testing.T
	home, driver string
}

func (v vagrant) consoles() string { return filepath.Join(v.home, "consoles") }

func (v vagrant) run(ctx context.Context, args ...string) {
	v.t.Helper()
	if err := os.MkdirAll(v.consoles(), 0o755); err != nil {
		v.t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "vagrant", args...)
	cmd.Env = append(os.Environ(), "VAGRANT_CWD="+*root, "VAGRANT_HOME="+v.home, "VAGRANT_DOTFILE_PATH="+filepath.Join(v.home, "state"),
		"VAGRANT_CHECKPOINT_DISABLE=1", "HOME="+v.home, "IMAGECTL_DRIVER="+v.driver, "IMAGECTL_CONSOLES="+v.consoles())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		v.t.Fatalf("vagrant %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// follow reads a console's file from its beginning, as it grows.
func follow(t *testing.T, path string) *vm.Console {
	t.Helper()
	cmd := exec.Command("tail", "--bytes=+1", "--follow=name", "--retry", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return vm.Follow(out)
}

// startLibvirt starts the system's libvirtd, with directories that vanish with this
// namespace in the places of the machine's own.
func startLibvirt(t *testing.T, ctx context.Context) {
	t.Helper()
	for _, dir := range []string{"/etc/libvirt", "/run/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/var/lib/libvirt"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount(t.TempDir(), dir, "", syscall.MS_BIND, ""); err != nil {
			t.Fatalf("covering %s: %v", dir, err)
		}
	}
	// There is no systemd, no virtlogd and no AppArmor in here.
	const qemu = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nstdio_handler = \"file\"\ncgroup_controllers = []\nnamespaces = []\n"
	if err := os.WriteFile("/etc/libvirt/qemu.conf", []byte(qemu), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/libvirtd")
	cmd.Env = append(os.Environ(), "PATH="+daemon.DebianPath)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	if err := lab.Until(ctx, func() (bool, string, error) {
		conn, err := net.Dial("unix", "/run/libvirt/libvirt-sock")
		if err == nil {
			return true, "", conn.Close()
		}
		select {
		case end := <-ended:
			ended <- end
			return false, "", fmt.Errorf("libvirtd ended: %v: %s", end, said.String())
		default:
			return false, "waiting for libvirtd", nil
		}
	}); err != nil {
		t.Fatal(err)
	}
}
