//go:build root

package server_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/test/vm"
)

var update = flag.Bool("update", false, "rewrite the answers in pxe/quirk/testdata/headers")

// Two quirks are in what the kernel writes in front of our answers: whether a packet may
// be fragmented (24), and where it comes from (27). So these transcripts are of frames as
// they arrive at a client, in the form of pxe/quirk's, judged byte for byte but for what
// is another each time, which stands as dots: IP's identification, and checksums. The
// ports of TFTP transfers do, too.
func TestHeadersOfAnswers(t *testing.T) {
	for _, c := range []struct {
		name, bridge string // the bridge's first address, which the kernel prefers
		proxy        bool
	}{
		{"24-dont-fragment", serverAddr, false},
		{"24-dont-fragment-4011", serverAddr, true},
		{"27-source-address", "10.98.0.7", false},
		{"27-source-address-4011", "10.98.0.7", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			vm.Unplug(bridge)
			if err := vm.Bridge(bridge, c.bridge+"/24"); err != nil {
				t.Fatal(err)
			}
			if c.bridge != serverAddr {
				if err := run("ip", "address", "add", serverAddr+"/24", "dev", bridge); err != nil {
					t.Fatal(err)
				}
			}
			if c.proxy {
				startRack(t, nil, nil, asProxy)
			} else {
				startRack(t, nil, nil)
			}
			path := filepath.Join("../quirk/testdata/headers", c.name+".txt")
			want := ""
			if b, err := os.ReadFile(path); err == nil {
				want = string(b)
			}
			head, _, _ := strings.Cut(want, "\n\n")
			got := strings.TrimRight(head, "\n") + "\n"
			t.Cleanup(func() { _ = run("ip", "link", "delete", "probe0") }) // gone with the station, if that was quicker
			station(t, func(card *net.Interface) error {
				w, err := newWire(card)
				if err != nil {
					return err
				}
				defer w.close()
				err = w.boots(card.HardwareAddr, c.proxy)
				got += w.text.String()
				return err
			})
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("%s is answered differently (-update rewrites it):\n%s", path, got)
			}
		})
	}
}

// wire is a card on which a client asks, and all that comes to it is seen.
type wire struct {
	fd   int
	text strings.Builder
	// conns send from the client's address, by port.
	conns map[int]*net.UDPConn
	// session is the server's port of the running transfer, last what came of it.
	session uint16
	last    []byte
}

const clientAddr = "10.98.0.200" // that of station

func newWire(card *net.Interface) (*wire, error) {
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in the network's order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	w := &wire{fd: fd, conns: map[int]*net.UDPConn{}}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: card.Index}); err != nil {
		w.close()
		return nil, fmt.Errorf("listening on %s: %w", card.Name, err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}); err != nil {
		w.close()
		return nil, err
	}
	for _, port := range []int{68, 2000} {
		if w.conns[port], err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(clientAddr), Port: port}); err != nil {
			w.close()
			return nil, err
		}
	}
	return w, nil
}

func (w *wire) close() {
	unix.Close(w.fd)
	for _, c := range w.conns {
		if c != nil {
			c.Close()
		}
	}
}

// boots asks as a PXE ROM does, for its address and its program.
func (w *wire) boots(card net.HardwareAddr, proxy bool) error {
	discover, err := dhcpv4.New(dhcpv4.WithHwAddr(card), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4}),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003000")), dhcpv4.WithOption(dhcpv4.OptClientArch(iana.EFI_X86_64)))
	if err != nil {
		return err
	}
	if err := w.ask("DISCOVER", 68, "255.255.255.255", 67, discover.ToBytes()); err != nil {
		return err
	}
	request := discover
	request.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest))
	if proxy {
		request.ClientIPAddr = net.ParseIP(clientAddr)
		err = w.ask("REQUEST", 68, serverAddr, 4011, request.ToBytes())
	} else {
		request.UpdateOption(dhcpv4.OptServerIdentifier(net.ParseIP(serverAddr)))
		request.UpdateOption(dhcpv4.OptRequestedIPAddress(net.ParseIP("10.98.0.100")))
		err = w.ask("REQUEST", 68, "255.255.255.255", 67, request.ToBytes())
	}
	if err != nil {
		return err
	}
	if err := w.ask("RRQ", 2000, serverAddr, 69, []byte("\x00\x01snponly.efi\x00octet\x00blksize\x001468\x00")); err != nil {
		return err
	}
	for block := range byte(2) {
		if err := w.ask(fmt.Sprintf("ACK %d", block), 2000, serverAddr, int(w.session), []byte{0, 4, 0, block}); err != nil {
			return err
		}
	}
	_, err = w.conns[2000].WriteToUDP([]byte("\x00\x05\x00\x08done\x00"), &net.UDPAddr{IP: net.ParseIP(serverAddr), Port: int(w.session)})
	return err
}

// ask sends a packet and notes the frame that comes back.
func (w *wire) ask(name string, from int, to string, port int, packet []byte) error {
	at := fmt.Sprint(port)
	if from == 2000 && port != 69 {
		at = "...."
	}
	fmt.Fprintf(&w.text, "\n> %s to %s:%s\n", name, to, at)
	if _, err := w.conns[from].WriteToUDP(packet, &net.UDPAddr{IP: net.ParseIP(to), Port: port}); err != nil {
		return fmt.Errorf("sending %s: %w", name, err)
	}
	frame, err := w.next(uint16(from))
	if err != nil {
		return fmt.Errorf("waiting for the answer to %s: %w", name, err)
	}
	ethernet, ip := frame[:14], frame[14:34]
	udp := frame[34:42]
	source := fmt.Sprintf("%x", udp[:2])
	if from == 2000 {
		w.session, source = binary.BigEndian.Uint16(udp), "...."
	}
	dst := "the card"
	if net.HardwareAddr(ethernet[:6]).String() == "ff:ff:ff:ff:ff:ff" {
		dst = "all"
	}
	fmt.Fprintf(&w.text, "\n< frame to %s\nip  %x %x .... %x %x .... %x %x\nudp %s %x %x ....\n",
		dst, ip[:2], ip[2:4], ip[6:8], ip[8:10], ip[12:16], ip[16:20], source, udp[2:4], udp[4:6])
	return nil
}

// next is the next frame with UDP to a port of ours. Whatever ours says twice because
// this host stood still is not wanted.
func (w *wire) next(port uint16) ([]byte, error) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		b := buf[:n]
		if !ok || link.Pkttype == unix.PACKET_OUTGOING || n < 42 || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IP || b[23] != unix.IPPROTO_UDP ||
			binary.BigEndian.Uint16(b[36:]) != port || bytes.Equal(b[42:], w.last) {
			continue
		}
		w.last = bytes.Clone(b[42:])
		return b, nil
	}
}
