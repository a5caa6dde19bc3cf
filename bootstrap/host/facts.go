package host

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// Facts is what the machine says about itself. Unknown values are empty.
type Facts struct {
	Interfaces []Interface
	// UUID and Serial are SMBIOS's; UUID in lower case.
	UUID, Serial          string
	Manufacturer, Product string
	CPUs                  int
	// MemoryBytes is what the kernel has to give, less than what is plugged in.
	MemoryBytes uint64
	Disks       []Disk
	// Firmware is "uefi" or "bios".
	Firmware string
	// Kernel is the release that uname prints.
	Kernel string
	// OS is os-release's PRETTY_NAME.
	OS string
	// BootID is new at every boot.
	BootID string
}

// Interface is a network interface.
type Interface struct {
	Name string
	// MAC is in lower case with colons.
	MAC string
	// Addresses are in CIDR form, without link-local ones; of a card, those of its bond and
	// of VLANs too.
	Addresses []string
	Up        bool
}

// Disk is a whole disk.
type Disk struct {
	// Path is the kernel's, such as /dev/vda.
	Path               string
	Size               int64
	Serial, Model, WWN string
	Rotational         bool
	Removable          bool
	// InUse says by what, such as "mounted at /usr"; empty when it is free.
	InUse string
}

// Facts reads them afresh. What cannot be read stays empty: a machine with half
// a BIOS must still be able to say who it is.
func (h *Host) Facts() Facts {
	f := Facts{
		UUID:         strings.ToLower(h.line("/sys/class/dmi/id/product_uuid")),
		Serial:       h.line("/sys/class/dmi/id/product_serial"),
		Manufacturer: h.line("/sys/class/dmi/id/sys_vendor"),
		Product:      h.line("/sys/class/dmi/id/product_name"),
		CPUs:         runtime.NumCPU(),
		MemoryBytes:  h.memory(),
		Disks:        h.disks(),
		Interfaces:   h.interfaces(),
		Firmware:     "bios",
		Kernel:       h.line("/proc/sys/kernel/osrelease"),
		OS:           h.osRelease("PRETTY_NAME"),
		BootID:       h.line("/proc/sys/kernel/random/boot_id"),
	}
	if ok, err := h.Exists("/sys/firmware/efi"); err == nil && ok {
		f.Firmware = "uefi"
	}
	return f
}

// line returns a one-line file without the space around it. What is no UTF-8 in it
// becomes question marks: firmware has bytes of its own, and protobuf refuses them.
func (h *Host) line(name string) string {
	b, err := h.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(strings.TrimSpace(string(b)), "?")
}

func (h *Host) memory() uint64 {
	b, err := h.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) >= 2 && f[0] == "MemTotal:" {
			kib, err := strconv.ParseUint(f[1], 10, 54)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

func (h *Host) osRelease(key string) string {
	b, err := h.ReadFile("/etc/os-release")
	if err != nil {
		if b, err = h.ReadFile("/usr/lib/os-release"); err != nil {
			return ""
		}
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), "="); ok && k == key {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

// interfaces returns the ones made of hardware. Where there is none (network
// namespaces), all but loopback: a bridge of the container network is never
// mistaken for a port of the machine.
func (h *Host) interfaces() []Interface {
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var hard, soft []Interface
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 || len(i.HardwareAddr) == 0 {
			continue
		}
		n := Interface{Name: i.Name, MAC: h.ownMAC(i.Name, i.HardwareAddr).String(), Up: i.Flags&net.FlagUp != 0}
		addrs, err := i.Addrs()
		if err != nil {
			addrs = nil
		}
		for _, a := range addrs {
			if p, ok := a.(*net.IPNet); ok && !p.IP.IsLinkLocalUnicast() {
				n.Addresses = append(n.Addresses, p.String())
			}
		}
		if ok, err := h.Exists("/sys/class/net/" + i.Name + "/device"); err == nil && ok {
			hard = append(hard, n)
		} else {
			soft = append(soft, n)
		}
	}
	if len(hard) == 0 {
		return soft
	}
	for _, s := range soft {
		for i := range hard {
			if h.standsOn(s.Name, hard[i].Name, 2) {
				hard[i].Addresses = append(hard[i].Addresses, s.Addresses...)
			}
		}
	}
	return hard
}

// ownMAC is the address that a card was made with. In a bond all have the bond's, and a
// machine is known by their own.
func (h *Host) ownMAC(name string, now net.HardwareAddr) net.HardwareAddr {
	own, err := net.ParseMAC(h.line("/sys/class/net/" + name + "/bonding_slave/perm_hwaddr"))
	if err != nil {
		return now
	}
	return own
}

// standsOn says whether a link is a bond of this card, or a VLAN on it or on its bond; so
// deep a node's network goes. What Kubernetes' networks put on a card is not meant.
func (h *Host) standsOn(link, card string, depth int) bool {
	kind := false
	for _, sign := range []string{"/sys/class/net/" + link + "/bonding", "/proc/net/vlan/" + link} {
		if ok, err := h.Exists(sign); err == nil && ok {
			kind = true
		}
	}
	below, err := h.Glob("/sys/class/net/" + link + "/lower_*")
	if !kind || err != nil || depth == 0 {
		return false
	}
	for _, l := range below {
		_, name, _ := strings.Cut(filepath.Base(l), "lower_")
		if name == card || h.standsOn(name, card, depth-1) {
			return true
		}
	}
	return false
}

func (h *Host) disks() []Disk {
	dirs, err := h.Glob("/sys/block/*")
	if err != nil {
		return nil
	}
	mounts := h.mounts()
	var out []Disk
	for _, dir := range dirs {
		name := filepath.Base(dir)
		// Only what has a device behind it is a disk: not loop, ram, zram, dm, md.
		if ok, err := h.Exists(dir + "/device"); err != nil || !ok || strings.HasPrefix(name, "sr") || strings.HasPrefix(name, "fd") {
			continue
		}
		// The kernel counts in units of 512 bytes whatever the disk's sector size
		// (Documentation/ABI/stable/sysfs-block).
		sectors, err := strconv.ParseInt(h.line(dir+"/size"), 10, 54)
		if err != nil || sectors == 0 {
			continue
		}
		out = append(out, Disk{
			// The kernel writes "!" where the device's name has a slash.
			Path:       "/dev/" + strings.ReplaceAll(name, "!", "/"),
			Size:       sectors * 512,
			Serial:     h.first(dir+"/serial", dir+"/device/serial", dir+"/device/vpd_pg80"),
			Model:      h.first(dir + "/device/model"),
			WWN:        h.first(dir+"/wwid", dir+"/device/wwid"),
			Rotational: h.line(dir+"/queue/rotational") == "1",
			Removable:  h.line(dir+"/removable") == "1",
			InUse:      h.inUse(dir, name, mounts),
		})
	}
	slices.SortFunc(out, func(a, b Disk) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// first returns the first file that has something printable in it. SCSI's page
// 0x80 is binary: four bytes of header, then the serial number.
func (h *Host) first(names ...string) string {
	for _, n := range names {
		b, err := h.ReadFile(n)
		if err != nil {
			continue
		}
		if strings.HasSuffix(n, "/vpd_pg80") {
			if len(b) < 4 {
				continue
			}
			b = b[4:]
		}
		s := strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return -1
			}
			return r
		}, string(b)))
		if s != "" {
			return s
		}
	}
	return ""
}

// mounts maps a device name such as vda3 to where it is mounted.
func (h *Host) mounts() map[string]string {
	b, err := h.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil
	}
	out := make(map[string]string)
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) >= 2 && strings.HasPrefix(f[0], "/dev/") {
			if dev := filepath.Base(f[0]); out[dev] == "" {
				out[dev] = f[1]
			}
		}
	}
	return out
}

// inUse looks at the disk and its partitions for mounts and for holders such as
// a device mapper on top.
func (h *Host) inUse(dir, name string, mounts map[string]string) string {
	parts, err := h.Glob(dir + "/" + name + "*")
	if err != nil {
		return "its partitions cannot be listed"
	}
	for _, d := range append([]string{dir}, parts...) {
		if at := mounts[filepath.Base(d)]; at != "" {
			return fmt.Sprintf("%s is mounted at %s", filepath.Base(d), at)
		}
		if held, err := h.Glob(d + "/holders/*"); err == nil && len(held) > 0 {
			return fmt.Sprintf("%s is used by %s", filepath.Base(d), filepath.Base(held[0]))
		}
	}
	return ""
}
