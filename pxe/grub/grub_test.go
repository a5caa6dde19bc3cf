package grub

import (
	"flag"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/pxe/boot"
)

var update = flag.Bool("update", false, "rewrite testdata")

var (
	at     = netip.MustParseAddrPort("10.0.0.1:8080")
	card   = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	kernel = boot.Blob{Name: "flatcar_production_pxe.vmlinuz", SHA256: strings.Repeat("1a", 32), Size: 1}
	initrd = boot.Blob{Name: "flatcar_production_pxe_image.cpio.gz", SHA256: strings.Repeat("2b", 32), Size: 1}
)

func answers() map[string]boot.Answer {
	install := boot.Answer{Action: boot.Install, Name: "cp1", Code: "armed", Reason: "it is armed", Kernel: kernel, Initrd: []boot.Blob{initrd},
		Args: []string{"flatcar.first_boot=1", "console=ttyS0,115200n8"}}
	discover := install
	discover.Action, discover.Name, discover.Code, discover.Reason = boot.Discover, "", "unknown-machine", "it is not in cluster.yaml"
	local := boot.Answer{Action: boot.Local, Name: "cp1", Code: "not-armed", Reason: "it is not armed", Refused: true, LocalBoot: "exit"}
	poweroff, hostile := local, local
	poweroff.LocalBoot = "poweroff"
	hostile.Reason = "it says 'x' \"y\" ; reboot | ${net0} $(a) `b` \\ # é\nshell { } && <"
	configured := install
	configured.Configured, configured.Initrd = true, []boot.Blob{initrd, {Name: "demo-installer.cpio.gz", SHA256: strings.Repeat("3c", 32), Size: 1}}
	run := configured
	run.Action, run.Name, run.Code, run.Reason = boot.Run, "w1", "diskless", "it is diskless and runs in its memory"
	return map[string]boot.Answer{"run": run, "install": install, "configured": configured, "discover": discover, "exit": local, "poweroff": poweroff, "hostile": hostile,
		"none": {Action: boot.None, Code: "conflict", Refused: true, Reason: "it shows marks of two machines"}}
}

// The goldens are what GRUB runs; its own parser judges them. Review their diff.
func TestScripts(t *testing.T) {
	t.Parallel()
	scripts := map[string]string{"first": Config(at.Addr())}
	for name, a := range answers() {
		scripts[name] = Script(at, boot.Machine{MAC: card, UUID: "12345678-9abc-4def-8123-000000000001"}, a)
	}
	for name, got := range scripts {
		path := filepath.Join("testdata", name+".cfg")
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs (go test -update rewrites it):\n%s", path, got)
		}
		if out, err := exec.Command("grub-script-check", path).CombinedOutput(); err != nil {
			t.Errorf("GRUB's parser refuses %s: %v %s", path, err, out)
		}
	}
}

// What a script names is what the server finds.
func TestNamesInScriptsAreUnderstood(t *testing.T) {
	t.Parallel()
	script := Script(at, boot.Machine{MAC: card}, answers()["configured"])
	var got []Request
	for _, m := range regexp.MustCompile(`'\(tftp,10\.0\.0\.1\)/([^']*)'`).FindAllStringSubmatch(script, -1) {
		r, ok := Parse(m[1])
		if !ok {
			t.Errorf("%s is not understood", m[1])
		}
		got = append(got, r)
	}
	machine := boot.Machine{MAC: card, Firmware: boot.UEFIx64}
	want := []Request{{machine, boot.StageKernel, kernel.SHA256, kernel.Name}, {machine, boot.StageInitrd, initrd.SHA256, initrd.Name},
		{machine, boot.StageIgnition, strings.Repeat("3c", 32), "demo-installer.cpio.gz"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	const uuid = "12345678-9abc-4def-8123-000000000001"
	name := strings.NewReplacer("$net_default_mac", card.String(), "$uuid", uuid).
		Replace(regexp.MustCompile(`\(tftp,10\.0\.0\.1\)/(\S+)`).FindStringSubmatch(Config(at.Addr()))[1])
	machine.UUID = uuid
	if got, ok := Parse(name); !ok || !reflect.DeepEqual(got, Request{Machine: machine, Stage: boot.StageScript}) {
		t.Errorf("%s: got %+v, %v", name, got, ok)
	}
}

func TestOtherNamesAreNot(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "imagectl", "grub/grub.cfg", "imagectl/52:54:00:00:00:01/none", "imagectl/52:54:00:00:00/none/machine.cfg", "imagectl//none/machine.cfg",
		"imagectl/52:54:00:00:00:01/image/aa/vmlinuz", "imagectl/52:54:00:00:00:01/kernel/aa", "imagectl/52:54:00:00:00:01/kernel/aa/b/c",
		"other/52:54:00:00:00:01/none/machine.cfg",
	} {
		if r, ok := Parse(name); ok {
			t.Errorf("%q is taken for %+v", name, r)
		}
	}
	if r, ok := Parse("imagectl/52:54:00:00:00:01/'; reboot/machine.cfg"); !ok || r.Machine.UUID != "" {
		t.Errorf("what is no UUID is taken for one: %+v", r)
	}
}

func TestWhatIsSpare(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"revocations_sku.efi": true, "revocations_sbat.efi": true, "shim_certificate_0.efi": true, "grub/x86_64-efi/command.lst": true, "grub/x86_64-efi/fs.lst": true, "grub/fonts/unicode.pf2": true, "grub/grub.cfg-01-52-54-00-00-00-01": true,
		"grub/grub.cfg": false, "grubx64.efi": false, "bootx64.efi": false, "": false,
	} {
		if got := Spare(name); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("imagectl/52:54:00:00:00:01/none/machine.cfg")
	f.Add("imagectl/52:54:00:00:00:01/kernel/aa/vmlinuz")
	f.Fuzz(func(t *testing.T, name string) {
		if r, ok := Parse(name); ok && (len(r.Machine.MAC) != 6 || r.Stage == "") {
			t.Errorf("%q is taken for %+v", name, r)
		}
	})
}
