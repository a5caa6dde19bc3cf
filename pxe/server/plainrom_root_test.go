//go:build root

package server_test

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
	"github.com/imagectl/imagectl/test/vm"
)

// plainROM is a wire on which one machine's card has a PXE ROM that is no iPXE. QEMU has
// no such ROM: all of them are iPXE and say so, and then no server sends them a boot
// program. So what tells it is taken out of the requests of the ROM, and of nothing that
// the boot program sends when it runs.
type plainROM struct {
	net.PacketConn
	n int

	mu     sync.Mutex
	rack   *rack
	loaded int // boot programs of earlier tries
	hidden int
}

// plug puts it between a rack and its sockets.
func (p *plainROM) plug(_ *listen.Config, c *server.Config) { c.Sockets.DHCP = p }

// ReadFrom implements net.PacketConn.
func (p *plainROM) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := p.PacketConn.ReadFrom(b)
	if err != nil {
		return n, from, err
	}
	m, err := dhcpv4.FromBytes(b[:n])
	if err != nil || !bytes.Equal(m.ClientHWAddr, mac(p.n)) || !p.inROM() {
		return n, from, nil
	}
	return copy(b, asPlainROM(m).ToBytes()), from, nil
}

// asPlainROM takes iPXE's marks out of a request: its user class, its own options
// (ipxe.org/howto/dhcpd: 175 and, of earlier times, 203), and that it asks for those.
func asPlainROM(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	own := []uint8{175, 176, 177, 203}
	for _, code := range append(own, dhcpv4.OptionUserClassInformation.Code()) {
		m.Options.Del(dhcpv4.GenericOptionCode(code))
	}
	list := dhcpv4.GenericOptionCode(dhcpv4.OptionParameterRequestList.Code())
	var asks []byte
	for _, code := range m.Options.Get(list) {
		if !bytes.Contains(own, []byte{code}) {
			asks = append(asks, code)
		}
	}
	m.Options.Update(dhcpv4.OptGeneric(list, asks))
	return m
}

// inROM is whether the machine still runs its ROM: no boot program was asked for since
// it was switched on.
func (p *plainROM) inROM() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rack == nil || p.rack.came(p.n, boot.StageNBP) > p.loaded {
		return false
	}
	p.hidden++
	return true
}

// boots switches the machine on, and again when it gave up because this host stood
// still, until it asks for its script.
func (p *plainROM) boots(t *testing.T, r *rack) *vm.Guest {
	t.Helper()
	p.mu.Lock()
	p.rack = r
	p.mu.Unlock()
	const tries = 3
	g, _ := guest(t, vm.SeaBIOS, p.n)
	for try := 1; r.bootsDisk(t, g, p.n); try++ {
		t.Logf("machine %d booted its disk, try %d of %d; its events:\n%s", p.n, try, tries, stages(r.Events(mac(p.n))))
		if try == tries {
			t.FailNow()
		}
		g.Stop()
		p.mu.Lock()
		p.loaded = r.came(p.n, boot.StageNBP)
		p.mu.Unlock()
		g = powerOn(t, g.Config)
	}
	return g
}

// loadsIPXE boots a machine whose ROM is no iPXE until it runs the installer's kernel.
// Every step is there in its order, and the iPXE that fetches the script drives the card
// through the ROM, which no other iPXE than undionly.kpxe does.
func (p *plainROM) loadsIPXE(t *testing.T, r *rack, steps ...string) {
	t.Helper()
	start := time.Now()
	g := p.boots(t, r)
	if r.came(p.n, boot.StageNBP) == 0 {
		t.Fatalf("it asked for its script and has loaded no boot program:\n%s", stages(r.Events(mac(p.n))))
	}
	wait(t, g, `using undionly on`)
	wait(t, g, `imagectl: discover \(unknown-machine\)`)
	t.Logf("script after %s", time.Since(start))
	r.waitEvent(t, p.n, boot.StageKernel, 1)
	starts(t, g)
	g.Stop()
	got := stages(r.Events(mac(p.n)))
	rest := got
	for _, want := range steps {
		_, after, ok := strings.Cut(rest, want)
		if !ok {
			t.Fatalf("no event %q in its place in:\n%s", want, got)
		}
		rest = after
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hidden == 0 {
		t.Error("nothing was taken out of the ROM's requests")
	}
	t.Logf("events:\n%s", got)
}

func TestBIOSLoadsIPXE(t *testing.T) {
	rom := &plainROM{n: 51}
	r := startRack(t, nil, nil, rom.plug)
	rom.loadsIPXE(t, r, "DISCOVER from firmware", "REQUEST from firmware", "nbp: fetches undionly.kpxe by TFTP",
		"DISCOVER from ipxe", "script: discover", "kernel: fetches vmlinuz")
}

// The ROM takes its address from the other server and its program from us.
func TestBIOSLoadsIPXEBesideDnsmasq(t *testing.T) {
	rom := &plainROM{n: 52}
	r := startRack(t, nil, nil, asProxy, rom.plug)
	other := newHost(t, "other")
	other.plug("eth0", bridge, otherAddr+"/24")
	startDnsmasq(t, other)
	rom.loadsIPXE(t, r, "DISCOVER from firmware", "nbp: fetches undionly.kpxe by TFTP",
		"DISCOVER from ipxe", "script: discover", "kernel: fetches vmlinuz")
}
