//go:build e2e

package netboot

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// grubYAML is what docs/netboot.md has in cluster.yaml, with Debian's programs.
const grubYAML = `  nbp: grub
  grub:
    shim: /usr/lib/shim/shimx64.efi.signed
    grub: /usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed
`

// microsofts are firmware variables with Secure Boot on, as machines are sold: shim is
// signed by Microsoft, GRUB and this kernel by who built that shim.
const microsofts = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"

// UEFI with Secure Boot loads the installer by shim and GRUB, and it enrols. That a
// changed kernel does not start is shown by pxe/server's TestUEFIBootsByGRUB.
func TestGRUBLoadsTheInstaller(t *testing.T) {
	ctx := scenario(t)
	m := machine("w1", "61")
	rack := newRack(ctx, t, grubYAML, m)
	imagectl := func(args ...string) string {
		t.Helper()
		out, err := rack.Imagectl(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		rack.Log("imagectl %s", strings.Join(args, " "))
		return out
	}
	imagectl("validate")
	imagectl("lock")
	imagectl("build", "--format", "pxe")
	if err := rack.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	imagectl("machines", "arm", m.Name)
	if err := os.WriteFile(rack.Disk(m), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	c := rack.Config(m)
	c.SecureVariables = microsofts
	// UEFI waits for 4 s for an offer, and this host may stand still for longer.
	for try := 1; ; try++ {
		if err := rack.Start(c); err != nil {
			t.Fatal(err)
		}
		rack.Log("power on")
		got, err := rack.Guests[m.Name].Console.Wait(ctx, 0, regexp.MustCompile(`(imagectl: install \(armed\))|BdsDxe: failed to load Boot[0-9A-F]{4} "UEFI PXEv4`))
		if err != nil {
			t.Fatal(err)
		}
		if got[1] != "" {
			break
		}
		if rack.Guests[m.Name].Stop(); try == 3 {
			t.Fatal("its firmware could not load shim")
		}
	}
	rack.Log("GRUB has its configuration")
	// The initrd comes in blocks of 1,024 bytes, one after the other.
	for _, expr := range []string{`Command line: .*flatcar\.first_boot=1`, `[Ss]ecure boot enabled`} {
		if _, err := rack.Guests[m.Name].Console.Wait(ctx, 0, regexp.MustCompile(expr)); err != nil {
			t.Fatal(err)
		}
	}
	rack.Log("the kernel started, with Secure Boot")
	if err := rack.Approve(ctx, m); err != nil {
		t.Fatal(err)
	}
	if err := rack.WaitState(ctx, m.Name, "installing", "failed"); err != nil {
		t.Fatal(err)
	}
	rack.Log("enrolled, and told to install")
	why := imagectl("why", m.MAC)
	for _, want := range []string{"boot program shimx64.efi", "fetches shimx64.efi by TFTP", "fetches grubx64.efi by TFTP", "GRUB: install", "fetches demo-pxe.vmlinuz by TFTP",
		"fetches demo-pxe.cpio.gz by TFTP", "linux '(tftp,10.77.0.1)/imagectl/"} {
		if !strings.Contains(why, want) {
			t.Errorf("imagectl why does not say %q:\n%s", want, why)
		}
	}
}
