// Package lockdown is the list of doors into a Flatcar system and what closes
// each of them, as data: render writes it into every Ignition config, snippet
// refuses Butane files that would open a door again, and the scenario tries them.
//
// Flatcar enables most of them from /usr (sshd.socket is wanted by
// sockets.target there), where "enabled: false" has no effect: only a mask, a
// link to /dev/null in /etc, wins over /usr. Links on /etc/systemd/system-generators
// do the same for generators. Units that a release does not have are masked all
// the same; that costs nothing and holds for the next release.
package lockdown

// Door is one way into a system, closed.
type Door struct {
	// Name is a word for reports.
	Name string
	// Why says what it would let in.
	Why string
	// Masks are units that are linked to /dev/null.
	Masks []string
	// Units replace a unit of /usr by another text.
	Units []Unit
	// Links are symbolic links elsewhere in /etc.
	Links []Link
	// Files replace files of /etc.
	Files []File
	// KernelArgs are added to the command line.
	KernelArgs []string
}

// Unit is a systemd unit with its content.
type Unit struct {
	Name, Content string
}

// Link is a symbolic link.
type Link struct {
	Path, Target string
}

// File is a file owned by root.
type File struct {
	Path    string
	Mode    int
	Content string
}

// User is what becomes of a user that the base system brings.
type User struct {
	Name, Shell string
	// Groups are its supplementary groups, all of them.
	Groups []string
}

// Users lists the users of the base system that could log in. usermod replaces
// all supplementary groups, so core leaves wheel, docker and sudo.
func Users() []User {
	return []User{{Name: "core", Shell: "/sbin/nologin", Groups: []string{"systemd-journal"}}}
}

// KernelArgs lists what the doors add to every kernel command line.
func KernelArgs() []string {
	var args []string
	for _, d := range Doors() {
		args = append(args, d.KernelArgs...)
	}
	return args
}

func generator(name string) Link {
	return Link{Path: "/etc/systemd/system-generators/" + name, Target: "/dev/null"}
}

// instead is what stands in for a shell: the console can be read for a minute,
// then the machine tries again.
func instead(unit, what string) Unit {
	return Unit{Name: unit, Content: "[Unit]\n" +
		"Description=Reboot instead of " + what + "\n" +
		"DefaultDependencies=no\n" +
		"Conflicts=shutdown.target\n" +
		"Before=shutdown.target\n" +
		"\n" +
		"[Service]\n" +
		"Type=oneshot\n" +
		"StandardOutput=journal+console\n" +
		"ExecStart=/usr/bin/echo imagectl: no shell is offered here, the machine reboots in 60 seconds\n" +
		"ExecStart=/usr/bin/sleep 60\n" +
		"ExecStart=/usr/bin/systemctl --force reboot\n"}
}

// Doors lists every door of an installed node and of an installer.
func Doors() []Door {
	return []Door{
		{
			Name:  "ssh",
			Why:   "a shell over the network",
			Masks: []string{"sshd.socket", "sshd.service", "sshd@.service", "sshd-keygen.service", "ssh.socket", "ssh.service", "ssh@.service"},
		},
		{
			Name:       "ssh-generator",
			Why:        "systemd 256 makes SSH listen on vsock and on a unix socket inside virtual machines",
			Masks:      []string{"sshd-vsock.socket", "sshd-unix-local.socket", "sshd-unix-export.socket"},
			Links:      []Link{generator("systemd-ssh-generator")},
			KernelArgs: []string{"systemd.ssh_auto=no"},
		},
		{
			Name: "ssh-keys",
			Why:  "SSH keys from the kernel command line (sshkey=), from metadata services and from Ignition",
			Masks: []string{
				"sshkeys.service", "sshkeys@.service", "ssh-key-proc-cmdline.service",
				"update-ssh-keys-after-ignition.service", "coreos-metadata-sshkeys@.service",
			},
		},
		{
			Name:  "name-resolution",
			Why:   "systemd-resolved answers link-local name queries of the whole segment on port 5355 (RFC 4795) and 5353",
			Files: []File{{Path: "/etc/systemd/resolved.conf.d/50-imagectl.conf", Mode: 0o644, Content: "[Resolve]\nLLMNR=no\nMulticastDNS=no\n"}},
		},
		{
			Name: "cloud-config",
			Why:  "programs and users from a platform's user data, run as root",
			Masks: []string{
				"oem-cloudinit.service", "enable-oem-cloudinit.service",
				"system-cloudinit@.service", "system-config.target",
				"user-cloudinit@.service", "user-cloudinit@.path", "user-cloudinit-proc-cmdline.service",
				"user-config.target", "user-config-ovfenv.service", "user-configdrive.service", "user-configdrive.path", "user-configvirtfs.service",
				"media-configdrive.mount", "media-configvirtfs.mount",
			},
		},
		{
			Name:  "addons",
			Why:   "programs that a metadata service names, run as root",
			Masks: []string{"addon-run@.service", "addon-config@.service"},
		},
		{
			Name: "console-login",
			Why:  "a login prompt on a screen or a serial line",
			Masks: []string{
				"getty.target", "getty-pre.target", "getty@.service", "autovt@.service", "serial-getty@.service",
				"console-getty.service", "container-getty@.service", "systemd-firstboot.service",
			},
			Links: []Link{generator("systemd-getty-generator")},
		},
		{
			Name:  "autologin",
			Why:   "flatcar.autologin on the kernel command line logs core in, and makes emergency.service a root shell",
			Links: []Link{generator("flatcar-autologin-generator"), generator("coreos-autologin-generator")},
		},
		{
			Name:  "debug-shell",
			Why:   "systemd.debug_shell gives a root shell on tty9; systemd.run= runs any command; both from the kernel command line",
			Masks: []string{"debug-shell.service"},
			Links: []Link{generator("systemd-debug-generator"), generator("systemd-run-generator")},
		},
		{
			Name:  "emergency-shell",
			Why:   "a root shell when the boot fails or somebody asks for single user mode",
			Units: []Unit{instead("emergency.service", "an emergency shell"), instead("rescue.service", "a rescue shell")},
		},
		{
			Name:  "console-keys",
			Why:   "the magic SysRq key kills, dumps memory and reboots from a keyboard or a serial break",
			Files: []File{{Path: "/etc/sysctl.d/80-imagectl-console.conf", Mode: 0o644, Content: "kernel.sysrq = 0\n"}},
		},
		{
			Name:  "sudo",
			Why:   "the base system lets core become root without a password",
			Files: []File{{Path: "/etc/sudoers", Mode: 0o440, Content: "# imagectl: nobody becomes another user on a node. /etc/sudoers.d is not read.\nroot ALL=(ALL) ALL\n"}},
		},
		{
			Name:  "docker",
			Why:   "whoever may talk to Docker's socket is root; Kubernetes uses containerd",
			Masks: []string{"docker.socket", "docker.service", "early-docker.service", "early-docker.socket", "etcd-member.service", "flanneld.service"},
		},
		{
			Name: "credentials",
			Why:  "SMBIOS strings, fw_cfg keys and kernel arguments become system credentials, which add units, files, keys and passwords (tmpfiles.extra, systemd.extra-unit.*, ssh.authorized_keys.root)",
			// systemd(1); 252 knows it. The last one on a command line counts, so
			// cluster.yaml may not bring its own.
			KernelArgs: []string{"systemd.import_credentials=no"},
		},
		{
			Name:  "guest-agents",
			Why:   "a hypervisor's agent runs commands and reads files inside the guest",
			Masks: []string{"qemu-guest-agent.service", "vmtoolsd.service", "vmtoolsd-init.service", "waagent.service", "hv_fcopy_daemon.service"},
		},
		{
			Name: "updates",
			Why:  "another operating system than the reviewed one, and a reboot that nobody asked for",
			// Not masked: update-engine also marks the booted slot as good.
			Files: []File{{Path: "/etc/flatcar/update.conf", Mode: 0o644, Content: "SERVER=disabled\nREBOOT_STRATEGY=off\n"}},
			Masks: []string{"locksmithd.service"},
		},
	}
}
