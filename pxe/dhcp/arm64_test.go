package dhcp

import (
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
)

// Machines with arm64 get programs of their own where cluster.yaml names some, and never
// those of another processor: with x86-64's they would hang, or reset for ever.
func TestArm64GetsItsOwnPrograms(t *testing.T) {
	t.Parallel()
	const program = "snponly-arm64.efi"
	httpBoot := []modifier{opt(60, []byte("HTTPClient:Arch:00019:UNDI:003001")...), opt(93, 0, 19)}
	iPXE := []modifier{pxe(11), opt(77, []byte("iPXE")...)}
	for _, c := range []struct {
		name    string
		mods    []modifier
		with    bool
		program boot.Program
		proxy   bool
		want    string
	}{
		{"PXE", []modifier{pxe(11)}, true, boot.IPXE, false, program},
		{"PXE, and cluster.yaml wants GRUB on x86-64", []modifier{pxe(11)}, true, boot.GRUB, false, program},
		{"PXE beside another server", []modifier{pxe(11)}, true, boot.IPXE, true, program},
		{"the vendor class alone says it", []modifier{opt(60, []byte("PXEClient:Arch:00011:UNDI:003016")...)}, true, boot.IPXE, false, program},
		{"HTTP boot", httpBoot, true, boot.IPXE, false, "http://10.0.0.1:8080/boot/52-54-00-00-00-01/" + program},
		{"HTTP boot beside another server", httpBoot, true, boot.IPXE, true, "http://10.0.0.1:8080/boot/52-54-00-00-00-01/" + program},
		{"iPXE", iPXE, true, boot.IPXE, false, files.Script},
		{"iPXE in the card's ROM needs no program", iPXE, false, boot.IPXE, false, files.Script},
		{"PXE without a program", []modifier{pxe(11)}, false, boot.IPXE, false, "arch-unsupported"},
		{"PXE without a program, beside another server", []modifier{pxe(11)}, false, boot.IPXE, true, "arch-unsupported"},
		{"HTTP boot without a program", httpBoot, false, boot.IPXE, false, "arch-unsupported"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			if c.proxy {
				l = newProxyLab(t)
			}
			l.src.program = c.program
			if c.with {
				l.files.UEFIArm64, l.files.Programs = program, map[boot.Firmware]string{boot.UEFIx64: "snponly.efi", boot.UEFIarm64: program}
			}
			d := l.send(discover(node1, c.mods...))
			got := d.Code
			if d.Reply != nil {
				got = strings.TrimRight(string(d.Reply.Options.Get(dhcpv4.OptionBootfileName)), "\x00")
			}
			if got != c.want {
				t.Errorf("got %q (%s), want %q", got, d.Reason, c.want)
			}
			if d.Reply == nil && !d.Refused {
				t.Errorf("it is not told that somebody has to act: %s", d.Reason)
			}
			if l.shown.Firmware != boot.UEFIarm64 {
				t.Errorf("the source was asked about a machine with %q", l.shown.Firmware)
			}
		})
	}
}
