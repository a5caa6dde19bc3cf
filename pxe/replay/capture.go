package replay

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// maxFrame is far more than any network's frame; a broken capture must not have us
// make room for what it does not hold.
const maxFrame = 1 << 20

// datagram is a UDP packet of a capture.
type datagram struct {
	at time.Time
	// card is the frame's sender, nil when the capture does not have it.
	card     net.HardwareAddr
	from, to netip.AddrPort
	payload  []byte
}

// read tells about the UDP packets of a capture: pcap, pcapng, or text
// with one DHCP message in hexadecimal on each line.
func read(r io.Reader, tell func(datagram)) error {
	in := bufio.NewReader(r)
	magic, err := in.Peek(4)
	if err != nil {
		return fmt.Errorf("reading the capture: %w", short(err))
	}
	switch binary.BigEndian.Uint32(magic) {
	case 0x0a0d0d0a:
		ng, err := pcapgo.NewNgReader(in, pcapgo.DefaultNgReaderOptions)
		if err != nil {
			return fmt.Errorf("reading the capture as pcapng: %w", err)
		}
		return packets(ng, ng.LinkType(), tell)
	case 0xa1b2c3d4, 0xd4c3b2a1, 0xa1b23c4d, 0x4d3cb2a1: // either byte order, micro- or nanoseconds
		p, err := pcapgo.NewReader(in)
		if err != nil {
			return fmt.Errorf("reading the capture as pcap: %w", err)
		}
		p.SetSnaplen(maxFrame)
		return packets(p, p.LinkType(), tell)
	}
	return lines(in, tell)
}

func short(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("it has no packet")
	}
	return err
}

type source interface {
	ReadPacketData() ([]byte, gopacket.CaptureInfo, error)
}

func packets(s source, link layers.LinkType, tell func(datagram)) error {
	for n := 1; ; n++ {
		data, info, err := s.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading packet %d of the capture: %w", n, err)
		}
		p := gopacket.NewPacket(data, link, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
		udp, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if !ok {
			continue
		}
		d := datagram{at: info.Timestamp, payload: udp.Payload}
		if e, ok := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet); ok {
			d.card = e.SrcMAC
		}
		switch ip := p.NetworkLayer().(type) {
		case *layers.IPv4:
			d.from, d.to = port(ip.SrcIP, udp.SrcPort), port(ip.DstIP, udp.DstPort)
		case *layers.IPv6:
			d.from, d.to = port(ip.SrcIP, udp.SrcPort), port(ip.DstIP, udp.DstPort)
		default:
			continue
		}
		tell(d)
	}
}

func port(ip net.IP, p layers.UDPPort) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), uint16(p))
}

// lines reads text: empty lines and those that begin with # do not count. Each
// message comes a second after the one before.
func lines(r io.Reader, tell func(datagram)) error {
	in := bufio.NewScanner(r)
	at := time.Unix(0, 0).UTC()
	for n := 1; in.Scan(); n++ {
		text := bytes.TrimSpace(in.Bytes())
		if len(text) == 0 || text[0] == '#' {
			continue
		}
		b := make([]byte, hex.DecodedLen(len(text)))
		if _, err := hex.Decode(b, text); err != nil {
			return fmt.Errorf("reading the capture: it is neither pcap nor pcapng, and line %d is not in hexadecimal: %w", n, err)
		}
		d := datagram{at: at, to: netip.AddrPortFrom(netip.IPv4Unspecified(), 67), payload: b}
		if b[0] == 2 {
			d.to = netip.AddrPortFrom(netip.IPv4Unspecified(), 68)
		}
		at = at.Add(time.Second)
		tell(d)
	}
	if err := in.Err(); err != nil {
		return fmt.Errorf("reading the capture: it is neither pcap nor pcapng nor text: %w", err)
	}
	return nil
}
