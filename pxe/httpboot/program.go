package httpboot

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

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
	firmware, p, known := h.named(r.PathValue("name"))
	if err != nil || len(mac) != 6 || !known {
		http.Error(w, "say which card boots, and what there is: /boot/MAC/NAME", http.StatusNotFound)
		return
	}
	m := h.meet(r, boot.Machine{MAC: mac, Firmware: firmware})
	a := h.Source.Decide(m)
	e := boot.Event{Machine: m, Name: a.Name, Firmware: true, Action: a.Action}
	if a.Program == boot.GRUB && !p.Installer && p.mayStart(a) {
		a = boot.Answer{Code: "pxe-only", Reason: "its boot program is GRUB (nbp: grub), which is loaded by PXE over IPv4"}
	}
	if !p.mayStart(a) {
		e.Stage, e.Detail = boot.StageScript, fmt.Sprintf("%s goes on to the next boot option: %s (%s)", way(r), a.Reason, a.Code)
		if a.Refused {
			e.Refusal = boot.Refusal{Code: a.Code, Reason: a.Reason}
		}
		h.record(r, e)
		http.Error(w, a.Code+": "+a.Reason, http.StatusNotFound)
		return
	}
	ok, leave := h.place(r)
	whole := h.send(w, r, p.Blob, ok, leave, func(detail string, no boot.Refusal) {
		if r.Method != http.MethodGet {
			return // UEFI asks for the size first
		}
		e.Stage, e.Detail, e.Refusal = boot.StageNBP, detail, no
		if no.Code == "" {
			e.Detail += " by " + way(r)
		}
		if p.Installer {
			e.Stage = boot.StageKernel
		}
		if no.Code != "" {
			e.Detail += " (" + no.Code + ")"
		}
		h.record(r, e)
	})
	if whole && r.Method == http.MethodGet && h.Loaded != nil && r.Context().Err() == nil {
		h.Loaded(mac)
	}
}

// way is how firmware asks: only here is it known that it came by HTTPS, for in DHCP it says the
// same of both.
func way(r *http.Request) string {
	if r.TLS != nil {
		return "UEFI HTTPS boot"
	}
	return "UEFI HTTP boot"
}

// programWait is how long UEFI may wait for the first byte of an answer: EDK2 gives up
// after five seconds.
const programWait = 4 * time.Second

// place is one for UEFI, which does not understand that it shall come back.
func (h handler) place(r *http.Request) (ok bool, leave func(stalled bool, now time.Time)) {
	if ok, leave := h.places.enter(r.RemoteAddr, time.Now()); ok {
		return true, leave
	}
	if h.Waits != nil {
		h.Waits()
	}
	ctx, cancel := context.WithTimeout(r.Context(), programWait)
	defer cancel()
	return h.places.wait(ctx, r.RemoteAddr, time.Now)
}

// named also says which firmware loads the program: who asks for it has said so by DHCP.
func (h handler) named(name string) (boot.Firmware, Program, bool) {
	for firmware, p := range h.Programs {
		if p.Name == name {
			return firmware, p, true
		}
	}
	return "", Program{}, false
}

// mayStart says whether a machine with this answer starts the program. A machine
// that boots its own disk does not: the installer would wait for nothing, and iPXE
// only exit. Unless iPXE has to switch it off, or to say why it boots nothing.
func (p Program) mayStart(a boot.Answer) bool {
	if a.Action == boot.Local {
		return !p.Installer && (a.LocalBoot == "poweroff" || a.Told)
	}
	return a.Action.Loads()
}
