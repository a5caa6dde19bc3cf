package server

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/grub"
)

// findForGRUB finds what GRUB on a machine asks for by TFTP: its configuration, and the
// kernel and initrd that it names. Nobody gets another file, or an installer that the
// machine is not to run.
//
// Who asks is in the name. What doubt speaks against is answered, and no event.
func (cfg Config) findForGRUB(meet meeting, client netip.Addr, name string, doubt func(netip.Addr, boot.Machine, string) string) (io.ReadSeekCloser, bool) {
	r, ok := grub.Parse(name)
	if !ok {
		return nil, grub.Spare(name)
	}
	r.Machine = meet(r.Machine, client)
	a := cfg.Source.Decide(r.Machine)
	record := func(e boot.Event) {
		if why := doubt(client, e.Machine, e.Name); why != "" {
			cfg.Log.Warn("not believed", "mac", e.Machine.MAC.String(), "stage", e.Stage, "client", client, "reason", why)
			return
		}
		cfg.Recorder.Record(e)
	}
	e := boot.Event{At: time.Now(), Machine: r.Machine, Name: a.Name, Stage: r.Stage, Action: a.Action}
	if r.Stage == boot.StageScript {
		e.Detail = fmt.Sprintf("GRUB: %s: %s (%s)", a.Action, a.Reason, a.Code)
		if a.Refused {
			e.Refusal = boot.Refusal{Code: a.Code, Reason: a.Reason}
		}
		record(e)
		script := grub.Script(netip.AddrPortFrom(cfg.Address, uint16(cfg.HTTPPort)), r.Machine, a)
		return text{bytes.NewReader([]byte(script))}, true
	}
	files := a.Initrd
	if r.Stage == boot.StageKernel {
		files = []boot.Blob{a.Kernel}
	}
	refuse := func(code, reason string) (io.ReadSeekCloser, bool) {
		e.Detail, e.Refusal = reason+" ("+code+")", boot.Refusal{Code: code, Reason: reason}
		record(e)
		return nil, true
	}
	i := slices.IndexFunc(files, func(b boot.Blob) bool { return b.SHA256 == r.SHA256 && strings.EqualFold(b.Name, r.Name) })
	switch {
	case !a.Action.Loads():
		return refuse(a.Code, a.Reason)
	case i < 0:
		return refuse("no-such-file", "GRUB asks for a file that the machine's configuration does not name any more; it starts again")
	}
	content, err := cfg.Open(r.SHA256)
	if err != nil {
		cfg.Log.Error("file not opened", "name", files[i].Name, "sha256", r.SHA256, "error", err)
		return refuse("file-missing", files[i].Name+" is missing on the server, see its log; run imagectl build")
	}
	e.Detail = "fetches " + files[i].Name + " by TFTP"
	record(e)
	return content, true
}

// text is a file in memory.
type text struct{ *bytes.Reader }

// Close implements io.Closer.
func (text) Close() error { return nil }
