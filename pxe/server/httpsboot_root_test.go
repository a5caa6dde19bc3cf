//go:build root

package server_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
	"github.com/imagectl/imagectl/test/vm"
)

// OVMF loads iPXE by HTTPS, with the CA that its owner has given to it.
func TestUEFIBootsByHTTPS(t *testing.T) {
	const n, port = 32, 8444
	certificates, err := vm.NewBootCertificates(netip.MustParseAddr(serverAddr), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	tls, err := httpboot.TLS(certificates.Server, certificates.Key, netip.MustParseAddr(serverAddr), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := startRack(t, nil, nil, func(l *listen.Config, s *server.Config) { l.BootTLSPort, s.BootTLSPort, s.BootTLS = port, port, tls })
	g, _ := guest(t, vm.OVMF, n, byHTTP, func(c *vm.Config) {
		c.FirmwareKey, c.FirmwareData = vm.FirmwareCAs, filepath.Join(t.TempDir(), "cacerts")
		if err := os.WriteFile(c.FirmwareData, certificates.CA, 0o644); err != nil {
			t.Fatal(err)
		}
	})
	g = bootsByHTTP(t, r, g, n, "UEFI HTTPS boot")
	wait(t, g, `URI: https://10.98.0.1:8444/boot/52-54-00-98-00-20/snponly.efi`)
}
