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

// The firmware builds, all from Debian's packages. AAVMF is UEFI on arm64, which is
// emulated; it boots from the network first, and remembers no boot order.
const (
	SeaBIOS Firmware = "seabios"
	OVMF    Firmware = "ovmf"
	AAVMF   Firmware = "aavmf"
)

// Where UEFI's variables come from, by firmware.
const (
	ovmfVariables  = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	aavmfVariables = "/usr/share/AAVMF/AAVMF_VARS.fd"
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
	// Disk is an image file, in DiskFormat as QEMU calls it; empty for raw.
	Disk, DiskFormat string
	// DiskSerial is what the guest sees as the disk's serial number.
	DiskSerial string
	MAC        string
	UUID       string
	Serial     string
	// Manufacturer is SMBIOS' of the system; empty for QEMU's own.
	Manufacturer string
	// Tap is an existing tap device.
	Tap string
	// DiskFirst makes the firmware prefer its disk over the network. UEFI is told at
	// the first start only: from then on its own variables count, as on hardware.
	DiskFirst bool
	// HTTPBoot switches PXE off in UEFI: from the network it boots by HTTP alone.
	HTTPBoot bool
	// IPv6 lets UEFI try PXE by IPv6 and not by IPv4.
	IPv6 bool
	// SecureVariables switches Secure Boot on in UEFI: variables that have its keys, from
	// EnrolKeys. The guest has a copy.
	SecureVariables string
	// FirmwareData is a file that QEMU shows as the fw_cfg entry FirmwareKey; none when
	// empty.
	FirmwareKey, FirmwareData string
	// TPM is the control socket of a software TPM 2.0; none when empty.
	TPM string
	// Medium is an image that is in a CD drive; none when empty. MediumBoots has the
	// firmware start from it when the disk starts nothing, before it tries the network.
	Medium      string
	MediumBoots bool
	// Clock is what the machine's own clock says at power-on in UTC, such as
	// 2001-02-03T04:05:06; empty for the host's time.
	Clock string
	// NoReboot ends the guest where it would start anew.
	NoReboot bool
	// Ports are names of virtio serial ports, which the guest sees below
	// /dev/virtio-ports; Guest.Port is the other end.
	Ports []string
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
	ports   map[string]net.Conn
}

// Start powers a guest on. The caller stops it.
func Start(cfg Config) (*Guest, error) {
	remembers, err := cfg.variables()
	if err != nil {
		return nil, err
	}
	args, err := arguments(cfg, remembers)
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
	g.cmd = exec.Command(cfg.emulator(), args...)
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
	go g.reportLostTimer()
	if cfg.Firmware == OVMF && !remembers {
		if err := g.forgetOrder(); err != nil {
			g.Stop()
			return nil, err
		}
	}
	if err := g.openPorts(); err != nil {
		g.Stop()
		return nil, err
	}
	return g, nil
}

// emulator is the program that a guest runs in.
func (c Config) emulator() string {
	if c.Firmware == AAVMF {
		return "qemu-system-aarch64"
	}
	return "qemu-system-x86_64"
}

// NVRAM holds the variables of a guest with UEFI.
func (c Config) NVRAM() NVRAM { return NVRAM{Path: filepath.Join(c.Dir, c.Name+".vars")} }

// variables gives a guest with UEFI empty variables, unless it has some.
func (c Config) variables() (remembers bool, err error) {
	if c.Firmware == SeaBIOS {
		return false, nil
	}
	if _, err := os.Stat(c.NVRAM().Path); !errors.Is(err, os.ErrNotExist) {
		return true, err
	}
	from := ovmfVariables
	switch {
	case c.Firmware == AAVMF:
		from = aavmfVariables
	case c.SecureVariables != "":
		from = c.SecureVariables
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return false, fmt.Errorf("copying firmware variables (apt-get install ovmf qemu-efi-aarch64): %w", err)
	}
	return false, os.WriteFile(c.NVRAM().Path, content, 0o644)
}

// forgetOrder takes the boot order away that QEMU shows to the firmware. What is
// shown already stays until the next reset; from then on OVMF, which otherwise
// sorts its entries by it at every start, follows what it remembers.
func (g *Guest) forgetOrder() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	devices := []string{"nic", "blk"}
	if g.MediumBoots {
		devices = append(devices, "drive")
	}
	for _, device := range devices {
		if err := g.qmp(ctx, "qom-set", map[string]any{"path": "/machine/peripheral/" + device, "property": "bootindex", "value": -1}); err != nil {
			return err
		}
	}
	return nil
}

// index is QEMU's boot index for a device; without one the firmware is told
// nothing.
func index(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(",bootindex=%d", n)
}

func arguments(cfg Config, remembers bool) ([]string, error) {
	cpu, machine, format := EmulatedCPU, "q35", "raw"
	if cfg.DiskFormat != "" {
		format = cfg.DiskFormat
	}
	if cfg.Accel == "kvm" {
		cpu = "host"
	}
	net, disk, medium := 1, 2, 0
	if cfg.DiskFirst {
		net, disk = 3, 1
	}
	if cfg.MediumBoots {
		medium = 2
		if !cfg.DiskFirst {
			return nil, fmt.Errorf("starting guest %s: a medium boots behind the disk, so DiskFirst is needed", cfg.Name)
		}
	}
	if remembers {
		net, disk, medium = 0, 0, 0
	}
	screen := []string{"-vga", "std"}
	switch cfg.Firmware {
	case AAVMF:
		// Of a kind that the architecture's oldest servers have; this board has no VGA.
		cpu, machine, screen = "cortex-a57", "virt", nil
	case SeaBIOS:
		// It and iPXE write to the serial port then, besides the screen.
		machine += ",graphics=off"
	case OVMF:
	}
	args := []string{
		"-name", cfg.Name, "-machine", machine, "-accel", string(cfg.Accel), "-cpu", cpu,
		"-smp", strconv.Itoa(cfg.CPUs), "-m", strconv.Itoa(cfg.MemoryMiB),
		"-uuid", cfg.UUID, "-smbios", cfg.system(),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "stdio", "-monitor", "none",
		"-qmp", "unix:" + cfg.qmpPath() + ",server=on,wait=off",
		"-object", "rng-random,filename=/dev/urandom,id=rng", "-device", "virtio-rng-pci,rng=rng",
		"-drive", "if=none,id=disk,format=" + format + ",cache=unsafe,discard=unmap,detect-zeroes=unmap,file=" + cfg.Disk,
		"-device", "virtio-blk-pci,id=blk,drive=disk,serial=" + cfg.DiskSerial + index(disk),
		"-netdev", "tap,id=net,script=no,downscript=no,ifname=" + cfg.Tap,
	}
	args = append(args, screen...)
	if cfg.FirmwareData != "" {
		args = append(args, "-fw_cfg", "name="+cfg.FirmwareKey+",file="+cfg.FirmwareData)
	}
	if cfg.TPM != "" {
		args = append(args, "-chardev", "socket,id=tpm,path="+cfg.TPM, "-tpmdev", "emulator,id=tpmdev,chardev=tpm", "-device", "tpm-tis,tpmdev=tpmdev")
	}
	if cfg.Medium != "" {
		args = append(args, "-device", "virtio-scsi-pci,id=scsi",
			"-drive", "if=none,id=cd,format=raw,readonly=on,file="+cfg.Medium, "-device", "scsi-cd,id=drive,drive=cd"+index(medium))
	}
	if cfg.Clock != "" {
		args = append(args, "-rtc", "base="+cfg.Clock)
	}
	if cfg.NoReboot {
		args = append(args, "-no-reboot")
	}
	args = append(args, cfg.portArguments()...)
	nic := "virtio-net-pci,id=nic,netdev=net,mac=" + cfg.MAC + index(net)
	switch cfg.Firmware {
	case SeaBIOS:
		// The card's own ROM is iPXE.
		args = append(args, "-device", nic)
	case AAVMF:
		args = append(args, "-device", nic+",romfile=",
			"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/AAVMF/AAVMF_CODE.fd",
			"-drive", "if=pflash,format=raw,unit=1,file="+cfg.NVRAM().Path,
			"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no")
		if cfg.HTTPBoot {
			args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=no")
		}
	case OVMF:
		// romfile= empties the card's ROM, so that the firmware's own PXE is used.
		args = append(args, "-device", nic+",romfile=")
		if cfg.HTTPBoot || !cfg.IPv6 {
			args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no")
		}
		if cfg.SecureVariables != "" {
			args = append(args, secureArgs(cfg.NVRAM().Path)...)
		} else {
			args = append(args,
				"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
				"-drive", "if=pflash,format=raw,unit=1,file="+cfg.NVRAM().Path)
		}
		if cfg.HTTPBoot || cfg.IPv6 {
			args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=no")
		}
	default:
		return nil, fmt.Errorf("starting guest %s: unknown firmware %q", cfg.Name, cfg.Firmware)
	}
	return args, nil
}

// system is the table in which firmware says whose machine it is (SMBIOS, type 1).
func (c Config) system() string {
	table := "type=1,serial=" + c.Serial
	if c.Manufacturer != "" {
		table += ",manufacturer=" + c.Manufacturer
	}
	return table
}

func (c Config) qmpPath() string { return filepath.Join(c.Dir, c.Name+".qmp") }

// Reset presses the reset button.
func (g *Guest) Reset(ctx context.Context) error { return g.qmp(ctx, "system_reset", nil) }

// Done is closed when the guest has ended, by itself or by Stop.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Stop pulls the plug and waits for the guest to be gone.
func (g *Guest) Stop() {
	if g.cmd.Process != nil {
		// The error says that it is gone already, which is what we want.
		_ = g.cmd.Process.Kill()
	}
	<-g.done
	for _, conn := range g.ports {
		conn.Close()
	}
}

// dial connects to a socket of the guest's. One that has just been started has none
// yet, or a name where nobody listens yet.
func (g *Guest) dial(ctx context.Context, path string) (net.Conn, error) {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return conn, err
		}
		select {
		case <-g.done:
			return nil, fmt.Errorf("it ended: %s", g.Console.Tail(5))
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s: %w", path, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// qmp runs one command of the QEMU Machine Protocol.
func (g *Guest) qmp(ctx context.Context, command string, arguments map[string]any) error {
	_, err := g.ask(ctx, command, arguments)
	return err
}

// ask is qmp with what the command returns.
func (g *Guest) ask(ctx context.Context, command string, arguments map[string]any) (returned json.RawMessage, err error) {
	conn, err := g.dial(ctx, g.qmpPath())
	if err != nil {
		return nil, fmt.Errorf("controlling guest %s: %w", g.Name, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil {
		return nil, fmt.Errorf("controlling guest %s: reading the greeting: %w", g.Name, err)
	}
	for _, c := range []string{"qmp_capabilities", command} {
		request := map[string]any{"execute": c}
		if c == command && arguments != nil {
			request["arguments"] = arguments
		}
		if err := json.NewEncoder(conn).Encode(request); err != nil {
			return nil, err
		}
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return nil, fmt.Errorf("controlling guest %s: %s: %w", g.Name, c, err)
			}
			var reply struct {
				Return json.RawMessage `json:"return"`
				Error  *struct{ Desc string }
			}
			if err := json.Unmarshal([]byte(line), &reply); err != nil {
				return nil, err
			}
			if reply.Error != nil {
				return nil, fmt.Errorf("controlling guest %s: %s: %s", g.Name, c, reply.Error.Desc)
			}
			if reply.Return != nil {
				returned = reply.Return
				break
			}
		}
	}
	return returned, nil
}
