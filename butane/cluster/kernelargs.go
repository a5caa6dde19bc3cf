package cluster

import (
	"regexp"
	"strings"
)

// kernelArg is what survives GRUB's double quotes, the sed of Flatcar's
// ignition-kargs-helper and an iPXE script unchanged: no blanks, quotes, dollar
// signs, backslashes, braces or semicolons.
var kernelArg = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.,:/=+@%~-]*$`)

// commandLine is the longest that Flatcar's GRUB configuration puts before
// linux_append on amd64, with verity's hash behind it.
const commandLine = "BOOT_IMAGE=/flatcar/vmlinuz-a mount.usr=/dev/mapper/usr verity.usr=PARTUUID=7130c94a-213a-4e5a-8e26-6cce9662f132 " +
	"rootflags=rw mount.usrflags=ro consoleblank=0 root=LABEL=ROOT console=ttyS0,115200n8 console=tty0 " +
	"flatcar.first_boot=detected flatcar.randomize_disk_guid=00000000-0000-0000-0000-000000000001 flatcar.oem.id= " +
	"verity.usrhash=0000000000000000000000000000000000000000000000000000000000000000 systemd.ssh_auto=no systemd.import_credentials=no "

// maxCommandLine is COMMAND_LINE_SIZE of x86 without its final NUL.
const maxCommandLine = 2047

// forbiddenArg is a kernel argument that opens a door or takes away something
// that imagectl relies on.
type forbiddenArg struct {
	// name matches an argument up to its "="; a final * matches any rest.
	name, why string
}

func forbiddenArgs() []forbiddenArg {
	const login = "logs somebody in without a key"
	const shell = "opens a shell without a key"
	const other = "starts another program or target than the reviewed ones"
	const ours = "is set by imagectl"
	const platform = "says which platform an image is for, and ours name none: one image is for all of them"
	return []forbiddenArg{
		{"flatcar.autologin*", login}, {"coreos.autologin*", login},
		{"sshkey", "adds a key for SSH, and nobody logs in to a node"},
		{"rd.break", shell}, {"rd.shell", shell}, {"rd.earlyshell", shell}, {"rd.systemd.debug_shell*", shell},
		{"systemd.debug_shell*", shell}, {"systemd.debug-shell*", shell}, {"rd.systemd.debug-shell*", shell},
		{"emergency", shell}, {"rescue", shell}, {"rd.emergency", shell}, {"rd.rescue", shell}, {"-b", shell},
		{"single", shell}, {"s", shell}, {"S", shell}, {"1", shell}, {"2", other}, {"3", other}, {"4", other}, {"5", other},
		{"init", other}, {"rdinit", other}, {"systemd.unit", other}, {"rd.systemd.unit", other}, {"systemd.run*", other}, {"systemd.wants", other},
		{"systemd.mask", "could mask what keeps the node closed"}, {"rd.systemd.mask", "could mask what keeps the node closed"},
		{"systemd.ssh_auto", "is set to no by imagectl"}, {"systemd.ssh_listen", "makes SSH listen"},
		{"systemd.getty_auto", "brings login prompts back"}, {"systemd.set_credential*", "can carry a password or a key"}, {"systemd.import_credentials", "is set to no by imagectl"}, {"rd.systemd.import_credentials", "is set to no by imagectl"},
		{"systemd.volatile", "hides the installed root"}, {"systemd.machine_id", "makes machines share an identity"},
		{"ignition.config.url", ours}, {"flatcar.config.url", ours}, {"coreos.config.url", ours},
		{"ignition.platform.id", platform}, {"flatcar.oem.id", platform}, {"coreos.oem.id", platform},
		{"flatcar.first_boot", "makes Ignition run again on every boot"}, {"coreos.first_boot", "makes Ignition run again on every boot"}, {"ignition.firstboot", "makes Ignition run again on every boot"},
		{"root", ours}, {"rootflags", ours}, {"rootfstype", ours}, {"mount.usr", ours}, {"mount.usrflags", ours}, {"usr", ours}, {"initrd", ours},
		{"verity.usr*", "would replace the verified /usr"}, {"usrhash", "would replace the verified /usr"}, {"systemd.verity*", "would replace the verified /usr"},
		{"cloud-config-url", "runs a program from the network"},
	}
}

// kernelArgs checks arguments for the installed system or for the installer.
func (c *checker) kernelArgs(list []rawString) []string {
	var out []string
	total := len(commandLine)
	for _, f := range list {
		if !f.Set {
			continue
		}
		out = append(out, f.V)
		if strings.ContainsAny(f.V, " \t") {
			c.add(f.Pos, f.Path, "- "+strings.Join(strings.Fields(f.V), "\n- "), "%q is more than one argument: write one per line", f.V)
			continue
		}
		if !kernelArg.MatchString(f.V) && f.V != "-b" {
			c.add(f.Pos, f.Path, "", "%q has a character that does not survive set linux_append=\"…\" in GRUB: want letters, digits and _ . , : / = + @ %% ~ -", f.V)
			continue
		}
		// The kernel takes - and _ for the same in parameter names.
		name, _, _ := strings.Cut(f.V, "=")
		for _, bad := range forbiddenArgs() {
			prefix, any := strings.CutSuffix(bad.name, "*")
			if same(name, prefix) || (any && strings.HasPrefix(dashes(name), dashes(prefix))) {
				c.add(f.Pos, f.Path, "remove it", "kernel argument %s is not accepted: it %s", name, bad.why)
				break
			}
		}
		if total += len(f.V) + 1; total > maxCommandLine {
			c.add(f.Pos, f.Path, "", "with this argument the kernel command line has %d characters with Flatcar's own; the kernel reads %d", total, maxCommandLine)
			break
		}
	}
	return out
}

func dashes(s string) string { return strings.ReplaceAll(s, "-", "_") }

func same(a, b string) bool { return a == b || (len(a) > 1 && dashes(a) == dashes(b)) }
