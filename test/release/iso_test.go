//go:build vm

package release_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/medium"
	"github.com/imagectl/imagectl/images/uki"
	"github.com/imagectl/imagectl/test/vm"
)

// TestMediumBootsEveryWay boots the installer's ISO from a CD drive and as a USB
// stick, by BIOS and by UEFI, until Ignition has fetched what the OEM directory on
// the medium points to.
func TestMediumBootsEveryWay(t *testing.T) {
	t.Parallel()
	cfg := config(t, "from-server", nil)
	asked := make(chan string, 16)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		_, _ = fmt.Fprint(w, cfg) // a guest that went away shows on its console
	}))
	defer server.Close()
	url := strings.Replace(server.URL, "127.0.0.1", "10.0.2.2", 1)
	image := writeMedium(t, `{"ignition":{"version":"3.4.0","config":{"replace":{"source":"`+url+`/ignition"}}}}`, nil)

	cd := []string{"-drive", "if=none,id=cd,format=raw,readonly=on,file=" + image, "-device", "ide-cd,drive=cd,bootindex=1"}
	usb := []string{"-drive", "if=none,id=usb,format=raw,snapshot=on,file=" + image, "-device", "qemu-xhci", "-device", "usb-storage,drive=usb,bootindex=1"}
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"BIOS from a CD", cd},
		{"UEFI from a CD", join(ovmf(t), cd)},
		{"BIOS from a USB stick", usb},
		{"UEFI from a USB stick", join(ovmf(t), usb)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			nic, _ := network()
			g := boot(t, join(tt.args, nic)...)
			line := g.wait(`Command line: (.*)`)[1]
			t.Logf("the kernel started after %s", time.Since(began).Round(time.Second))
			if args := strings.Join(mediumArgs(), " "); !strings.Contains(strings.TrimSpace(line)+" ", args+" ") {
				t.Errorf("command line %q is without %q", line, args)
			}
			g.wait(`network boot: /usr from usr.squashfs in the initramfs`)
			g.wait(`Ignition: platform \S+, configuration from user.ign`)
			g.wait(`Ignition: fetch done`)
			want(t, "path asked for", <-asked, "/ignition")
			t.Logf("Ignition had its configuration after %s", time.Since(began).Round(time.Second))
		})
	}
}

// mediumArgs returns the kernel arguments that the medium is made with.
func mediumArgs() []string {
	return append([]string{"flatcar.first_boot=1", "console=tty0"}, vm.KernelArgs()...)
}

func writeMedium(t *testing.T, configIgn string, signer uki.Signer) string {
	t.Helper()
	file := func(name string) fstree.Content {
		c, err := fstree.FromFile(released(t, name))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	read := func(path, aptPackage string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("%v: apt-get install -y %s", err, aptPackage)
		}
		return b
	}
	oem := new(fstree.Tree)
	if err := oem.AddFile("config.ign", 0o644, fstree.Bytes(configIgn)); err != nil {
		t.Fatal(err)
	}
	m, err := medium.New(medium.Options{
		Name: "imagectl installer of test", Label: "IMAGECTL", Arch: "amd64", OEM: oem,
		Kernel: file("flatcar_production_pxe.vmlinuz"), Initrd: file("flatcar_production_pxe_image.cpio.gz"),
		Args: mediumArgs(),
		Stub: read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub", "systemd-boot-efi"), Signer: signer,
		BIOS: &medium.BIOS{
			Loader: read("/usr/lib/ISOLINUX/isolinux.bin", "isolinux"), MBR: read("/usr/lib/ISOLINUX/isohdpfx.bin", "isolinux"),
			Module: read("/usr/lib/syslinux/modules/bios/ldlinux.c32", "syslinux-common"),
		},
		ModTime: time.Date(2025, 3, 4, 5, 6, 8, 0, time.UTC),
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "medium.iso")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := m.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	return path
}
