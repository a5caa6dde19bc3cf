package snippet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/butane/lockdown"
)

const head = "variant: flatcar\nversion: 1.1.0\n"

func TestFindings(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
	}{
		{"nothing", head, nil},
		{"no YAML", "a: b: c", []string{`s.bu:1: error: not valid YAML: mapping values are not allowed in this context`}},
		{"no variant", "version: 1.1.0", []string{`s.bu:1:1: error: is Butane variant "" version "1.1.0", want flatcar 1.1.0: every current Flatcar channel reads what it translates to`}},
		{"another variant", "variant: fcos\nversion: 1.5.0", []string{`s.bu:1:1: error: is Butane variant "fcos" version "1.5.0", want flatcar 1.1.0: every current Flatcar channel reads what it translates to`}},
		{"an unknown key", head + "colour: red\n", []string{`s.bu:3:1: error: colour: unused key colour`}},
		{"a local file outside", head + "storage:\n  files:\n    - path: /etc/a\n      contents:\n        local: ../secret\n", []string{`s.bu:7:16: error: storage.files.0.contents.local: local file path traverses outside the files directory`}},
		{"an SSH key", head + "passwd:\n  users:\n    - name: me\n      ssh_authorized_keys: [ssh-ed25519 AAAA]\n", []string{`s.bu:5:13: error: passwd.users[0]: user me gets a password or an SSH key, and nobody logs in to a node`}},
		{"a password", head + "passwd:\n  users:\n    - name: me\n      password_hash: x\n", []string{`s.bu:5:13: error: passwd.users[0]: user me gets a password or an SSH key, and nobody logs in to a node`}},
		{"a user without either", head + "passwd:\n  users:\n    - name: me\n", nil},
		{"core's shell", head + "passwd:\n  users:\n    - name: core\n      shell: /bin/bash\n", []string{`s.bu:5:13: error: passwd.users[0]: user core belongs to the lock-down and stays closed`}},
		{"a login prompt on one line", head + "systemd:\n  units:\n    - name: serial-getty@ttyS0.service\n      enabled: true\n", []string{`s.bu:5:13: error: systemd.units[0]: unit serial-getty@ttyS0.service belongs to the lock-down (console-login) and stays closed`}},
		{"a drop-in as a file", head + "storage:\n  files:\n    - path: /etc/systemd/system/sshd.service.d/a.conf\n      contents: {inline: a}\n", []string{`s.bu:5:13: error: storage.files[0]: /etc/systemd/system/sshd.service.d/a.conf belongs to the lock-down (ssh) and stays closed`}},
		{"a link instead of a mask", head + "storage:\n  links:\n    - path: /etc/systemd/system/getty@tty1.service\n      target: /usr/lib/systemd/system/getty@.service\n", []string{`s.bu:5:13: error: storage.links[0]: /etc/systemd/system/getty@tty1.service belongs to the lock-down (console-login) and stays closed`}},
		{"sudo", head + "storage:\n  files:\n    - path: /etc/sudoers.d/me\n      contents: {inline: a}\n", []string{`s.bu:5:13: error: storage.files[0]: /etc/sudoers.d/me belongs to the lock-down (sudo) and stays closed`}},
		{"a key file", head + "storage:\n  files:\n    - path: /home/core/.ssh/authorized_keys\n      contents: {inline: a}\n", []string{`s.bu:5:13: error: storage.files[0]: /home/core/.ssh/authorized_keys belongs to the lock-down (ssh) and stays closed`}},
		{"automatic updates", head + "storage:\n  files:\n    - path: /etc/flatcar/update.conf\n      contents: {inline: a}\n", []string{`s.bu:5:13: error: storage.files[0]: /etc/flatcar/update.conf belongs to the lock-down (updates) and stays closed`}},
		{"/usr", head + "storage:\n  files:\n    - path: /usr/bin/tool\n      contents: {inline: a}\n", []string{`s.bu:5:13: error: storage.files[0]: /usr/bin/tool is on /usr, which is read-only and verified`}},
		{"an extension that nobody locked", head + "storage:\n  files:\n    - path: /etc/extensions/a.raw\n      contents:\n        source: https://e.org/a.raw\n        verification: {hash: sha256-" + strings.Repeat("0", 64) + "}\n", []string{`s.bu:5:13: error: storage.files[0]: /etc/extensions/a.raw: system extensions are locked inputs`}},
		{"a download without a digest", head + "storage:\n  files:\n    - path: /opt/a\n      contents:\n        source: https://e.org/a\n", []string{`s.bu:5:13: error: storage.files[0].contents: /opt/a is fetched from the network and nothing says which bytes it must have`}},
		{"what Flatcar's Ignition lacks", head + "storage:\n  luks:\n    - name: data\n      device: /dev/vdb\n      clevis: {tpm2: true}\n", []string{`s.bu:7:15: error: storage.luks.0.clevis: clevis is not supported in this spec version`}},
		{"kernel arguments", head + "kernel_arguments:\n  should_exist: [quiet]\n", []string{`s.bu:4:3: error: kernel_arguments: Ignition would rewrite GRUB's configuration and reboot once more; arguments are part of the image`}},
		{"another config", head + "ignition:\n  config:\n    merge:\n      - source: https://e.org/a.ign\n", []string{`s.bu:5:5: error: ignition.config: another config is fetched at first boot, unreviewed, and may drop the lock-down`}},
		{"a private key", head + "storage:\n  files:\n    - path: /etc/tls.key\n      contents:\n        inline: |\n          -----BEGIN EC PRIVATE KEY-----\n          MHc=\n", []string{`s.bu:5:13: error: storage.files[0]: /etc/tls.key holds a private key, and images are handed to any machine on the boot network`}},
		{"a certificate", head + "storage:\n  files:\n    - path: /etc/tls.crt\n      contents:\n        inline: |\n          -----BEGIN CERTIFICATE-----\n          MHc=\n", nil},
		{"imagectl's own files", head + "storage:\n  files:\n    - path: /etc/imagectl/node.json\n      contents: {inline: a}\n", []string{`s.bu:5:13: error: storage.files[0]: /etc/imagectl/node.json belongs to imagectl`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, found := Translate("s.bu", []byte(tt.text), t.TempDir())
			var got []string
			for _, f := range found {
				got = append(got, f.String())
			}
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Error("got -, want +\n" + diff)
			}
		})
	}
}

func TestEveryDoorIsRefused(t *testing.T) {
	c := doors()
	for _, d := range lockdown.Doors() {
		for _, u := range d.Masks {
			if _, ok := c.unit(u); !ok {
				t.Errorf("%s could be unmasked", u)
			}
		}
		for _, u := range d.Units {
			if _, ok := c.door("/etc/systemd/system/" + u.Name); !ok {
				t.Errorf("%s could be replaced", u.Name)
			}
		}
		for _, f := range d.Files {
			if _, ok := c.door("/etc/./" + strings.TrimPrefix(f.Path, "/etc/")); !ok {
				t.Errorf("%s could be replaced", f.Path)
			}
		}
	}
}

func TestLocalFilesStartAtTheSnippet(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.conf"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg, found := Translate("s.bu", []byte(head+"storage:\n  files:\n    - path: /etc/a.conf\n      contents: {local: a.conf}\n"), dir)
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	if got, want := *cfg.Storage.Files[0].Contents.Source, "data:,x"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzTranslate(f *testing.F) {
	f.Add([]byte(head))
	f.Add([]byte(head + "passwd:\n  users:\n    - name: core\nsystemd:\n  units:\n    - name: '@'\nstorage:\n  links:\n    - path: /etc/systemd/system/..\n      target: a\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg, found := Translate("s.bu", text, dir)
		if found.Err() == nil && cfg.Ignition.Version != "3.4.0" {
			t.Errorf("accepted, but the version is %q", cfg.Ignition.Version)
		}
	})
}
