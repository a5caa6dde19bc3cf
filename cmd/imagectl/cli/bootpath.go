package cli

import (
	"net"
	"net/netip"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/serverapi"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/catalog"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/server"
)

// bootPath explains the boot path to operators (serverapi.BootPath).
type bootPath struct {
	journal *server.Journal
	catalog *catalog.Catalog
	plan    plan.Plan
}

// Explain implements serverapi.BootPath.
func (b *bootPath) Explain(asked string) (serverapi.BootAnswer, bool) {
	m, macs, ok := b.find(asked)
	if !ok {
		return serverapi.BootAnswer{}, false
	}
	a := b.catalog.Decide(m)
	out := serverapi.BootAnswer{Action: string(a.Action), Code: a.Code, Reason: a.Reason, Machine: a.Name}
	if a.Action != boot.None {
		out.Script = httpboot.Script(netip.AddrPortFrom(b.plan.Server.Address, uint16(b.plan.Server.HTTPPort)), m, a)
	}
	for _, mac := range macs {
		for _, e := range b.journal.Events(mac) {
			out.Events = append(out.Events, serverapi.BootEvent{At: e.At, Stage: string(e.Stage), Detail: e.Detail})
		}
	}
	slices.SortStableFunc(out.Events, func(x, y serverapi.BootEvent) int { return x.At.Compare(y.At) })
	return out, true
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
		if len(m.MACs) > 0 {
			who.MAC = m.MACs[0]
		}
		return who, m.MACs, true
	}
	return boot.Machine{}, nil, false
}

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
