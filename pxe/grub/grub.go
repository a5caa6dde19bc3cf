// Package grub is netbooting without iPXE: UEFI loads shim by PXE, shim loads GRUB, and
// GRUB loads what these configurations name, all by TFTP. The decision for a machine is
// the same as iPXE's (boot.Answer); only its form is another.
//
// It is made for GRUB 2.06 as Debian 12 signs it. That GRUB is one program with a fixed
// set of modules, and the module for HTTP is not among them; Secure Boot lets it load no
// others. It looks for grub.cfg below a directory that its builder chose, so the directory
// of a name counts for nothing, and finds out by that file who it runs on.
//
// What a configuration may use is GRUB's script language (GRUB manual, 6.1): single
// quotes keep everything between them as it is, and there is no && or ||.
package grub

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/httpboot"
)

// The names by TFTP. Shim has the second one built in.
const (
	ShimName    = "shimx64.efi"
	ProgramName = "grubx64.efi"
	ConfigName  = "grub.cfg"
)

const (
	// attempts bounds one power cycle, as iPXE's does; after it the machine starts again
	// from its firmware.
	attempts = 20
	// tree begins the names of what differs between machines.
	tree = "imagectl"
	// machineConfig is what a machine does.
	machineConfig = "machine.cfg"
	// noUUID stands for the UUID of a machine that shows none.
	noUUID = "none"
)

// Config is what every GRUB reads first: it asks the server at an address what the
// machine does that it runs on.
func Config(server netip.Addr) string {
	return "set uuid=" + noUUID + "\n" +
		// Field 8 of the table in which firmware says whose machine it is (SMBIOS, type 1).
		"smbios --type 1 --get-uuid 8 --set uuid\n" +
		repeated(fmt.Sprintf("source %s/%s/$net_default_mac/$uuid/%s\n", device(server), tree, machineConfig),
			"no configuration from "+server.String())
}

// Script is what GRUB does on a machine. The kernel goes on at server by HTTP.
func Script(server netip.AddrPort, m boot.Machine, a boot.Answer) string {
	var s strings.Builder
	name := a.Name
	if name == "" {
		name = "not in cluster.yaml"
	}
	say(&s, "machine "+name+", card "+m.MAC.String())
	say(&s, string(a.Action)+" ("+a.Code+")")
	say(&s, a.Reason)
	if a.Action.Loads() {
		s.WriteString(installer(server, m, a))
	} else {
		s.WriteString(local(a.LocalBoot))
	}
	return s.String()
}

func installer(server netip.AddrPort, m boot.Machine, a boot.Answer) string {
	file := func(b boot.Blob, stage boot.Stage) string {
		return quoted(fmt.Sprintf("%s/%s/%s/%s/%s/%s", device(server.Addr()), tree, m.MAC, stage, b.SHA256, b.Name))
	}
	kernel := []string{"linux", file(a.Kernel, boot.StageKernel)}
	for _, arg := range a.Args {
		kernel = append(kernel, quoted(arg))
	}
	if !a.Configured {
		kernel = append(kernel, quoted("ignition.config.url="+httpboot.IgnitionURL(server, m)))
	}
	initrd := []string{"initrd"}
	for i, b := range a.Initrd {
		stage := boot.StageInitrd
		if a.Configured && i == len(a.Initrd)-1 {
			stage = boot.StageIgnition
		}
		initrd = append(initrd, file(b, stage))
	}
	return repeated(fmt.Sprintf("if %s; then\nif %s; then\nboot\nfi\nfi\n", strings.Join(kernel, " "), strings.Join(initrd, " ")), "loading failed")
}

// local goes on with the machine's own disk. GRUB cannot hand back to the firmware as
// iPXE does: it ends with success, after which UEFI shows its menu. So it starts what
// the firmware would: the program of the EFI system partition, Flatcar's before others.
func local(method string) string {
	var s strings.Builder
	if method == "poweroff" {
		say(&s, "switching off")
		return s.String() + "sleep 5\nhalt\n"
	}
	const program = "/EFI/BOOT/BOOTX64.EFI"
	say(&s, "starting the boot program of the disk")
	for _, search := range []string{"--label EFI-SYSTEM", "--file " + program} {
		fmt.Fprintf(&s, "if search --no-floppy --set=disk %s; then\nif chainloader ($disk)%s; then\nboot\nfi\nfi\n", search, program)
	}
	say(&s, "no disk has one that starts, back to the firmware")
	return s.String() + "sleep 5\nexit\n"
}

// repeated does something until it does not come back, and restarts the machine when it
// always did.
func repeated(commands, failure string) string {
	var tries []string
	for i := range attempts {
		tries = append(tries, strconv.Itoa(i+1))
	}
	return fmt.Sprintf("for try in %s; do\n%secho imagectl: %s, try $try of %d, again in 5 s\nsleep 5\ndone\necho imagectl: giving up, restarting the machine\nsleep 5\nreboot\n",
		strings.Join(tries, " "), commands, failure, attempts)
}

func device(server netip.Addr) string { return "(tftp," + server.String() + ")" }

func say(s *strings.Builder, line string) { s.WriteString("echo " + quoted("imagectl: "+line) + "\n") }

// quoted leaves of a text what GRUB takes as it is, and writes it on one line.
func quoted(s string) string {
	return "'" + strings.Map(func(r rune) rune {
		switch {
		case r == '\'':
			return -1
		case r < ' ' || r > '~':
			return '_'
		}
		return r
	}, s) + "'"
}

// Request is what GRUB asks for by a name that is made for one machine.
type Request struct {
	Machine boot.Machine
	// Stage is StageScript for its configuration, or else says which file it is:
	// StageKernel, StageInitrd, or StageIgnition for what brings the first config. SHA256 and Name are the file's; Name is in lower case.
	Stage        boot.Stage
	SHA256, Name string
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Parse reads such a name. It is in lower case and begins with no slash.
func Parse(name string) (Request, bool) {
	parts := strings.Split(name, "/")
	if len(parts) < 4 || parts[0] != tree {
		return Request{}, false
	}
	mac, err := net.ParseMAC(parts[1])
	if err != nil || len(mac) != 6 {
		return Request{}, false
	}
	r := Request{Machine: boot.Machine{MAC: mac, Firmware: boot.UEFIx64}}
	if len(parts) == 4 && parts[3] == machineConfig {
		r.Stage = boot.StageScript
		if uuidForm.MatchString(parts[2]) {
			r.Machine.UUID = parts[2]
		}
		return r, true
	}
	r.Stage = boot.Stage(parts[2])
	if len(parts) != 5 || !slices.Contains([]boot.Stage{boot.StageKernel, boot.StageInitrd, boot.StageIgnition}, r.Stage) {
		return Request{}, false
	}
	r.SHA256, r.Name = parts[3], parts[4]
	return r, true
}

// Spare says that shim or GRUB asks for a name and does well without: revocations and
// certificates (shim 16.1), lists of modules (GRUB 2.06), fonts, translations.
func Spare(name string) bool {
	base := path.Base(name)
	for _, begin := range []string{"revocations", "shim_certificate", ConfigName + "-"} {
		if strings.HasPrefix(base, begin) {
			return true
		}
	}
	switch path.Ext(base) {
	case ".lst", ".mod", ".pf2", ".mo", ".gmo":
		return true
	}
	return false
}
