//go:build root

package server_test

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
	"github.com/imagectl/imagectl/test/vm"
)

// microsofts are firmware variables with Secure Boot on, as machines are sold: shim is
// signed by Microsoft, GRUB and this kernel by those who built that shim.
const microsofts = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"

// changeKernel makes the kernel one with a bit changed.
func changeKernel(t *testing.T) {
	content := kernelContent(t)
	content[len(content)/2] ^= 1
	dir := t.TempDir()
	t.Setenv(releaseVariable, dir)
	if err := os.MkdirAll(filepath.Dir(kernelPath(dir)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kernelPath(dir), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// byGRUB makes the rack one whose machines load Debian's shim and GRUB.
func byGRUB(t *testing.T) func(*listen.Config, *server.Config) {
	return func(_ *listen.Config, s *server.Config) {
		s.Shim, s.GRUB = readFile(t, "/usr/lib/shim/shimx64.efi.signed"), readFile(t, "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed")
	}
}

// OVMF loads shim, that GRUB, and that what the server says.
func TestUEFIBootsByGRUB(t *testing.T) {
	for i, c := range []struct{ name, vars, expr string }{
		{"without Secure Boot", "", "Linux version"},
		{"with Secure Boot", microsofts, "[Ss]ecure boot enabled"},
		{"with Secure Boot and a changed kernel", microsofts, "imagectl: loading failed, try 1 of 20"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, changed := 71+i, i == 2
			if changed {
				changeKernel(t)
			}
			r := startRack(t, nil, nil, byGRUB(t))
			start := time.Now()
			g, _ := guest(t, vm.OVMF, n, func(g *vm.Config) { g.SecureVariables = c.vars })
			g = r.waitScript(t, g, n, `imagectl: discover \(unknown-machine\)`)
			t.Logf("script after %s", time.Since(start))
			if changed {
				wait(t, g, "bad shim signature")
			} else {
				starts(t, g)
			}
			wait(t, g, c.expr)
			g.Stop()
			if lines := strings.Join(g.Console.Tail(1000), "\n"); changed && strings.Contains(lines, "Linux version") {
				t.Errorf("the changed kernel started:\n%s", lines)
			}
			got := stages(r.Events(mac(n)))
			for _, want := range []string{"fetches shimx64.efi by TFTP", "fetches grubx64.efi by TFTP", "script: GRUB: discover", "kernel: fetches vmlinuz by TFTP"} {
				if !strings.Contains(got, want) {
					t.Errorf("no event %q in:\n%s", want, got)
				}
			}
			for _, e := range r.Events(mac(n)) {
				if e.Refusal.Code != "" {
					t.Errorf("refused: %s", e.Detail)
				}
			}
		})
	}
	t.Run("a machine that is not armed", func(t *testing.T) {
		const n = 74
		r := startRack(t, []plan.Machine{{Name: "node1", MACs: []net.HardwareAddr{mac(n)}, Address: netip.MustParseAddr("10.98.0.11"), LocalBoot: "exit", NBP: plan.NBPGRUB}},
			states{"node1": machine.Approved}, byGRUB(t))
		g, before := guest(t, vm.OVMF, n)
		g = r.waitScript(t, g, n, "imagectl: it is not armed, its disk stays as it is")
		start := time.Now()
		wait(t, g, vm.Sentinel)
		t.Logf("disk %s after the script", time.Since(start))
		g.Stop()
		if after := digest(t, g.Disk); !bytes.Equal(before, after) {
			t.Error("the disk has changed")
		}
		for _, line := range g.Console.Tail(1000) {
			if strings.Contains(line, "BdsDxe: loading") && !strings.Contains(line, "PXEv4") {
				t.Errorf("the firmware went on, and not GRUB: %s", line)
			}
		}
	})
}
