//go:build root && netboot

package server_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"net"
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

// OVMF loads iPXE by HTTPS, with the CA that its owner has given to it: make
// netboot-test.
func TestUEFIBootsByHTTPS(t *testing.T) {
	const n, port = 32, 8444
	ca, certificate, key := bootCertificate(t)
	tls, err := httpboot.TLS(certificate, key, netip.MustParseAddr(serverAddr), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := startRack(t, nil, nil, func(l *listen.Config, s *server.Config) { l.BootTLSPort, s.BootTLSPort, s.BootTLS = port, port, tls })
	g, _ := guest(t, vm.OVMF, n, byHTTP, func(c *vm.Config) {
		c.FirmwareKey, c.FirmwareData = "etc/edk2/https/cacerts", filepath.Join(t.TempDir(), "cacerts")
		if err := os.WriteFile(c.FirmwareData, signatureList(ca), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	g = bootsByHTTP(t, r, g, n)
	wait(t, g, `URI: https://10.98.0.1:8444/boot/52-54-00-98-00-20/snponly.efi`)
}

// bootCertificate is a CA in DER form, and a certificate with its key for the server.
func bootCertificate(t *testing.T) (ca, certificate, key []byte) {
	t.Helper()
	var keys [2]*rsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			t.Fatal(err)
		}
	}
	// The guest's clock is the host's, and firmware does not look at it anyway.
	from, to := time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test boot CA"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca, err := x509.CreateCertificate(rand.Reader, issuer, issuer, keys[0].Public(), keys[0])
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "boot server"}, NotBefore: from, NotAfter: to,
		IPAddresses: []net.IP{net.ParseIP(serverAddr)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, issuer, keys[1].Public(), keys[0])
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(keys[1])
	if err != nil {
		t.Fatal(err)
	}
	return ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// signatureList is how OVMF takes a CA: EFI_SIGNATURE_LIST of UEFI 2.10, 32.4.1, of the
// type EFI_CERT_X509_GUID, with an owner of zeros.
func signatureList(der []byte) []byte {
	const x509Kind = "\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72"
	b := []byte(x509Kind)
	for _, n := range []int{28 + 16 + len(der), 0, 16 + len(der)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return append(append(b, make([]byte, 16)...), der...)
}
