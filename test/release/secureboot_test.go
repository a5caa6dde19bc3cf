//go:build vm

package release_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/secureboot"
	"github.com/imagectl/imagectl/test/vm"
)

// TestSecureBootStartsOnlyWhatIsSigned gives a machine's firmware keys of our own by
// our enrolment files, boots a signed installer's ISO, and another that differs in
// one byte.
func TestSecureBootStartsOnlyWhatIsSigned(t *testing.T) {
	t.Parallel()
	began := time.Now()
	signers := map[string]*secureboot.Signer{}
	for _, name := range []string{"PK", "KEK", "db"} {
		p, err := secureboot.Generate("test "+name, began, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := secureboot.ParseCertificate(p.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if signers[name], err = secureboot.NewSigner(p.Key, cert); err != nil {
			t.Fatal(err)
		}
	}
	vars := enrolled(t, secureboot.Keys{PK: signers["PK"], KEK: signers["KEK"], DB: []*x509.Certificate{signers["db"].Certificate()}})
	t.Logf("the firmware had its keys after %s", time.Since(began).Round(time.Second))

	const line = `{"ignition":{"version":"3.4.0"}}`
	image := writeMedium(t, line, signers["db"])
	cd := []string{"-drive", "if=none,id=cd,format=raw,readonly=on,file=" + image, "-device", "ide-cd,drive=cd,bootindex=1"}
	t.Run("signed", func(t *testing.T) {
		began := time.Now()
		g := boot(t, join(secureFirmware(t, vars), cd)...)
		g.wait(`Command line: .*flatcar.first_boot=1`)
		t.Logf("the kernel started after %s", time.Since(began).Round(time.Second))
		g.wait(`[Ss]ecure boot enabled`)
		// With Secure Boot the kernel loads only modules that it knows the signer of.
		g.wait(`network boot: /usr from usr.squashfs in the initramfs`)
	})
	t.Run("one byte of the kernel changed", func(t *testing.T) {
		kernel, err := os.ReadFile(released(t, "flatcar_production_pxe.vmlinuz"))
		if err != nil {
			t.Fatal(err)
		}
		bad, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		middle := kernel[len(kernel)/2:][:4096]
		if n := bytes.Count(bad, middle); n != 1 {
			t.Fatalf("the kernel is on the ISO %d times", n)
		}
		bad[bytes.Index(bad, middle)] ^= 1
		if err := os.WriteFile(image, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		g := boot(t, join(secureFirmware(t, vars), cd)...)
		g.wait(`failed to load .*: Access Denied`)
		if g.printed("Linux version") {
			t.Errorf("the kernel started:\n%s", g.tail())
		}
	})
}

// secureFirmware is OVMF with Secure Boot and a copy of those variables. It keeps
// them where only code in system management mode writes.
func secureFirmware(t *testing.T, vars string) []string {
	t.Helper()
	own := filepath.Join(t.TempDir(), "vars.fd")
	run(t, "cp", vars, own)
	return []string{
		"-machine", "smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
		"-drive", "if=pflash,format=raw,unit=1,file=" + own,
	}
}

// enrolled is the file of variables of a firmware that took our enrolment files
// from a stick with systemd-boot, as docs/images.md has it.
func enrolled(t *testing.T, keys secureboot.Keys) string {
	t.Helper()
	files, err := keys.Enrolment(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	loader, err := os.ReadFile("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
	if err != nil {
		t.Fatalf("%v: apt-get install -y systemd-boot-efi", err)
	}
	stick := map[string][]byte{"EFI/BOOT/BOOTX64.EFI": loader, "loader/loader.conf": []byte("secure-boot-enroll force\n")}
	lists := map[string][]byte{}
	for _, f := range files {
		lists[f.Name] = f.Content
		if filepath.Ext(f.Name) == ".auth" {
			stick["loader/keys/auto/"+f.Name] = f.Content
		}
	}
	path := filepath.Join(t.TempDir(), "stick")
	run(t, "mkfs.fat", "-C", path, "65536")
	run(t, "mmd", "-i", path, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/keys", "::/loader/keys/auto")
	for name, content := range stick {
		file := filepath.Join(t.TempDir(), "file")
		write(t, file, string(content))
		run(t, "mcopy", "-i", path, file, "::/"+name)
	}
	firmware := secureFirmware(t, "/usr/share/OVMF/OVMF_VARS_4M.fd")
	g := boot(t, join(firmware, []string{"-no-reboot", "-drive", "if=none,id=stick,format=raw,readonly=on,file=" + path, "-device", "virtio-blk-pci,drive=stick,bootindex=1"})...)
	g.wait(`Enrolling secure boot keys`)
	select {
	case <-g.done: // instead of the restart with which systemd-boot ends
	case <-time.After(bootLimit):
		t.Fatalf("the firmware was not restarted with its keys:\n%s", g.tail())
	}
	vars := firmware[len(firmware)-1][len("if=pflash,format=raw,unit=1,file="):]
	for _, name := range []string{"PK", "KEK"} {
		got, err := vm.NVRAM{Path: vars}.Read(name)
		if err != nil {
			t.Fatalf("%v\n%s", err, g.tail())
		}
		if !bytes.Equal(got, lists[name+".esl"]) {
			t.Errorf("the firmware's %s is not what was enrolled: %x", name, got)
		}
	}
	return vars
}
