package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/tftp"
)

// Whatever name is asked for by TFTP, a machine gets no file that its own answer does not
// name, and none at all unless it may run an installer; what it gets is told as that
// machine's, and so is what it does not get.
func FuzzFindForGRUB(f *testing.F) {
	sha := func(c string) string { return strings.Repeat(c, 64) }
	installer := boot.Answer{Name: "cp1", Code: "armed", Reason: "it's armed'\nevil", Kernel: boot.Blob{Name: "Vmlinuz", SHA256: sha("1")},
		Initrd: []boot.Blob{{Name: "initrd", SHA256: sha("2")}, {Name: "lost", SHA256: sha("3")}}, Args: []string{"a='b'\nevil"}, Configured: true}
	answers := map[byte]boot.Answer{4: {Action: boot.None, Code: "ignored", Reason: "strangers are ignored", Refused: true}}
	for last, action := range map[byte]boot.Action{1: boot.Install, 2: boot.Local, 3: boot.Discover} {
		a := installer
		a.Action, a.Refused = action, action == boot.Local
		answers[last] = a
	}
	for last := range 256 { // as the catalogue: everybody has an answer, with its reason
		if _, ok := answers[byte(last)]; !ok {
			answers[byte(last)] = boot.Answer{Action: boot.Local, Code: "unknown-machine", Reason: "cluster.yaml does not list it"}
		}
	}
	for _, name := range []string{
		"imagectl/52:54:00:00:00:01/none/machine.cfg", "/imagectl/52:54:00:00:00:02/01020304-0506-0708-090a-0b0c0d0e0fff/MACHINE.CFG",
		"imagectl/52:54:00:00:00:01/kernel/" + sha("1") + "/vmlinuz", "imagectl/52:54:00:00:00:02/kernel/" + sha("1") + "/vmlinuz",
		"imagectl/52:54:00:00:00:03/initrd/" + sha("2") + "/initrd", "imagectl/52-54-00-00-00-01/ignition/" + sha("3") + "/lost",
		"imagectl/52:54:00:00:00:04/none/machine.cfg", "imagectl/52:54:00:00:00:01/../52:54:00:00:00:03/kernel/" + sha("1") + "/vmlinuz",
		"EFI\\debian\\grubx64_mod.lst", "revocations.efi", "../../imagectl/x/none/machine.cfg", "imagectl/52:54:00:00:00:01/kernel/" + sha("9") + "/vmlinuz",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, asked string) {
		r, err := tftp.ParseRequest([]byte("\x00\x01" + asked + "\x00octet\x00"))
		if err != nil {
			return
		}
		name := r.Path()
		var told events
		opened := ""
		cfg := Config{Address: netip.MustParseAddr("10.0.0.1"), HTTPPort: 8080, Recorder: &told, Log: slog.New(slog.DiscardHandler),
			Source: grubSource{answers: answers},
			Open: func(sha256 string) (io.ReadSeekCloser, error) {
				opened = sha256
				if sha256 == sha("3") {
					return nil, fs.ErrNotExist
				}
				return text{bytes.NewReader([]byte("content of " + sha256))}, nil
			}}
		content, known := cfg.findForGRUB(believe, netip.Addr{}, name, believed)
		if content == nil && opened != "" && opened != sha("3") || content != nil && !known {
			t.Fatalf("%q: %s was opened, and it gets %v, %v", name, opened, content, known)
		}
		if content == nil && len(told) == 0 {
			return // nobody's name, or one that GRUB does well without
		}
		if len(told) != 1 {
			t.Fatalf("%q is told as %v", name, told)
		}
		e := told[0]
		a := cfg.Source.Decide(e.Machine)
		if !strings.HasPrefix(name, "imagectl/") || e.Name != a.Name {
			t.Errorf("%q of %s is told as %s's", name, a.Name, e.Name)
		}
		if content == nil {
			if e.Refusal.Code == "" || e.Refusal.Reason == "" {
				t.Errorf("%q gets nothing, and no reason is told: %+v", name, e)
			}
			return
		}
		b, err := io.ReadAll(content)
		if err := errors.Join(err, content.Close()); err != nil {
			t.Fatal(err)
		}
		if opened == "" { // its configuration
			for line := range strings.Lines(string(b)) {
				if strings.HasPrefix(line, "evil") || strings.Count(line, "'")%2 != 0 {
					t.Errorf("%q: the configuration has the line %q", name, line)
				}
			}
			return
		}
		files := fmt.Sprint(append(a.Initrd, a.Kernel))
		if a.Action != boot.Install && a.Action != boot.Discover || !strings.Contains(files, opened) || !strings.Contains(name, opened) || string(b) != "content of "+opened {
			t.Errorf("%q gets %q; its machine is to %s, from %s", name, b, a.Action, files)
		}
	})
}
