//go:build root

package native

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// spec is what a node is made of; init reads it from a file.
type spec struct {
	Name string
	// Dir is the node's own directory on the machine that runs the test.
	Dir string
	// Bin has the programs and is first in PATH.
	Bin string
	// Loop is the node's disk.
	Loop string
	// RootOffset and RootSize are where ROOT will be on it.
	RootOffset, RootSize int64
	// Images is an archive of container images.
	Images string
	// Installed: it boots its disk at power-on.
	Installed bool
	// NoReboot: it is off when its disk is written.
	NoReboot bool
	// Extra is a directory that stands for the node's /etc before it is installed.
	Extra string
}

// unit is a unit of our little systemd.
const (
	soon = 200 * time.Millisecond
	// etcdRestart is etcd.service's own: how long an etcd that died is away is what balancers see.
	etcdRestart = 3 * time.Second
)

type unit struct {
	argv      []string
	condition string
	// notify units get the socket of systemd's Type=notify; what comes is logged.
	notify bool
	// env is more of its environment.
	env []string
	// restart is RestartSec; less than a unit's own where that would only take time.
	restart time.Duration
	// run replaces argv: kubelet.
	run func(stop <-chan struct{})

	wanted bool
	cmd    *exec.Cmd
	stop   chan struct{}
	ended  chan struct{}
}

type system struct {
	spec spec
	mu   sync.Mutex
	unit map[string]*unit
	// reboot is closed when somebody asks for one.
	reboot chan struct{}
}

const socket = "/run/native.sock"

// runInit is the first process of a node: it boots the installer, and after its
// reboot the installed system.
func runInit(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var s spec
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if err := sh("mount --make-rprivate / && mount -t proc native /proc && ip link set lo up && mount -t tmpfs native /run && mount -t sysfs native /sys; mount -t tmpfs native /sys/block"); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join("/sys/block", filepath.Base(s.Loop), "device"), 0o755); err != nil {
		return err
	}
	out, err := exec.Command("blockdev", "--getsz", s.Loop).Output()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join("/sys/block", filepath.Base(s.Loop), "size"), out, 0o644); err != nil {
		return err
	}
	console := filepath.Join(s.Dir, "console")
	if err := sh(fmt.Sprintf("touch %s && mount --bind %s /dev/console", console, console)); err != nil {
		return err
	}
	// The images come with the system: another layer of /usr/share.
	if err := sh(fmt.Sprintf("mkdir -p %[1]s/share/imagectl/images && touch %[1]s/share/imagectl/images/kubernetes.tar && mount -t overlay -o lowerdir=%[1]s/share:/usr/share native /usr/share && mount --bind %[2]s /usr/share/imagectl/images/kubernetes.tar", s.Dir, s.Images)); err != nil {
		return err
	}
	// The netbooted system lives in memory.
	memory := filepath.Join(s.Dir, "memory")
	if err := sh(fmt.Sprintf("mkdir -p %[1]s && mount -t tmpfs native %[1]s && mkdir -p %[1]s/etc %[1]s/var && cp -a %[2]s/. %[1]s/etc/", memory, s.Extra)); err != nil {
		return err
	}
	if !s.Installed {
		if err := boot(s, memory); err != nil {
			return fmt.Errorf("booting the installer: %w", err)
		}
		if s.NoReboot {
			return nil
		}
	}
	root := filepath.Join(s.Dir, "root")
	for {
		if err := sh(fmt.Sprintf("mkdir -p %[1]s && { mountpoint -q %[1]s || mount -t ext4 -o loop,offset=%[2]d,sizelimit=%[3]d %[4]s %[1]s; }", root, s.RootOffset, s.RootSize, s.Loop)); err != nil {
			return err
		}
		if err := sh("umount -l /run && mount -t tmpfs native /run"); err != nil {
			return err
		}
		if err := boot(s, root); err != nil {
			return fmt.Errorf("booting from disk: %w", err)
		}
	}
}

// boot runs a system whose writable files are in root until it reboots.
func boot(s spec, root string) error {
	if err := sh(fmt.Sprintf(`mkdir -p %[1]s/etc %[1]s/var/lib %[1]s/var/log %[1]s/.work/etc %[1]s/.work/lib
mount -t overlay -o lowerdir=/etc,upperdir=%[1]s/etc,workdir=%[1]s/.work/etc native /etc
mount -t overlay -o lowerdir=/var/lib,upperdir=%[1]s/var/lib,workdir=%[1]s/.work/lib native /var/lib
mount --bind %[1]s/var/log /var/log
mkdir -p /var/lib/containerd && mount --bind %[2]s/containerd /var/lib/containerd`, root, s.Dir)); err != nil {
		return err
	}
	// Every boot has its own.
	if err := sh("cat /proc/sys/kernel/random/uuid >/run/boot_id && mount --bind /run/boot_id /proc/sys/kernel/random/boot_id"); err != nil {
		return err
	}
	y := &system{spec: s, reboot: make(chan struct{})}
	y.unit = map[string]*unit{
		"containerd.service": {argv: []string{"containerd", "--config", "/dev/null"}, restart: soon},
		"etcd.service":       {argv: []string{"etcd", "--config-file", "/etc/etcd/etcd.yaml"}, condition: "/etc/etcd/etcd.yaml", restart: etcdRestart},
		"kubelet.service":    {run: func(stop <-chan struct{}) { kubelet(s, stop) }, condition: "/var/lib/kubelet/config.yaml"},
		// With a shifted clock (clock/overlay) ten minutes have passed when ten days have.
		"bootstrapd.service": {argv: []string{"bootstrapd"}, env: []string{"IMAGECTL_TEST_CLOCK_ASLEEP=yes"}, notify: true, condition: "/etc/imagectl/node.json", restart: soon},
	}
	_ = os.Remove(socket)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go y.answer(c)
		}
	}()
	for name := range y.unit {
		y.start(name)
	}
	<-y.reboot
	for name := range y.unit {
		y.end(name)
	}
	// Lazily: a program that takes its time to end does not keep us.
	return sh("umount -l /var/lib/containerd && umount -l /var/log && umount -l /var/lib && umount -l /etc")
}

// answer carries one systemctl command out.
func (y *system) answer(c net.Conn) {
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	verb, name, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch verb {
	case "start":
		y.start(name)
	case "stop":
		y.end(name)
	case "restart":
		y.end(name)
		y.start(name)
	case "kill":
		y.mu.Lock()
		if u := y.unit[name]; u != nil && u.cmd != nil {
			_ = u.cmd.Process.Kill()
		}
		y.mu.Unlock()
	case "is-active":
		y.mu.Lock()
		state := "inactive"
		if u := y.unit[name]; u != nil && u.wanted {
			state = "active"
		}
		y.mu.Unlock()
		fmt.Fprintln(c, state)
		return
	case "reboot":
		// An agent that is killed after it asked asks again.
		y.mu.Lock()
		select {
		case <-y.reboot:
		default:
			close(y.reboot)
		}
		y.mu.Unlock()
	}
	fmt.Fprintln(c, "ok")
}

// start begins a unit that is then restarted whenever it ends.
func (y *system) start(name string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	u := y.unit[name]
	if u == nil || u.wanted {
		return
	}
	if u.condition != "" {
		if _, err := os.Stat(u.condition); err != nil {
			return
		}
	}
	u.wanted, u.stop, u.ended = true, make(chan struct{}), make(chan struct{})
	go func(stop <-chan struct{}, ended chan<- struct{}) {
		defer close(ended)
		if u.run != nil {
			u.run(stop)
			return
		}
		for {
			done := y.once(name, u)
			select {
			case <-stop:
				return
			case <-done:
			}
			select {
			case <-stop:
				return
			case <-time.After(u.restart):
			}
		}
	}(u.stop, u.ended)
}

// once starts a unit's program and returns when it will have ended.
func (y *system) once(name string, u *unit) <-chan struct{} {
	done := make(chan struct{})
	log, err := os.OpenFile(filepath.Join(y.spec.Dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		close(done)
		return done
	}
	cmd := program(u.argv)
	cmd.Env = append(cmd.Env, u.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if u.notify {
		if err := listenNotify(cmd, log, done); err != nil {
			fmt.Fprintln(log, "listening for notifications:", err)
		}
	}
	y.mu.Lock()
	err = cmd.Start()
	if err == nil {
		u.cmd = cmd
	}
	y.mu.Unlock()
	go func() {
		defer close(done)
		defer log.Close()
		if err != nil {
			fmt.Fprintln(log, "starting:", err)
			return
		}
		err := cmd.Wait()
		fmt.Fprintf(log, "ended: %v\n", err)
	}()
	return done
}

// listenNotify gives a program systemd's notification socket and logs what it
// says there, until done.
func listenNotify(cmd *exec.Cmd, log io.Writer, done <-chan struct{}) error {
	path := "/run/notify.sock"
	_ = os.Remove(path) // of the program before
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path)
	go func() {
		<-done
		_ = c.Close()
	}()
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			fmt.Fprintf(log, "notified: %s\n", b[:n])
		}
	}()
	return nil
}

// end stops a unit and waits for its end.
func (y *system) end(name string) {
	y.mu.Lock()
	u := y.unit[name]
	if u == nil || !u.wanted {
		y.mu.Unlock()
		return
	}
	u.wanted = false
	close(u.stop)
	if u.cmd != nil {
		_ = u.cmd.Process.Signal(syscall.SIGTERM)
	}
	cmd, ended := u.cmd, u.ended
	y.mu.Unlock()
	<-ended
	if cmd != nil {
		// The loop above lets go of the program without waiting for it.
		for range 100 {
			if cmd.Process.Signal(syscall.Signal(0)) != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		_ = cmd.Process.Kill()
	}
}

// program is a process that dies with init. Its thread must not end first.
func program(argv []string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "NATIVE_NODE=")
	return cmd
}

func sh(script string) error {
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// systemctl is the node's systemctl: it passes the command to init.
func systemctl(args []string) int {
	var words []string
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			words = append(words, a)
		}
	}
	if len(words) > 1 && !strings.Contains(words[1], ".") {
		words[1] += ".service"
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer c.Close()
	fmt.Fprintln(c, strings.Join(words, " "))
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return 1
	}
	if words[0] == "is-active" {
		fmt.Print(answer)
		if answer != "active\n" {
			return 3
		}
	}
	return 0
}
