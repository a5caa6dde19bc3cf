package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// EDK2's PXEBC_MTFTP_TIMEOUT and _RETRIES; ROMs are taken to be as patient.
const (
	tftpTimeout = 4 * time.Second
	tftpTries   = 6
)

// load fetches the boot program as firmware does: it asks for the size, breaks
// that off with an error, and begins again without the question.
func (m *machine) load(ctx context.Context, file string) error {
	m.at("TFTP of " + file)
	size, code := []string{"blksize", "1456"}, byte(0)
	if m.kind == uefi {
		size, code = []string{"blksize", "1468", "windowsize", "4"}, 8
	}
	if _, err := m.tftp(ctx, file, append([]string{"tsize", "0"}, size...), &code); err != nil {
		return fmt.Errorf("asking for the size of %s: %w", file, err)
	}
	content, err := m.tftp(ctx, file, size, nil)
	if err != nil {
		return fmt.Errorf("loading %s: %w", file, err)
	}
	if sha256.Sum256(content) != m.storm.programs[file] {
		m.wrong("got other bytes as %s", file)
	}
	return nil
}

// tftp runs one session in lock-step; with abort it ends at the answer to the
// options.
func (m *machine) tftp(ctx context.Context, file string, options []string, abort *byte) ([]byte, error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(m.address, 0)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	last := []byte("\x00\x01" + file + "\x00octet\x00" + strings.Join(options, "\x00") + "\x00")
	to := netip.AddrPortFrom(m.server, 69)
	peer := netip.AddrPort{}
	var content []byte
	expected, block := uint16(0), 512
	buf := make([]byte, 2048)
	for tries := 0; tries < tftpTries; {
		if _, err := conn.WriteToUDPAddrPort(last, to); err != nil {
			return nil, err
		}
		deadline := time.Now().Add(tftpTimeout)
	receive:
		if err := conn.SetReadDeadline(deadline); err != nil {
			return nil, err
		}
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if e, ok := err.(net.Error); !ok || !e.Timeout() {
				return nil, err
			}
			tries++
			m.retries++
			m.waited += tftpTimeout
			continue
		}
		if from.Addr() != m.server || n < 4 || (peer.IsValid() && from != peer) {
			goto receive
		}
		peer, to = from, from
		switch op, number := binary.BigEndian.Uint16(buf), binary.BigEndian.Uint16(buf[2:]); {
		case op == 5:
			return nil, fmt.Errorf("error %d: %s", number, strings.TrimRight(string(buf[4:n]), "\x00"))
		case op == 6 && expected <= 1 && len(content) == 0:
			if abort != nil {
				_, err := conn.WriteToUDPAddrPort([]byte{0, 5, 0, *abort, 'a', 'b', 'o', 'r', 't', 0}, to)
				return nil, err
			}
			answer := strings.Split(string(buf[2:n-1]), "\x00")
			for i := 0; i+1 < len(answer); i += 2 {
				if answer[i] == "blksize" {
					if _, err := fmt.Sscan(answer[i+1], &block); err != nil {
						return nil, err
					}
				}
			}
			expected = 1
			last = []byte{0, 4, 0, 0}
		case op == 3 && number == expected && expected > 0:
			content = append(content, buf[4:n]...)
			last = []byte{0, 4, buf[2], buf[3]}
			expected++
			tries = 0
			if n-4 < block {
				// Firmware does not stay to see whether this arrives.
				_, err := conn.WriteToUDPAddrPort(last, to)
				return content, err
			}
		}
		// Whatever else came is answered by saying again how far we are.
	}
	return nil, errPatience
}
