package httpboot

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/imagectl/imagectl/pxe/boot"
)

// Script is what iPXE runs for a machine. It uses only commands that Debian's
// build of 2019 has, and treats the others as optional.
//
// Nothing that a client sent stands in it except through query, and nothing that
// iPXE would expand or split: see plain.
func Script(server netip.AddrPort, m boot.Machine, a boot.Answer) string {
	var s strings.Builder
	s.WriteString("#!ipxe\n\n")
	name := a.Name
	if name == "" {
		name = "not in cluster.yaml"
	}
	for _, l := range []string{
		"",
		"imagectl: machine " + plain(name) + ", card " + plain(m.MAC.String()),
		"imagectl: " + plain(string(a.Action)) + " (" + plain(a.Code) + ")",
		"imagectl: " + plain(a.Reason),
		"",
	} {
		echo(&s, l)
	}
	if a.Action.Loads() {
		writeInstaller(&s, server, m, a)
		return s.String()
	}
	if a.Told {
		fmt.Fprintf(&s, "\necho imagectl: going on in %d s\nsleep %d\n", shown, shown)
	}
	writeLocal(&s, a.LocalBoot)
	return s.String()
}

// shown is how many seconds a reason stands on the screen of a machine whose firmware
// clears it right after: time to read it aloud to somebody.
const shown = 30

// attempts bounds one power cycle; after it the machine starts again from its
// firmware, which also heals a card in a bad state.
const attempts = 20

func writeInstaller(s *strings.Builder, server netip.AddrPort, m boot.Machine, a boot.Answer) {
	base := "http://" + server.String()
	file := func(b boot.Blob, stage boot.Stage) string {
		q := identity(m)
		q.Set("stage", string(stage))
		return fmt.Sprintf("%s/files/%s/%s?%s", base, b.SHA256, url.PathEscape(b.Name), q.Encode())
	}
	args := append([]string{}, a.Args...)
	for i := range a.Initrd {
		// Under UEFI the kernel finds its initrds by these names.
		args = append(args, fmt.Sprintf("initrd=initrd%d", i))
	}
	if !a.Configured {
		args = append(args, "ignition.config.url="+IgnitionURL(server, m))
	}

	fmt.Fprintf(s, "\nset try:int32 0\n:again\nimgfree\n")
	fmt.Fprintf(s, "kernel --name vmlinuz %s %s || goto failed\n", file(a.Kernel, boot.StageKernel), strings.Join(args, " "))
	for i, b := range a.Initrd {
		stage := boot.StageInitrd
		if a.Configured && i == len(a.Initrd)-1 {
			stage = boot.StageIgnition
		}
		fmt.Fprintf(s, "initrd --name initrd%d %s || goto failed\n", i, file(b, stage))
	}
	s.WriteString("boot || goto failed\n\n:failed\ninc try\n")
	fmt.Fprintf(s, "iseq ${try} %d && goto restart ||\n", attempts)
	fmt.Fprintf(s, "echo imagectl: loading failed, try ${try} of %d, again in 5 s\nsleep 5\ngoto again\n", attempts)
	s.WriteString("\n:restart\necho imagectl: giving up, restarting the machine\nsleep 5\nreboot || exit 1\n")
}

// writeLocal continues with the machine's own disk. What a firmware needs for
// that differs, so it is set per machine:
//
//   - exit: hand back to the firmware. The status must be an error: after a
//     success UEFI takes the boot for done and shows its menu instead of going on.
//   - sanboot: load the first BIOS disk from iPXE, for BIOSes that hang on exit.
//   - poweroff: for machines whose operators want them off until they are armed.
func writeLocal(s *strings.Builder, method string) {
	s.WriteString("\n")
	switch method {
	case "sanboot":
		echo(s, "imagectl: booting the first disk")
		s.WriteString("sanboot --no-describe --drive 0x80 || exit 1\n")
	case "poweroff":
		echo(s, "imagectl: switching off")
		s.WriteString("sleep 5\npoweroff || exit 1\n")
	default:
		echo(s, "imagectl: back to the firmware, which boots the next device")
		s.WriteString("exit 1\n")
	}
}

// Autoexec is for iPXE builds of the 2.0 era, which ask for autoexec.ipxe over
// TFTP before anything else: it leads to the same script.
func Autoexec(scriptURL string) string {
	return "#!ipxe\n\nset try:int32 0\n:again\ndhcp && chain --replace " + scriptURL + " ||\n" +
		fmt.Sprintf("inc try\niseq ${try} %d && exit 1 ||\n", attempts) +
		"echo imagectl: no script from " + scriptHost(scriptURL) + " yet, again in 5 s\nsleep 5\ngoto again\n"
}

func scriptHost(scriptURL string) string {
	_, rest, _ := strings.Cut(scriptURL, "//")
	host, _, _ := strings.Cut(rest, "/")
	return plain(host)
}

// IgnitionURL is where a machine's installer gets its first config.
func IgnitionURL(server netip.AddrPort, m boot.Machine) string {
	return "http://" + server.String() + "/ignition?" + identity(m).Encode()
}

// identity is a query that names the machine; Encode leaves nothing in it that
// iPXE, the kernel's command line or a URL would take for syntax.
func identity(m boot.Machine) url.Values {
	q := url.Values{}
	if m.MAC != nil {
		q.Set("mac", m.MAC.String())
	}
	if m.UUID != "" {
		q.Set("uuid", m.UUID)
	}
	if m.Serial != "" {
		q.Set("serial", m.Serial)
	}
	return q
}

func echo(s *strings.Builder, line string) {
	s.WriteString(strings.TrimRight("echo "+line, " ") + "\n")
}

// plain leaves of a text what iPXE prints as it is: it would expand ${}, join
// commands at ||, && and ;, and take quotes, backslashes and # for syntax.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune(" .,:-_/()=+@%", r):
			return r
		case r == ';':
			return ','
		case r == '"' || r == '\'':
			return -1
		}
		return '_'
	}, s)
}
