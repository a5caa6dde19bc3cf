package httpboot

import (
	"fmt"
	"net"
	"net/http"

	"github.com/imagectl/imagectl/pxe/boot"
)

// Program is what UEFI loads by HTTP. UEFI takes it for one by its Content-Type, or
// else by the last four characters of its name: that ends in .efi.
type Program struct {
	boot.Blob
	// Installer says that it is the whole installer, and not iPXE, which asks what to
	// do once it runs.
	Installer bool
}

// program serves UEFI HTTP boot. What must not start there gets a refusal, after
// which the firmware goes on to its next boot option at once; left without an
// answer it would wait for a minute.
func (h handler) program(w http.ResponseWriter, r *http.Request) {
	mac, err := net.ParseMAC(r.PathValue("mac"))
	p, ok := h.named(r.PathValue("name"))
	if err != nil || len(mac) != 6 || !ok {
		http.Error(w, "say which card boots, and what there is: /boot/MAC/NAME", http.StatusNotFound)
		return
	}
	m := boot.Machine{MAC: mac}
	a := h.Source.Decide(m)
	e := boot.Event{Machine: m, Name: a.Name, Firmware: true, Action: a.Action}
	if !p.mayStart(a) {
		e.Stage, e.Detail = boot.StageScript, fmt.Sprintf("UEFI HTTP boot goes on to the next boot option: %s (%s)", a.Reason, a.Code)
		if a.Refused {
			e.Refusal = boot.Refusal{Code: a.Code, Reason: a.Reason}
		}
		h.record(r, e)
		http.Error(w, a.Code+": "+a.Reason, http.StatusNotFound)
		return
	}
	h.send(w, r, p.Blob, func(detail string, no boot.Refusal) {
		if r.Method != http.MethodGet {
			return // UEFI asks for the size first
		}
		e.Stage, e.Detail, e.Refusal = boot.StageNBP, detail+" by UEFI HTTP boot", no
		if p.Installer {
			e.Stage = boot.StageKernel
		}
		if no.Code != "" {
			e.Detail += " (" + no.Code + ")"
		}
		h.record(r, e)
	})
}

func (h handler) named(name string) (Program, bool) {
	for _, p := range h.Programs {
		if p.Name == name {
			return p, true
		}
	}
	return Program{}, false
}

// mayStart says whether a machine with this answer starts the program. A machine
// that boots its own disk does not: the installer would wait for nothing, and iPXE
// only exit. Unless iPXE has to switch it off.
func (p Program) mayStart(a boot.Answer) bool {
	switch a.Action {
	case boot.Install, boot.Discover:
		return true
	case boot.Local:
		return !p.Installer && a.LocalBoot == "poweroff"
	}
	return false
}
