package cli

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/catalog"
	"github.com/imagectl/imagectl/pxe/grub"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/server"
	"github.com/imagectl/imagectl/pxe/syslog"
)

// bootPath explains the boot path to operators (serverapi.BootPath).
type bootPath struct {
	journal *server.Journal
	catalog *catalog.Catalog
	plan    plan.Plan
	// notices are sentences on the boot network.
	notices func(now time.Time) []string
	// consoles are what machines said by syslog.
	consoles *syslog.Tails
}

// consoleLines is how much of what a machine said is shown at once.
const consoleLines = 40

// Explain implements serverapi.BootPath.
func (b *bootPath) Explain(asked string) (serverapi.BootAnswer, bool) {
	m, macs, ok := b.find(asked)
	if !ok {
		return serverapi.BootAnswer{}, false
	}
	m.Firmware = b.firmware(macs)
	a := b.catalog.Look(m)
	out := serverapi.BootAnswer{Action: string(a.Action), Code: a.Code, Reason: a.Reason, Machine: a.Name}
	if a.Action != boot.None {
		script := httpboot.Script
		if a.Program == boot.GRUB {
			script = grub.Script
		}
		out.Script = script(netip.AddrPortFrom(b.plan.Server.Address, uint16(b.plan.Server.HTTPPort)), m, a)
	}
	for _, mac := range macs {
		for _, e := range b.journal.Events(mac) {
			out.Events = append(out.Events, serverapi.BootEvent{At: e.At, Stage: string(e.Stage), Detail: e.Detail})
		}
	}
	slices.SortStableFunc(out.Events, func(x, y serverapi.BootEvent) int { return x.At.Compare(y.At) })
	heard := []string{}
	for _, mac := range macs {
		heard = append(heard, mac.String())
	}
	for _, known := range b.plan.Machines {
		if known.Name == a.Name && known.Address.IsValid() {
			heard = append(heard, known.Address.String())
		}
	}
	for _, l := range b.consoles.Tail(consoleLines, heard...) {
		out.Console = append(out.Console, serverapi.BootEvent{At: l.At, Stage: l.App, Detail: l.Text})
	}
	return out, true
}

// firmware is what a machine was seen with last; empty when it was not seen.
func (b *bootPath) firmware(macs []net.HardwareAddr) boot.Firmware {
	var last boot.Event
	for _, mac := range macs {
		for _, e := range b.journal.Events(mac) {
			if e.Machine.Firmware != "" && e.At.After(last.At) {
				last = e
			}
		}
	}
	return last.Machine.Firmware
}

// find takes a MAC address or a name of cluster.yaml.
func (b *bootPath) find(asked string) (boot.Machine, []net.HardwareAddr, bool) {
	if mac, err := net.ParseMAC(asked); err == nil && len(mac) == 6 {
		return boot.Machine{MAC: mac}, []net.HardwareAddr{mac}, true
	}
	for _, m := range b.plan.Machines {
		if m.Name != asked {
			continue
		}
		who := boot.Machine{UUID: m.UUID, Serial: m.Serial}
		macs := m.MACs
		if len(m.Selector) > 0 {
			macs = b.catalog.Cards(m.Name)
			slices.SortFunc(macs, func(x, y net.HardwareAddr) int { return bytes.Compare(x, y) })
		}
		if len(macs) > 0 {
			who.MAC = macs[0]
		}
		return who, macs, true
	}
	return boot.Machine{}, nil, false
}

// Named implements serverapi.BootPath.
func (b *bootPath) Named(macs []string) string {
	found := ""
	for _, text := range macs {
		mac, err := net.ParseMAC(text)
		if err != nil {
			continue
		}
		name, ok := b.catalog.Named(mac)
		if ok && found != "" && found != name {
			return ""
		}
		if ok {
			found = name
		}
	}
	return found
}

// Notices implements serverapi.BootPath.
func (b *bootPath) Notices() []string { return b.notices(time.Now()) }

// Last implements serverapi.BootPath.
func (b *bootPath) Last(macs []string) (serverapi.BootEvent, bool) {
	var last boot.Event
	for _, text := range macs {
		mac, err := net.ParseMAC(text)
		if err != nil {
			continue
		}
		if events := b.journal.Events(mac); len(events) > 0 {
			if e := events[len(events)-1]; e.At.After(last.At) {
				last = e
			}
		}
	}
	return serverapi.BootEvent{At: last.At, Stage: string(last.Stage), Detail: last.Detail}, !last.At.IsZero()
}
