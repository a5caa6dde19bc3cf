package server

import (
	"bytes"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/pxe/boot"
)

// grubSource has one machine for each last byte of a card.
type grubSource struct {
	Source
	answers map[byte]boot.Answer
}

func (s grubSource) Decide(m boot.Machine) boot.Answer { return s.answers[m.MAC[5]] }

type events []boot.Event

func (e *events) Record(one boot.Event) { *e = append(*e, one) }

func TestGRUBGetsWhatItsMachineMayRun(t *testing.T) {
	t.Parallel()
	sha := func(c string) string { return strings.Repeat(c, 64) }
	armed := boot.Answer{Action: boot.Install, Name: "cp1", Code: "armed", Reason: "it is armed",
		Kernel: boot.Blob{Name: "Vmlinuz", SHA256: sha("1")}, Initrd: []boot.Blob{{Name: "initrd", SHA256: sha("2")}, {Name: "lost", SHA256: sha("3")}}}
	var got events
	cfg := Config{Address: netip.MustParseAddr("10.0.0.1"), HTTPPort: 8080, Recorder: &got, Log: slog.New(slog.DiscardHandler),
		Source: grubSource{answers: map[byte]boot.Answer{1: armed, 2: {Action: boot.Local, Name: "cp2", Code: "not-armed", Reason: "it is not armed", Refused: true}}},
		Open: func(sha256 string) (io.ReadSeekCloser, error) {
			if sha256 == sha("3") {
				return nil, fs.ErrNotExist
			}
			return text{bytes.NewReader([]byte("content"))}, nil
		}}
	const first, second = "imagectl/52:54:00:00:00:01/", "imagectl/52:54:00:00:00:02/"
	for _, c := range []struct {
		name, want string
		known      bool
		event      string
	}{
		{first + "none/machine.cfg", "echo 'imagectl: install (armed)'", true, "script cp1: GRUB: install: it is armed (armed) []"},
		{first + "kernel/" + sha("1") + "/vmlinuz", "content", true, "kernel cp1: fetches Vmlinuz by TFTP []"},
		{first + "initrd/" + sha("2") + "/initrd", "content", true, "initrd cp1: fetches initrd by TFTP []"},
		{first + "ignition/" + sha("2") + "/initrd", "content", true, "ignition cp1: fetches initrd by TFTP []"},
		{first + "initrd/" + sha("3") + "/lost", "", true, "initrd cp1: lost is missing on the server, see its log; run imagectl build (file-missing) [file-missing]"},
		{first + "kernel/" + sha("2") + "/initrd", "", true, "kernel cp1: GRUB asks for a file that the machine's configuration does not name any more; it starts again (no-such-file) [no-such-file]"},
		{first + "kernel/" + sha("4") + "/vmlinuz", "", true, "kernel cp1: GRUB asks for a file that the machine's configuration does not name any more; it starts again (no-such-file) [no-such-file]"},
		{second + "none/machine.cfg", "echo 'imagectl: local (not-armed)'", true, "script cp2: GRUB: local: it is not armed (not-armed) [not-armed]"},
		{second + "kernel/" + sha("1") + "/vmlinuz", "", true, "kernel cp2: it is not armed (not-armed) [not-armed]"},
		{"grub/x86_64-efi/command.lst", "", true, ""},
		{"vmlinuz", "", false, ""},
	} {
		got = nil
		content, known := cfg.findForGRUB(believe, netip.Addr{}, c.name, believed)
		if known != c.known || (content == nil) != (c.want == "") {
			t.Errorf("%s: got %v, %v", c.name, content, known)
			continue
		}
		if content != nil {
			if b, err := io.ReadAll(content); err != nil || !strings.Contains(string(b), c.want) {
				t.Errorf("%s: got %q, %v; want %q in it", c.name, b, err, c.want)
			}
		}
		var said []string
		for _, e := range got {
			if e.Machine.MAC.String() != (net.HardwareAddr{0x52, 0x54, 0, 0, 0, c.name[len(first)-2] - '0'}).String() {
				t.Errorf("%s: the event is of %s", c.name, e.Machine.MAC)
			}
			said = append(said, string(e.Stage)+" "+e.Name+": "+e.Detail+" ["+e.Refusal.Code+"]")
		}
		if c.event == "" && said != nil || c.event != "" && !slices.Equal(said, []string{c.event}) {
			t.Errorf("%s: got events %q, want %q", c.name, said, c.event)
		}
	}
}
