package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// asker is one of the programs that ask for an address on the way to a running
// system, with its patience.
type asker struct {
	name              string
	discover, request []time.Duration
	// collects offers until the first time-out ends, in case a better one comes.
	collects bool
	options  []dhcpv4.Modifier
}

func seconds(s ...float64) []time.Duration {
	out := make([]time.Duration, len(s))
	for i, s := range s {
		out[i] = time.Duration(s * float64(time.Second))
	}
	return out
}

// romAsks and uefiAsks: PXE 2.1's times, and EDK2's mPxeDhcpTimeout. UEFI takes its
// offer at the end of a time-out (DhcpOnTimerTick), and so do ROMs that hope for a
// proxy.
func romAsks(m *machine) asker {
	return asker{"ROM", seconds(4, 8, 16, 32), seconds(1, 2, 3, 4), true, pxe(m, 0, 0)}
}

func uefiAsks(m *machine) asker {
	return asker{"UEFI", seconds(4, 8, 16, 32), seconds(4, 8, 16, 32), true, pxe(m, 7, 0)}
}

// ipxeAsks: src/config/dhcp.h; the server's option 175.176 saves it the wait for a
// proxy.
func ipxeAsks(m *machine) asker {
	arch := uint16(0)
	if m.kind == uefi {
		arch = 7
	}
	return asker{"iPXE", seconds(1, 2, 4, 8), seconds(0.25, 0.5, 1, 2, 4, 8), false,
		append(pxe(m, arch, 1), dhcpv4.WithGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE")))}
}

// linuxAsks: the installer's systemd-networkd doubles from two seconds.
func linuxAsks(m *machine) asker {
	return asker{"Linux", seconds(2, 4, 8, 16, 32, 64), seconds(2, 4, 8, 16, 32, 64), false, []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptClientIdentifier(append([]byte{255, 0, 0, 0, 1, 0, 2}, m.mac...)))}}
}

func pxe(m *machine, arch uint16, identifier byte) []dhcpv4.Modifier {
	uuid := append([]byte{0}, m.uuid[:]...)
	return []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier(fmt.Sprintf("PXEClient:Arch:%05d:UNDI:003016", arch))),
		dhcpv4.WithGeneric(dhcpv4.OptionClientSystemArchitectureType, binary.BigEndian.AppendUint16(nil, arch)),
		dhcpv4.WithGeneric(dhcpv4.OptionClientMachineIdentifier, uuid),
		// ROM, iPXE and system of one machine each send another identifier.
		dhcpv4.WithGeneric(dhcpv4.OptionClientIdentifier, append([]byte{identifier}, uuid[1:]...)),
	}
}

var errPatience = errors.New("no answer, and no patience left")

// lease gets an address as one of the machine's programs does.
func (m *machine) lease(ctx context.Context, a asker) (*dhcpv4.DHCPv4, error) {
	m.at("DISCOVER of " + a.name)
	var xid dhcpv4.TransactionID
	binary.BigEndian.PutUint32(xid[:], rand.Uint32())
	with := append([]dhcpv4.Modifier{dhcpv4.WithTransactionID(xid), dhcpv4.WithHwAddr(m.mac), dhcpv4.WithBroadcast(true)}, a.options...)
	offer, err := m.ask(ctx, xid, a.discover, a.collects, dhcpv4.MessageTypeOffer,
		append(with, dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover)))
	if err != nil {
		return nil, err
	}
	m.at("REQUEST of " + a.name)
	ack, err := m.ask(ctx, xid, a.request, false, dhcpv4.MessageTypeAck, append(with, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier())), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr))))
	if err != nil {
		return nil, err
	}
	if m.server, _ = netip.AddrFromSlice(ack.ServerIdentifier().To4()); !slices.Contains(m.storm.servers, m.server) {
		m.wrong("was answered by %s, which is no server", m.server)
	}
	m.own(ack)
	return ack, nil
}

// own notes whose an address is. Nobody else may have been given it.
func (m *machine) own(ack *dhcpv4.DHCPv4) {
	a, _ := netip.AddrFromSlice(ack.YourIPAddr.To4())
	m.storm.mu.Lock()
	other := m.storm.owners[a]
	if old := m.address; m.unlisted && old != a && m.storm.owners[old] == m {
		delete(m.storm.owners, old)
	}
	m.storm.owners[a] = m
	m.storm.mu.Unlock()
	if other != nil && other != m {
		m.wrong("was given %s, which is %s's", a, other.name)
	}
	if m.unlisted {
		m.address = a
	}
}

// ask sends a request until the wanted answer comes.
func (m *machine) ask(ctx context.Context, xid dhcpv4.TransactionID, waits []time.Duration, whole bool, want dhcpv4.MessageType, with []dhcpv4.Modifier) (*dhcpv4.DHCPv4, error) {
	req, err := dhcpv4.New(with...)
	if err != nil {
		return nil, err
	}
	frame := broadcastFrame(m.mac, req.ToBytes())
	for _, wait := range waits {
		m.storm.wire.send(frame)
		timeout := time.NewTimer(wait)
		var got *dhcpv4.DHCPv4
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				timeout.Stop()
				return nil, ctx.Err()
			case <-timeout.C:
				waiting = false
			case r := <-m.replies:
				if r.TransactionID != xid {
					continue
				}
				if r.MessageType() == dhcpv4.MessageTypeNak {
					m.wrong("was refused its own address: %s", r.Message())
					return nil, fmt.Errorf("refused: %s", r.Message())
				}
				if r.MessageType() != want {
					continue // a doubled offer, when the acknowledgement is due
				}
				m.checkLease(r)
				if got == nil {
					got = r
				}
				waiting = whole
			}
		}
		timeout.Stop()
		if got != nil {
			return got, nil
		}
		m.retries++
		m.waited += wait
	}
	return nil, errPatience
}

// checkLease: the address and the name must be this machine's and nobody else's.
func (m *machine) checkLease(r *dhcpv4.DHCPv4) {
	if m.unlisted {
		return // own checks what it was given
	}
	if a, _ := netip.AddrFromSlice(r.YourIPAddr.To4()); a != m.address {
		m.wrong("was given %s, which is not %s", r.YourIPAddr, m.address)
	}
	if r.HostName() != m.name {
		m.wrong("was told that it is %q", r.HostName())
	}
}

const (
	etherHeader = 14
	ipHeader    = 20
	udpHeader   = 8
)

// broadcastFrame is what a machine without an address sends.
func broadcastFrame(mac net.HardwareAddr, payload []byte) []byte {
	f := make([]byte, etherHeader+ipHeader+udpHeader, etherHeader+ipHeader+udpHeader+len(payload))
	copy(f, []byte{255, 255, 255, 255, 255, 255})
	copy(f[6:], mac)
	f[12] = 0x08 // IPv4
	h := f[etherHeader:]
	h[0] = 0x45
	binary.BigEndian.PutUint16(h[2:], uint16(ipHeader+udpHeader+len(payload)))
	h[8], h[9] = 64, 17
	copy(h[16:], []byte{255, 255, 255, 255})
	var sum uint32
	for i := 0; i < ipHeader; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	u := h[ipHeader:]
	binary.BigEndian.PutUint16(u, dhcpv4.ClientPort)
	binary.BigEndian.PutUint16(u[2:], dhcpv4.ServerPort)
	binary.BigEndian.PutUint16(u[4:], uint16(udpHeader+len(payload))) // no checksum
	return append(f, payload...)
}

// heard gives DHCP replies to the machine that they are for. Every machine of a
// segment hears them all and drops what is not its own.
func (s *storm) heard(frame []byte) bool {
	if len(frame) < etherHeader+ipHeader+udpHeader+240 || frame[12] != 0x08 || frame[13] != 0 || frame[etherHeader] != 0x45 || frame[etherHeader+9] != 17 {
		return false
	}
	u := frame[etherHeader+ipHeader:]
	if binary.BigEndian.Uint16(u[2:]) != dhcpv4.ClientPort {
		return false
	}
	n := int(binary.BigEndian.Uint16(u[4:]))
	if n < udpHeader || n > len(u) {
		return true
	}
	r, err := dhcpv4.FromBytes(u[udpHeader:n])
	if err != nil || len(r.ClientHWAddr) != 6 {
		s.note("a reply that is no DHCP: %v", err)
		return true
	}
	m := s.byMAC[[6]byte(r.ClientHWAddr)]
	if m == nil {
		s.note("a reply for %s, which is nobody", r.ClientHWAddr)
		return true
	}
	select {
	case m.replies <- r:
	default: // it is no longer listening
	}
	return true
}
