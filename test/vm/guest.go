// Package vm boots QEMU guests for the scenarios: real firmware, a disk, one
// network card on a bridge, and a serial console that a test can wait on.
//
// It uses KVM only after a probe guest has really booted a kernel under it, and
// TCG otherwise. A guest dies with the process that started it.
package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Firmware is what the guest starts with.
type Firmware string

// The firmware builds, both from Debian's packages.
const (
	SeaBIOS Firmware = "seabios"
	OVMF    Firmware = "ovmf"
)

// Accel is a QEMU accelerator, "tcg" or "kvm".
type Accel string

// Config describes one guest.
type Config struct {
	Name     string
	Firmware Firmware
	Accel    Accel
	CPUs     int
	// MemoryMiB is the guest's memory.
	MemoryMiB int
	// Disk is a raw image file.
	Disk string
	// DiskSerial is what the guest sees as the disk's serial number.
	DiskSerial string
	MAC        string
	UUID       string
	Serial     string
	// Tap is an existing tap device.
	Tap string
	// DiskFirst makes the firmware prefer its disk over the network.
	DiskFirst bool
	// Dir takes the guest's console log, firmware variables and control socket.
	Dir string
}

// Guest is a running machine.
type Guest struct {
	Config
	Console *Console
	cmd     *exec.Cmd
	done    chan struct{}
	exit    error
}

// Start powers a guest on. The caller stops it.
func Start(cfg Config) (*Guest, error) {
	args, err := arguments(cfg)
	if err != nil {
		return nil, err
	}
	logFile, err := os.OpenFile(filepath.Join(cfg.Dir, cfg.Name+".console"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	g := &Guest{Config: cfg, Console: newConsole(), done: make(chan struct{})}
	g.cmd = exec.Command("qemu-system-x86_64", args...)
	g.cmd.Stdout = write
	g.cmd.Stderr = write
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := g.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting guest %s: %w", cfg.Name, err)
	}
	write.Close()
	go func() {
		defer close(g.done)
		defer logFile.Close()
		g.Console.follow(io.TeeReader(read, logFile))
		g.exit = g.cmd.Wait()
		g.Console.end()
	}()
	return g, nil
}

func arguments(cfg Config) ([]string, error) {
	cpu := "max"
	if cfg.Accel == "kvm" {
		cpu = "host"
	}
	net, disk := 1, 2
	if cfg.DiskFirst {
		net, disk = 2, 1
	}
	args := []string{
		"-name", cfg.Name, "-machine", "q35", "-accel", string(cfg.Accel), "-cpu", cpu,
		"-smp", strconv.Itoa(cfg.CPUs), "-m", strconv.Itoa(cfg.MemoryMiB),
		"-uuid", cfg.UUID, "-smbios", "type=1,serial=" + cfg.Serial,
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "std",
		"-serial", "stdio", "-monitor", "none",
		"-qmp", "unix:" + cfg.qmpPath() + ",server=on,wait=off",
		"-object", "rng-random,filename=/dev/urandom,id=rng", "-device", "virtio-rng-pci,rng=rng",
		"-drive", "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap,file=" + cfg.Disk,
		"-device", fmt.Sprintf("virtio-blk-pci,drive=disk,serial=%s,bootindex=%d", cfg.DiskSerial, disk),
		"-netdev", "tap,id=net,script=no,downscript=no,ifname=" + cfg.Tap,
	}
	nic := fmt.Sprintf("virtio-net-pci,netdev=net,mac=%s,bootindex=%d", cfg.MAC, net)
	switch cfg.Firmware {
	case SeaBIOS:
		// The card's own ROM is iPXE.
		args = append(args, "-device", nic)
	case OVMF:
		vars := filepath.Join(cfg.Dir, cfg.Name+".vars")
		if _, err := os.Stat(vars); errors.Is(err, os.ErrNotExist) {
			content, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
			if err != nil {
				return nil, fmt.Errorf("copying firmware variables (apt-get install ovmf): %w", err)
			}
			if err := os.WriteFile(vars, content, 0o644); err != nil {
				return nil, err
			}
		}
		// romfile= empties the card's ROM, so that the firmware's own PXE is used.
		args = append(args, "-device", nic+",romfile=",
			"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
			"-drive", "if=pflash,format=raw,unit=1,file="+vars,
			"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no")
	default:
		return nil, fmt.Errorf("starting guest %s: unknown firmware %q", cfg.Name, cfg.Firmware)
	}
	return args, nil
}

func (c Config) qmpPath() string { return filepath.Join(c.Dir, c.Name+".qmp") }

// Reset presses the reset button.
func (g *Guest) Reset(ctx context.Context) error { return g.qmp(ctx, "system_reset") }

// Done is closed when the guest has ended, by itself or by Stop.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Stop pulls the plug and waits for the guest to be gone.
func (g *Guest) Stop() {
	if g.cmd.Process != nil {
		// The error says that it is gone already, which is what we want.
		_ = g.cmd.Process.Kill()
	}
	<-g.done
}

// qmp runs one command of the QEMU Machine Protocol.
func (g *Guest) qmp(ctx context.Context, command string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", g.qmpPath())
	if err != nil {
		return fmt.Errorf("controlling guest %s: %w", g.Name, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil {
		return fmt.Errorf("controlling guest %s: reading the greeting: %w", g.Name, err)
	}
	for _, c := range []string{"qmp_capabilities", command} {
		if _, err := fmt.Fprintf(conn, `{"execute":%q}`+"\n", c); err != nil {
			return err
		}
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return fmt.Errorf("controlling guest %s: %s: %w", g.Name, c, err)
			}
			var reply struct {
				Return json.RawMessage `json:"return"`
				Error  *struct{ Desc string }
			}
			if err := json.Unmarshal([]byte(line), &reply); err != nil {
				return err
			}
			if reply.Error != nil {
				return fmt.Errorf("controlling guest %s: %s: %s", g.Name, c, reply.Error.Desc)
			}
			if reply.Return != nil {
				break
			}
		}
	}
	return nil
}
