package lockdown

import (
	"regexp"
	"strings"
	"testing"
)

func TestEveryDoorSaysWhatItIsAndIsClosedOnce(t *testing.T) {
	unit := regexp.MustCompile(`^[a-zA-Z0-9:_.-]+@?\.(service|socket|target|path|mount|timer)$`)
	seen := map[string]string{}
	once := func(what, door string) {
		t.Helper()
		if first, dup := seen[what]; dup {
			t.Errorf("%s is closed by %s and by %s; Ignition refuses a repetition", what, first, door)
		}
		seen[what] = door
	}
	for _, d := range Doors() {
		once("door "+d.Name, d.Name)
		if d.Why == "" || strings.HasSuffix(d.Why, ".") {
			t.Errorf("%s: why is %q, want a clause without a final stop", d.Name, d.Why)
		}
		if len(d.Masks)+len(d.Units)+len(d.Links)+len(d.Files)+len(d.KernelArgs) == 0 {
			t.Errorf("%s closes nothing", d.Name)
		}
		for _, u := range d.Masks {
			once(u, d.Name)
			if !unit.MatchString(u) {
				t.Errorf("%s: %q is not the name of a unit or a template", d.Name, u)
			}
		}
		for _, u := range d.Units {
			once(u.Name, d.Name)
		}
		for _, l := range d.Links {
			once(l.Path, d.Name)
		}
		for _, f := range d.Files {
			once(f.Path, d.Name)
			if !strings.HasSuffix(f.Content, "\n") {
				t.Errorf("%s: %s has no final newline", d.Name, f.Path)
			}
		}
	}
}

// What Flatcar enables or offers by itself, read from its sources.
func TestTheKnownDoorsAreOnTheList(t *testing.T) {
	masked, links := map[string]bool{}, map[string]string{}
	for _, d := range Doors() {
		for _, u := range d.Masks {
			masked[u] = true
		}
		for _, l := range d.Links {
			links[l.Path] = l.Target
		}
	}
	for _, u := range []string{
		"sshd.service", "sshd.socket", "sshd@.service", "sshd-keygen.service", "sshkeys.service", "ssh-key-proc-cmdline.service",
		"update-ssh-keys-after-ignition.service", "coreos-metadata-sshkeys@.service", "oem-cloudinit.service", "enable-oem-cloudinit.service",
		"addon-run@.service", "addon-config@.service", "system-cloudinit@.service", "getty@.service", "autovt@.service", "serial-getty@.service",
		"console-getty.service", "getty.target", "debug-shell.service", "docker.socket", "qemu-guest-agent.service",
	} {
		if !masked[u] {
			t.Errorf("%s is not masked", u)
		}
	}
	for _, g := range []string{"flatcar-autologin-generator", "systemd-ssh-generator"} {
		if links["/etc/systemd/system-generators/"+g] != "/dev/null" {
			t.Errorf("%s is not masked", g)
		}
	}
	for _, masked := range []string{"update-engine.service", "containerd.service"} {
		for _, d := range Doors() {
			for _, u := range d.Masks {
				if u == masked {
					t.Errorf("%s must run: update-engine marks the booted slot as good, containerd runs the pods", u)
				}
			}
		}
	}
}
